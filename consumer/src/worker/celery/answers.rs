//! What this worker does on a command of Celery's tools and what it answers, in the words of Celery's own workers.
//!
//! What it has no counterpart for gets an error: a tool then shows that for this worker and goes on.

use protocol::control::REVOKED;
use serde_json::{Map, Value, json};

use super::present::{Present, Stage};
use super::requests::Request;
use crate::worker::Worker;

/// The most ids in an answer.
const MAX_IDS: usize = 10_000;
/// The reason of a revocation that ended a run.
const TERMINATED: &str = "terminated";

/// What follows a command besides its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    /// Say that the worker is there, or there still, or goes; by the event's kind.
    Say(&'static str),
}

/// The answer, and what follows.
pub(super) fn answer(worker: &Worker, present: &Present, request: &Request) -> (Value, Then) {
    let then = match request.method.as_str() {
        "heartbeat" => Then::Say("worker-heartbeat"),
        "enable_events" if !worker.celery.events.switch(true) => Then::Say("worker-online"),
        "disable_events" if worker.celery.events.switch(false) => Then::Say("worker-heartbeat"),
        _ => Then::Nothing,
    };
    let answer = told(worker, request).or_else(|| inspected(worker, present, request));
    (answer.unwrap_or_else(|| json!({"error": format!("{:?} is no command of this worker", request.method)})), then)
}

/// The answer to a command to do something.
fn told(worker: &Worker, request: &Request) -> Option<Value> {
    Some(match request.method.as_str() {
        "heartbeat" => Value::Null,
        "enable_events" => json!({"ok": "task events enabled"}),
        "disable_events" => json!({"ok": "task events disabled"}),
        "revoke" => {
            let terminate = request.argument("terminate").and_then(Value::as_bool).unwrap_or_default();
            revoke(worker, request.ids("task_id"), terminate)
        }
        "terminate" => revoke(worker, request.ids("task_id"), true),
        "shutdown" => {
            tracing::info!("told by Celery's tools to end");
            worker.celery.shutdown.cancel();
            json!({"ok": "the worker ends"})
        }
        _ => return None,
    })
}

/// As Celery has it, only `terminate` ends what runs, of its own accord first and then by force; otherwise it goes on.
fn revoke(worker: &Worker, task_ids: Vec<String>, terminate: bool) -> Value {
    if task_ids.is_empty() {
        return json!({"error": "task_id names no task"});
    }
    let (reason, did) = if terminate { (TERMINATED, "terminated") } else { (REVOKED, "flagged as revoked") };
    let said = json!({"ok": format!("tasks {} {did}", task_ids.join(", "))});
    tracing::info!(count = task_ids.len(), terminate, "told by Celery's tools that tasks are revoked");
    let revocations = worker.remote.revoke(task_ids, reason);
    if terminate {
        for revocation in &revocations {
            worker.runs.revoke(revocation);
        }
    }
    said
}

/// The answer to a question.
fn inspected(worker: &Worker, present: &Present, request: &Request) -> Option<Value> {
    let (name, exchange) = (&worker.config.worker_name, worker.config.topology.tasks());
    Some(match request.method.as_str() {
        "ping" => json!({"ok": "pong"}),
        "clock" => json!({"clock": worker.celery.events.tick()}),
        "hello" => hello(worker, request),
        "registered" | "registered_tasks" | "dump_tasks" => registered(worker),
        "active" | "dump_active" => present.at(Stage::Active, name, &exchange).into(),
        "reserved" | "dump_reserved" => present.at(Stage::Reserved, name, &exchange).into(),
        // What is due later is the broker's.
        "scheduled" | "schedule" | "dump_schedule" => json!([]),
        "revoked" | "dump_revoked" => worker.remote.revoked_ids(MAX_IDS).into(),
        "query_task" => present.of(&request.ids("ids"), name, &exchange),
        "active_queues" => queues(worker),
        "stats" => stats(worker, present),
        "conf" | "dump_conf" => conf(worker),
        "report" => json!({"ok": format!("errand {} {}", env!("CARGO_PKG_VERSION"), conf(worker))}),
        _ => return None,
    })
}

/// To another worker that starts; a worker does not greet itself.
fn hello(worker: &Worker, request: &Request) -> Value {
    let from = request.argument("from_node").and_then(Value::as_str);
    if from == Some(&worker.config.worker_name) {
        return Value::Null;
    }
    json!({"revoked": worker.remote.revoked_ids(MAX_IDS), "clock": worker.celery.events.tick()})
}

fn registered(worker: &Worker) -> Value {
    worker.registry.task_types().into_iter().map(|task| task.name).collect()
}

/// Flower's page of a worker fails when one of these keys is missing (measured).
fn queues(worker: &Worker) -> Value {
    let topology = &worker.config.topology;
    let served = worker.config.queues.iter().filter(|queue| !worker.remote.is_paused(queue));
    let shown = served.map(|queue| {
        json!({
            "name": topology.queue(queue),
            "routing_key": queue,
            "exchange": {"name": topology.tasks(), "type": "topic", "durable": true, "auto_delete": false},
            "durable": true,
            "exclusive": false,
            "auto_delete": false,
            "no_ack": false,
            "alias": null,
            "queue_arguments": {"x-queue-type": "quorum"},
            "binding_arguments": null,
        })
    });
    shown.collect()
}

fn stats(worker: &Worker, present: &Present) -> Value {
    let config = &worker.config;
    json!({
        "total": present.total(),
        "pid": std::process::id(),
        "clock": worker.celery.events.tick().to_string(),
        "uptime": worker.celery.born.elapsed().as_secs(),
        "prefetch_count": config.concurrency,
        "pool": {
            "implementation": "errand",
            "max-concurrency": config.concurrency,
            "processes": [std::process::id()],
            "threads": config.blocking_threads,
            "child-processes": config.child_processes,
        },
        "broker": broker(worker),
    })
}

/// From the URL as it is shown, without user and password.
fn broker(worker: &Worker) -> Value {
    let Ok(url) = url::Url::parse(&config_url(worker)) else { return Value::Object(Map::new()) };
    json!({
        "transport": url.scheme(),
        "hostname": url.host_str(),
        "port": url.port(),
        "virtual_host": url.path().strip_prefix('/'),
    })
}

fn config_url(worker: &Worker) -> String {
    worker.config.broker.url.to_string()
}

fn conf(worker: &Worker) -> Value {
    let config = &worker.config;
    json!({
        "broker_url": config_url(worker),
        "result_backend": "rpc://",
        "task_time_limit": config.time_limit.as_secs_f64(),
        "task_acks_late": true,
        "task_track_started": true,
        "worker_concurrency": config.concurrency,
        "worker_send_task_events": config.celery_events,
        "worker_max_time_limit": config.max_time_limit.as_secs_f64(),
    })
}
