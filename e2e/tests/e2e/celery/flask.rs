//! The Flask applications of `examples/flask`, driven as a browser would: the same routes over Celery and over HTTP.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::client::http;
use e2e::guard::Process;
use e2e::{Pair, broker, keys, ports, until};
use reqwest::Client;
use serde_json::{Value, json};

use super::serve;

const SOON: Duration = Duration::from_mins(1);

/// An application that serves, on Flask's own server.
struct App {
    name: &'static str,
    url: String,
    http: Client,
    _process: Process,
}

impl App {
    async fn start(pair: &Pair, name: &'static str, env: &[(&str, &str)]) -> Result<Self> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/flask").join(format!("{name}.py"));
        let (program, port) = (program.canonicalize()?.display().to_string(), ports::free()?.to_string());
        let args = ["-m", "flask", "--app", &program, "run", "--port", &port];
        let process = serve("newest", name, &args, pair.dir(), env)?;
        let app = Self { name, url: format!("http://127.0.0.1:{port}"), http: http()?, _process: process };
        until(name, SOON, async || app.status("nobody").await).await?;
        Ok(app)
    }

    async fn post(&self, route: &str, body: &str) -> Result<(u16, Value)> {
        let request = self.http.post(format!("{}{route}", self.url)).header("content-type", "application/json");
        let answer = request.body(body.to_owned()).send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    }

    /// Sends a task that must be accepted: its id.
    async fn sent(&self, route: &str, body: &Value) -> Result<String> {
        let (status, answer) = self.post(route, &body.to_string()).await?;
        ensure!(status == 202, "{}: {route} is answered {status}: {answer}", self.name);
        Ok(answer["task_id"].as_str().context("no task_id")?.to_owned())
    }

    async fn status(&self, id: &str) -> Result<(u16, Value)> {
        let answer = self.http.get(format!("{}/task_status/{id}", self.url)).send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    }

    /// All that is said of a task until it is as wanted, each once.
    async fn follow(&self, id: &str, wanted: &[&str]) -> Result<Vec<Value>> {
        let mut told = Vec::new();
        until(&format!("{}: {wanted:?}", self.name), SOON, async || {
            let (status, task) = self.status(id).await?;
            ensure!(status == 200, "{status}: {task}");
            if told.last() != Some(&task) {
                told.push(task);
            }
            ensure!(told.last().is_some_and(|task| wanted.iter().any(|state| task["state"] == *state)), "{told:?}");
            Ok(())
        })
        .await?;
        Ok(told)
    }
}

#[tokio::test]
async fn both_flask_applications_tell_the_whole_life_of_a_task() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumer_env("FETCH_ALLOW", "127.0.0.1").start().await?;
    let key = keys::create(pair.store(), "submit,read", &[])?;
    let amqp = pair.broker().amqp_url(pair.vhost());
    let producer = pair.producer.url("");
    let with_celery = App::start(&pair, "with_celery", &[("AMQP_URL", &amqp)]).await?;
    let http = [("ERRAND_URL", producer.as_str()), ("ERRAND_API_KEY", &key.token)];
    let with_http = App::start(&pair, "with_http", &http).await?;
    tokio::try_join!(drive(&with_celery), drive(&with_http))?;
    pair.stop().await
}

async fn drive(app: &App) -> Result<()> {
    let processed = app.sent("/process_data", &json!({"value": 21})).await?;
    let started = app.sent("/start-task", &json!({})).await?;
    let away = json!({"url": format!("http://127.0.0.1:{}/", ports::free()?)});
    let retried = app.sent("/fetch_external_data", &away).await?;
    let refused = app.sent("/fetch_external_data", &json!({"url": "http://10.0.0.1/"})).await?;

    let told = app.follow(&processed, &["SUCCESS"]).await?;
    let success =
        |result: Value| json!({"state": "SUCCESS", "current": 1, "total": 1, "status": "Success!", "result": result});
    assert_eq!(told.last(), Some(&success(json!(42))), "{}: {told:?}", app.name);
    let under_way: Vec<&Value> = told.iter().filter(|task| task["total"] == 3).collect();
    assert!(under_way.len() >= 2 && under_way.iter().is_sorted_by_key(|task| task["current"].as_u64()), "{told:?}");
    let others = &told[..told.len() - 1];
    assert!(others.iter().all(|task| task["status"] != "Success!" && task["result"].is_null()), "{told:?}");
    assert_eq!(app.follow(&started, &["SUCCESS"]).await?.last(), Some(&success(json!("done done "))));

    for (id, state, status) in [(retried, "RETRY", "To be tried again: "), (refused, "FAILURE", "10.0.0.1: a private")]
    {
        let told = app.follow(&id, &[state, "SUCCESS"]).await?;
        let last = told.last().context("nothing told")?;
        let says = last["status"].as_str().unwrap_or_default();
        assert!(last["state"] == state && says.starts_with(status) && last["current"] == 0, "{}: {last}", app.name);
    }
    one_beside_another(app).await?;
    refusals(app).await
}

/// Looking at one task takes nothing from the other.
async fn one_beside_another(app: &App) -> Result<()> {
    let both = [
        app.sent("/process_data", &json!({"value": 1})).await?,
        app.sent("/process_data", &json!({"value": 2})).await?,
    ];
    let told = tokio::try_join!(app.follow(&both[0], &["SUCCESS"]), app.follow(&both[1], &["SUCCESS"]))?;
    for told in [told.0, told.1] {
        let states: Vec<&str> = told.iter().filter_map(|task| task["state"].as_str()).collect();
        let begun = states.iter().position(|state| *state != "PENDING").context("never begun")?;
        assert!(!states[begun..].contains(&"PENDING"), "{}: {states:?}", app.name);
    }
    Ok(())
}

async fn refusals(app: &App) -> Result<()> {
    for (route, body) in [
        ("/process_data", "{}"),
        ("/process_data", r#"{"value": [1]}"#),
        ("/process_data", r#"{"value": true}"#),
        ("/process_data", "[21]"),
        ("/process_data", "not JSON"),
        ("/fetch_external_data", r#"{"url": 7}"#),
    ] {
        let (status, answer) = app.post(route, body).await?;
        assert!(status == 400 && answer["error"].is_string(), "{}: {route} {body}: {status} {answer}", app.name);
    }
    for unknown in ["nobody", "00000000-0000-4000-8000-000000000000", "%20", &"x".repeat(300)] {
        assert_eq!(app.status(unknown).await?.0, 404, "{}: {unknown}", app.name);
    }
    Ok(())
}
