//! A worker of one's own: `report` splits its work into pages, `render_page` renders one.

use std::time::Duration;

use consumer::context::Context;
use consumer::handler::{Handler, TaskError};
use consumer::options::{RateLimit, TaskOptions};
use consumer::registry::Registry;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

struct Report;

impl Handler for Report {
    const NAME: &'static str = "report";
    type Args = (u32,);
    type Output = Vec<String>;

    /// Submits every page and returns their task ids.
    async fn run(&self, (pages,): (u32,), ctx: Context) -> Result<Vec<String>, TaskError> {
        let mut ids = Vec::new();
        for number in 1..=pages {
            ids.push(ctx.submit(RenderPage::signature(&Page { number })).await?);
            ctx.progress(number.into(), u64::from(pages));
        }
        Ok(ids)
    }
}

/// Renders one page.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Page {
    /// From 1.
    number: u32,
}

struct RenderPage;

impl Handler for RenderPage {
    const NAME: &'static str = "render_page";
    const OPTIONS: TaskOptions =
        TaskOptions::new().blocking().concurrency_limit(2).rate_limit(RateLimit::per_second(5));
    type Args = Page;
    type Output = String;

    async fn run(&self, Page { number }: Page, _: Context) -> Result<String, TaskError> {
        tracing::info!(number, "rendering");
        std::thread::sleep(Duration::from_millis(300)); // a library that is not async
        Ok(format!("page {number}"))
    }
}

fn main() -> std::process::ExitCode {
    consumer::app::run(Registry::new().register(Report).register(RenderPage))
}
