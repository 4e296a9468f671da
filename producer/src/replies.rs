//! The reply loop: batches what workers report and what running tasks submit into one transaction, commits, and only
//! then acks and passes on the tracers that came back.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use protocol::amqp::{Broker, Delivery, Publish, Publisher};
use protocol::dead_letter::{Verdict, dead_letter};
use protocol::faults::{Bug, Point, bug, point};
use protocol::json;
use protocol::lost::{LostNotice, LostReason};
use protocol::message::truncate;
use protocol::reply::{ErrorInfo, Reply, Report};
use protocol::timestamp::{from_unix_ms, now_ms, rfc3339};
use protocol::topology::{Table, Topology};
use protocol::trace::{Said, Tracer};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::rules::Limits;
use crate::store::{Child, Held, Recorded, Store, StoreError};
use crate::submission;

/// Unsettled replies, which the broker client holds in memory.
pub const PREFETCH: u16 = 500;
/// Bodies that share a transaction.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// A larger reply is no result of a worker of ours (`MAX_RESULT_BYTES` there) and is set aside.
const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;
/// SQLite refuses JSON that nests deeper than 1,000, and with it the whole batch; `json::check` ends at 127.
const MAX_RESULT_DEPTH: usize = 100;
/// How long an unreadable reply may wait for its way to the dead letters.
const SET_ASIDE: Duration = Duration::from_secs(30);
/// How long replies wait, unacked, for a store that fails.
const PAUSE: Duration = Duration::from_millis(500);

/// Records replies, children and lost notices.
pub struct Replies {
    store: Store,
    publisher: Publisher,
    broker: Broker,
    topology: Topology,
    table: Table,
    limits: Limits,
    failures: watch::Sender<()>,
    tracers: mpsc::Sender<Tracer>,
}

/// A batch sorted by what is to be done with it.
#[derive(Default)]
struct Batch {
    children: Vec<Child>,
    /// The children's deliveries, each with its place in the batch.
    submissions: Vec<(usize, Delivery)>,
    reports: Vec<Recorded>,
    lost: Vec<LostNotice>,
    held: Vec<Held>,
    /// Tracers that workers have met, told once all that came before them is recorded.
    traced: Vec<Tracer>,
    unreadable: Vec<(Delivery, String)>,
    /// The last of the other deliveries to be acked.
    last: Option<(usize, Delivery)>,
}

impl Replies {
    /// The reply loop of a store; `table` is declared again when the broker had no way for a task, children are accepted
    /// within `limits`, and tracers that came back go to `tracers`.
    #[must_use]
    pub fn new(
        store: Store,
        publisher: Publisher,
        broker: Broker,
        topology: Topology,
        table: Table,
        limits: Limits,
        tracers: mpsc::Sender<Tracer>,
    ) -> Self {
        Self { store, publisher, broker, topology, table, limits, tracers, failures: watch::Sender::new(()) }
    }

    /// Changes whenever the store fails to take a batch.
    #[must_use]
    pub fn failures(&self) -> watch::Receiver<()> {
        self.failures.subscribe()
    }

    /// Records until the deliveries end.
    pub async fn run(self, mut deliveries: mpsc::Receiver<Delivery>) {
        while let Some(first) = deliveries.recv().await {
            let mut bytes = first.message.body.len();
            let mut received = vec![first];
            while bytes < BATCH_BYTES
                && let Ok(next) = deliveries.try_recv()
            {
                bytes += next.message.body.len();
                received.push(next);
            }
            metrics::histogram!("errand_reply_batch").record(u32::try_from(received.len()).unwrap_or(u32::MAX));
            self.record(self.sort(received)).await;
        }
    }

    fn sort(&self, received: Vec<Delivery>) -> Batch {
        let at = now_ms();
        let mut batch = Batch::default();
        for (place, delivery) in received.into_iter().enumerate() {
            if submission::is_submission(&delivery.message) {
                // No report follows from one that cannot be read: its id may be that of a task that goes well.
                match submission::read(&delivery.message, &self.limits, at) {
                    Ok(child) => {
                        batch.children.push(child);
                        batch.submissions.push((place, delivery));
                    }
                    Err(reason) => batch.unreadable.push((delivery, reason)),
                }
                continue;
            }
            if let Some(said) = Said::read(&delivery.message) {
                match said {
                    Said::Traced(tracer) => batch.traced.push(tracer),
                    Said::Held { task_id, wait } => batch.held.push(Held::new(task_id, wait, at)),
                    Said::Nothing => tracing::debug!("a tracer that the broker gave up"),
                }
                batch.last = Some((place, delivery));
                continue;
            }
            if let Some(notice) = LostNotice::read(&delivery.message, &self.topology) {
                batch.lost.push(notice);
                batch.last = Some((place, delivery));
                continue;
            }
            let redelivered = delivery.message.returns() > 0;
            match read(&delivery) {
                Ok(reply) => {
                    batch.reports.push(Recorded { reply, at, redelivered });
                    batch.last = Some((place, delivery));
                }
                Err(reason) => {
                    batch.reports.extend(failure_of(&delivery, &reason).map(|reply| Recorded {
                        reply,
                        at,
                        redelivered,
                    }));
                    batch.unreadable.push((delivery, reason));
                }
            }
        }
        batch
    }

    /// Tries for as long as it takes: what is not recorded stays unacked, and the prefetch bounds it.
    async fn record(&self, batch: Batch) {
        let Batch { children, submissions, reports, lost, held, traced, mut unreadable, mut last } = batch;
        let (children, reports) = (children.into(), reports.into());
        if bug(Bug::ReplyAckedBeforeCommit)
            && let Some((_, last)) = last.take()
        {
            last.ack_through();
        }
        point(Point::RepliesReceived).await;
        let orphans = loop {
            match self.store_all(&children, &reports, &lost, &held).await {
                Ok(orphans) => break orphans,
                Err(StoreError::Closed) => return,
                Err(error) => tracing::error!(%error, "replies wait for the store"),
            }
            self.failures.send_replace(());
            sleep(PAUSE).await;
        };
        for tracer in traced {
            // Of one too many the next round makes up for it.
            let _ = self.tracers.try_send(tracer);
        }
        point(Point::RepliesStored).await;
        if !submissions.is_empty() {
            point(Point::ChildrenStored).await;
        }
        let mut recorded: Vec<(usize, Delivery)> = last.into_iter().collect();
        for (number, (place, delivery)) in submissions.into_iter().enumerate() {
            if orphans.contains(&number) {
                let parent = truncate(&children[number].parent_id, 64);
                let reason = format!("a child of {parent:?}, which is no task of this store");
                unreadable.push((delivery, reason));
            } else {
                recorded.push((place, delivery));
            }
        }
        join_all(unreadable.into_iter().map(|(delivery, reason)| self.set_aside(delivery, reason))).await;
        if let Some((_, last)) = recorded.into_iter().max_by_key(|(place, _)| *place) {
            last.ack_through();
        }
    }

    /// Records the batch; answers which of the children have no parent in this store.
    async fn store_all(
        &self,
        children: &Arc<[Child]>,
        reports: &Arc<[Recorded]>,
        lost: &[LostNotice],
        held: &[Held],
    ) -> Result<Vec<usize>, StoreError> {
        let mut orphans = Vec::new();
        if !children.is_empty() || !reports.is_empty() {
            let counted = self.store.record(children.clone(), reports.clone()).await?;
            metrics::counter!("errand_children_total").increment(counted.children);
            metrics::counter!("errand_reports_total").increment(counted.reports);
            orphans = counted.orphans;
        }
        if !held.is_empty() {
            self.store.hold(held.to_vec()).await?;
        }
        if !lost.is_empty() {
            point(Point::LostReceived).await;
            self.mend(lost).await;
            let counted = self.store.put_back(lost.to_vec(), now_ms()).await?;
            metrics::counter!("errand_lost_total").increment(counted);
            point(Point::LostStored).await;
        }
        Ok(orphans)
    }

    /// An unroutable task may only have met a missing binding: declaring the topology again brings it back.
    async fn mend(&self, lost: &[LostNotice]) {
        if !lost.iter().any(|notice| notice.reason == LostReason::Unroutable) {
            return;
        }
        tracing::warn!("the broker had no queue for a task; declaring the topology again");
        if let Err(fault) = self.broker.declare(&self.table).await {
            tracing::error!(%fault, "cannot declare the topology");
        }
    }

    /// What cannot be read is kept for the operator, not dropped and not delivered for ever.
    async fn set_aside(&self, delivery: Delivery, reason: String) {
        metrics::counter!("errand_unreadable_replies_total").increment(1);
        tracing::warn!(%reason, "a message in the reply queue cannot be read; it goes to the dead letters");
        let error = ErrorInfo::new("UnreadableReply", reason);
        let at = from_unix_ms(now_ms()).map(rfc3339).unwrap_or_default();
        let verdict = Verdict { error: &error, attempts: 0, worker: "producer", queue: "", at: &at };
        let message = dead_letter(&delivery.message, &verdict);
        let letter = Publish { exchange: self.topology.dead(), routing_key: String::new(), message };
        // A publish waits out an alarm, and the acks of what is recorded must not.
        match timeout(SET_ASIDE, self.publisher.publish(letter)).await {
            Ok(Ok(())) => delivery.ack(),
            refused => {
                let error = refused.map_or_else(
                    |_| "no room at the broker".to_owned(),
                    |refused| match refused {
                        Ok(()) => String::new(),
                        Err(error) => error.to_string(),
                    },
                );
                tracing::debug!(%error, "an unreadable reply stays in the queue for now");
                sleep(PAUSE).await;
                delivery.requeue();
            }
        }
    }
}

fn read(delivery: &Delivery) -> Result<Reply, String> {
    if delivery.message.body.len() > MAX_REPLY_BYTES {
        return Err(format!("a reply of {} bytes", delivery.message.body.len()));
    }
    let mut reply = Reply::decode(&delivery.message).map_err(|fault| fault.to_string())?;
    refuse_deep_result(&mut reply);
    Ok(reply)
}

/// A reply that cannot be read still ends its task: a stock worker sends `NaN`, which is no JSON, and sends it once.
fn failure_of(delivery: &Delivery, reason: &str) -> Option<Reply> {
    let message = format!("the worker's reply cannot be read: {reason}");
    let error = ErrorInfo::new("UnreadableReply", message);
    Some(Reply::of(delivery.message.properties.correlation_id.clone()?, Report::Failure(error)))
}

/// A text nests less deep than it is long, so short results need no look.
fn refuse_deep_result(reply: &mut Reply) {
    let (Report::Success(raw) | Report::Custom { meta: raw, .. }) = &reply.report else { return };
    if raw.get().len() <= MAX_RESULT_DEPTH || json::check(raw.get(), MAX_RESULT_DEPTH).is_ok() {
        return;
    }
    reply.report = Report::Failure(ErrorInfo::new(
        "ResultNotJson",
        format!("the result is not JSON that can be stored, or nests deeper than {MAX_RESULT_DEPTH}"),
    ));
}
