//! Owns the bare server: actix-web that reads a submit and gives the pair's answer, at once or after one row was
//! committed.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::web::{Bytes, Data};
use actix_web::{App, HttpResponse, HttpServer, error, web};
use anyhow::{Context, Result};
use e2e::guard;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::Scale;
use super::part::{self, Part, say};
use super::sample::{Answer, Sample};
use super::store::Rows;
use crate::driver::{self, Load};
use crate::figures::Figures;
use crate::meter::Meter;
use crate::work::Work;

/// As many as the producer has.
const WORKERS: usize = 2;

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    answer: Answer,
    /// Where the body of each request is committed before it is answered, if at all.
    rows: Option<PathBuf>,
}

struct Bare {
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    rows: Option<Mutex<Rows>>,
}

/// Says where it listens, and serves until it is killed.
pub(super) async fn serve(job: Job) -> Result<()> {
    let headers = job.answer.headers.iter().map(|(name, value)| Ok((name.parse()?, value.parse()?)));
    let rows = match &job.rows {
        Some(path) => Some(Mutex::new(Rows::open(path).await?)),
        None => None,
    };
    let bare = Bare { headers: headers.collect::<Result<_>>()?, body: job.answer.body.into(), rows };
    let bare = Data::new(bare);
    let app = move || App::new().app_data(bare.clone()).route("/v1/tasks", web::post().to(submit));
    let server = HttpServer::new(app).workers(WORKERS).disable_signals().bind((Ipv4Addr::LOCALHOST, 0))?;
    say(server.addrs().first().context("no address")?)?;
    Ok(server.run().await?)
}

async fn submit(bare: Data<Bare>, body: Bytes) -> actix_web::Result<HttpResponse> {
    if let Some(rows) = &bare.rows {
        let text = std::str::from_utf8(&body)?;
        rows.lock().await.append(text).await.map_err(error::ErrorInternalServerError)?;
    }
    let mut answer = HttpResponse::Accepted();
    for header in &bare.headers {
        answer.insert_header(header.clone());
    }
    Ok(answer.body(bare.body.clone()))
}

pub(super) async fn measure(sample: &Sample, scale: Scale) -> Result<Vec<Figures>> {
    let (one, many) = (scale.single, scale.requests);
    Ok(vec![
        run(sample, "bare 202, 256 connections", many, 256, false).await?,
        run(sample, "bare 202, one outstanding", one, 1, false).await?,
        run(sample, "bare 202 after a commit, one outstanding", one, 1, true).await?,
    ])
}

async fn run(sample: &Sample, name: &str, tasks: u64, connections: usize, commits: bool) -> Result<Figures> {
    let dir = guard::scratch_dir("floor-")?;
    let rows = commits.then(|| dir.path().join("rows.db"));
    let job = part::Job::Http(Job { answer: sample.answer.clone(), rows });
    let mut server = Part::start("http", dir.path(), &job)?;
    let address: SocketAddr = server.line(0).await?;
    let processes = vec![("server".to_owned(), vec![server.pid()]), ("driver".to_owned(), vec![std::process::id()])];
    let work = Work::Echo(sample.payload);
    let load = Load { work, tasks: usize::try_from(tasks)?, connections, rate: None, wait_every: None };
    let before = Meter::read(&processes)?;
    let submitted = driver::run(address, &load).await.with_context(|| name.to_owned())?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let cpu = before.used(&processes, tasks as f64)?;
    let (seconds, latency) = (submitted.elapsed.as_secs_f64(), submitted.submits.percentiles());
    Ok(Figures { name: name.to_owned(), tasks, seconds, cpu, latency })
}
