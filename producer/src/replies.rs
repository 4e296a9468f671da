//! The reply loop: records what workers report and what running tasks submit, a batch in one transaction, commits, and only
//! then acks and passes on the tracers that came back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use protocol::amqp::{Broker, Delivery, Publish, Publisher};
use protocol::dead_letter::{Verdict, dead_letter};
use protocol::faults::{Bug, Point, bug, point};
use protocol::lost::{LostNotice, LostReason};
use protocol::message::truncate;
use protocol::reply::ErrorInfo;
use protocol::timestamp::{from_unix_ms, now_ms, rfc3339};
use protocol::topology::{Table, Topology};
use protocol::trace::Tracer;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::rules::Limits;
use crate::store::{Child, Held, Recorded, Store, StoreError};

mod batch;

use self::batch::{Batch, Received};

/// Unsettled messages of the reply queue, which the broker client holds in memory; of packs that is 32 MiB.
pub const PREFETCH: u16 = 128;
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
            let mut batch = Batch::at(now_ms());
            batch.add(first, &self.limits, &self.topology);
            while !batch.is_full()
                && let Ok(next) = deliveries.try_recv()
            {
                batch.add(next, &self.limits, &self.topology);
            }
            metrics::histogram!("errand_reply_batch").record(u32::try_from(batch.messages()).unwrap_or(u32::MAX));
            self.record(batch).await;
        }
    }

    /// Tries for as long as it takes: what is not recorded stays unacked, and the prefetch bounds it.
    async fn record(&self, batch: Batch) {
        let Batch { mut deliveries, children, submissions, reports, lost, held, traced, mut unreadable, .. } = batch;
        let (children, reports) = (children.into(), reports.into());
        if bug(Bug::ReplyAckedBeforeCommit) {
            settle(std::mem::take(&mut deliveries), &BTreeSet::new());
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
        for (number, received) in submissions.into_iter().enumerate() {
            if orphans.contains(&number) {
                let parent = truncate(&children[number].parent_id, 64);
                let reason = format!("a child of {parent:?}, which is no task of this store");
                unreadable.push((received, reason));
            }
        }
        let kept = join_all(unreadable.into_iter().map(|(received, reason)| self.set_aside(received, reason))).await;
        settle(deliveries, &kept.into_iter().filter_map(Result::err).collect());
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
    ///
    /// # Errors
    /// The place of a delivery that is to come again, since the broker did not take the letter.
    async fn set_aside(&self, received: Received, reason: String) -> Result<(), usize> {
        let Received { place, message } = received;
        metrics::counter!("errand_unreadable_replies_total").increment(1);
        tracing::warn!(%reason, "a message in the reply queue cannot be read; it goes to the dead letters");
        let error = ErrorInfo::new("UnreadableReply", reason);
        let at = from_unix_ms(now_ms()).map(rfc3339).unwrap_or_default();
        let verdict = Verdict { error: &error, attempts: 0, worker: "producer", queue: "", at: &at };
        let letter = Publish::to(self.topology.dead(), String::new(), dead_letter(&message, &verdict));
        // A publish waits out an alarm, and the acks of what is recorded must not.
        let error = match timeout(SET_ASIDE, self.publisher.publish(letter)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no room at the broker".to_owned(),
        };
        tracing::debug!(%error, "an unreadable reply stays in the queue for now");
        sleep(PAUSE).await;
        Err(place)
    }
}

/// Acks what is recorded; what is in `refused`, by place, comes again, and of a pack all of it.
fn settle(deliveries: Vec<Delivery>, refused: &BTreeSet<usize>) {
    for (place, delivery) in deliveries.into_iter().enumerate() {
        if refused.contains(&place) { delivery.requeue() } else { delivery.ack() }
    }
}
