//! `GET /v1/workers` and `GET /v1/task-types`: who is alive and what runs there, and what each task takes.

use actix_web::{HttpResponse, web};
use protocol::heartbeat::{Heartbeat, RunningTask, TaskType};
use protocol::timestamp::{from_unix_ms, now_ms, rfc3339};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::Api;
use super::openapi::answers::NoRoom;
use super::openapi::schemas::{Any, Runs};

/// The answer of `/v1/workers`.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkersView {
    workers: Vec<WorkerView>,
}

/// A worker that was heard of within 15 s.
#[derive(Debug, Serialize, ToSchema)]
struct WorkerView {
    worker: String,
    pid: u32,
    version: String,
    /// The queues that it serves.
    queues: Vec<String>,
    /// The names of the tasks that it knows.
    tasks: Vec<String>,
    /// How many tasks it runs at once.
    concurrency: usize,
    /// What ran when it last spoke, a thousand at most.
    #[schema(value_type = Vec<Runs>)]
    running: Vec<RunningTask>,
    #[schema(format = DateTime)]
    last_seen: String,
    /// Whether it takes no more tasks and only finishes those that run.
    stopping: bool,
}

/// The workers that are alive
///
/// A worker speaks every 5 s, so what it says may be as old. By name.
#[utoipa::path(get, path = "/v1/workers", tag = "service", responses(
    (status = 200, description = "The workers", body = WorkersView), NoRoom,
))]
pub async fn workers(api: web::Data<Api>) -> HttpResponse {
    let now = now_ms();
    let workers = api.workers.living().into_iter().map(|(heartbeat, age)| {
        let seen = now.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        worker(heartbeat, from_unix_ms(seen).map(rfc3339).unwrap_or_default())
    });
    HttpResponse::Ok().json(WorkersView { workers: workers.collect() })
}

fn worker(heartbeat: Heartbeat, last_seen: String) -> WorkerView {
    WorkerView {
        worker: heartbeat.worker,
        pid: heartbeat.pid,
        version: heartbeat.version,
        queues: heartbeat.queues,
        tasks: heartbeat.tasks.into_iter().map(|task| task.name).collect(),
        concurrency: heartbeat.concurrency,
        running: heartbeat.running,
        last_seen,
        stopping: heartbeat.stopping,
    }
}

/// The answer of `/v1/task-types`.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskTypesView {
    task_types: Vec<TaskTypeView>,
}

/// A task that a worker has announced. Times are seconds.
#[derive(Debug, Serialize, ToSchema)]
struct TaskTypeView {
    task: String,
    /// What it takes: a JSON Schema (2020-12) with its documentation.
    #[schema(value_type = Any)]
    arguments: Value,
    /// The names of arguments by position, in their order, where there are such.
    positional: Option<Vec<String>>,
    /// What it returns: a JSON Schema.
    #[schema(value_type = Any)]
    result: Value,
    /// `async`, `blocking` or `isolated`.
    execution: String,
    retry: RetryView,
    /// Its hard time limit when its caller names none; null is the worker's.
    time_limit: Option<f64>,
    soft_time_limit: Option<f64>,
    /// At most so many at once on one worker.
    concurrency_limit: Option<u32>,
    /// At most so many starts on one worker, as in `10/s`.
    rate_limit: Option<String>,
    /// Arguments that are shown to nobody.
    redacted: Vec<String>,
    /// How many living workers know it.
    workers: usize,
}

/// How a task is retried when its caller does not say.
#[derive(Debug, Serialize, ToSchema)]
struct RetryView {
    max_retries: u32,
    backoff: f64,
    backoff_max: f64,
    jitter: bool,
}

/// What each task takes
///
/// As last announced by a worker, alive or gone, by name. It is remembered over restarts.
#[utoipa::path(get, path = "/v1/task-types", tag = "service", responses(
    (status = 200, description = "The task types", body = TaskTypesView), NoRoom,
))]
pub async fn task_types(api: web::Data<Api>) -> HttpResponse {
    let types = api.workers.task_types().into_iter().map(|(task, workers)| task_type(task, workers));
    HttpResponse::Ok().json(TaskTypesView { task_types: types.collect() })
}

fn task_type(task: TaskType, workers: usize) -> TaskTypeView {
    TaskTypeView {
        task: task.name,
        arguments: task.arguments,
        positional: task.positional,
        result: task.result,
        execution: task.execution,
        retry: RetryView {
            max_retries: task.retry.max_retries,
            backoff: task.retry.backoff,
            backoff_max: task.retry.backoff_max,
            jitter: task.retry.jitter,
        },
        time_limit: task.time_limit,
        soft_time_limit: task.soft_time_limit,
        concurrency_limit: task.concurrency_limit,
        rate_limit: task.rate_limit,
        redacted: task.redacted,
        workers,
    }
}
