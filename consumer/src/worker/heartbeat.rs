//! Says every five seconds, and after a tracer was answered, who this is, what it serves and what it has in hand.

use std::sync::Arc;
use std::time::Duration;

use protocol::amqp::{Publish, Publisher};
use protocol::heartbeat::{HEARTBEAT_INTERVAL, Heartbeat, TaskType};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::Worker;

/// How long after a tracer: by then its producer has the answer, and more tracers that come together are done with.
const AFTER_TRACER: Duration = Duration::from_millis(500);

/// Speaks until `close`, at once after every new connection and when the worker takes no more tasks.
pub(super) async fn run(worker: Arc<Worker>, publisher: Publisher, close: CancellationToken) {
    let mut link = publisher.watch();
    let mut ticks = interval(HEARTBEAT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stopping = false;
    // Their schemas are made anew at each call.
    let tasks = worker.registry.task_types();
    loop {
        let traced = async {
            worker.traced.notified().await;
            sleep(AFTER_TRACER).await;
        };
        tokio::select! {
            () = close.cancelled() => return,
            () = worker.stop.cancelled(), if !stopping => stopping = true,
            _ = ticks.tick() => {}
            Ok(()) = link.changed() => {}
            () = traced => {}
        }
        speak(&worker, &publisher, &tasks, stopping);
    }
}

fn speak(worker: &Worker, publisher: &Publisher, tasks: &[TaskType], stopping: bool) {
    let (running, cut) = worker.runs.running();
    let heartbeat = Heartbeat {
        worker: worker.config.worker_name.clone(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        queues: worker.config.queues.clone(),
        tasks: tasks.to_vec(),
        concurrency: usize::from(worker.config.concurrency),
        running,
        cut,
        stopping,
    };
    match heartbeat.encode() {
        Ok(message) => {
            let exchange = worker.config.topology.workers();
            let _ = publisher.publish_transient(Publish::to(exchange, String::new(), message));
        }
        Err(error) => tracing::error!(%error, "a heartbeat that is not JSON"),
    }
}
