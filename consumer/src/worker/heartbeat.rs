//! Says every five seconds who this is, what it serves and what it runs.

use std::sync::Arc;

use protocol::amqp::{Publish, Publisher};
use protocol::heartbeat::{HEARTBEAT_INTERVAL, Heartbeat};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Worker;

/// Speaks until `close`, at once after every new connection and when the worker takes no more tasks.
pub(super) async fn run(worker: Arc<Worker>, publisher: Publisher, close: CancellationToken) {
    let mut link = publisher.watch();
    let mut ticks = interval(HEARTBEAT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stopping = false;
    loop {
        tokio::select! {
            () = close.cancelled() => return,
            () = worker.stop.cancelled(), if !stopping => stopping = true,
            _ = ticks.tick() => {}
            Ok(()) = link.changed() => {}
        }
        speak(&worker, &publisher, stopping);
    }
}

fn speak(worker: &Worker, publisher: &Publisher, stopping: bool) {
    let heartbeat = Heartbeat {
        worker: worker.config.worker_name.clone(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        queues: worker.config.queues.clone(),
        tasks: worker.registry.task_types(),
        concurrency: usize::from(worker.config.concurrency),
        running: worker.runs.running(),
        stopping,
    };
    match heartbeat.encode() {
        Ok(message) => {
            let exchange = worker.config.topology.workers();
            let _ = publisher.publish_transient(Publish { exchange, routing_key: String::new(), message });
        }
        Err(error) => tracing::error!(%error, "a heartbeat that is not JSON"),
    }
}
