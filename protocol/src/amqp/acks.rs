//! The acks of a channel: what was settled while the frame before was on its way is gathered into the fewest frames.
//!
//! To a quorum queue each ack is a command of its own. So all deliveries before the oldest unsettled one are acked by one
//! frame, and those behind it by one each: a task that runs long holds back nobody's ack. Nothing here waits for more.

use std::collections::BTreeSet;
use std::iter;
use std::mem::take;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::{Channel, ChannelStatus};
use metrics::Counter;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;

use super::fault::{Fault, within};

const DEADLINE: Duration = Duration::from_secs(10);

/// The number of a delivery on its channel, from 1.
pub(super) type Tag = u64;

/// What its deliveries know of a channel: not the channel, which they may outlive.
#[derive(Debug)]
pub(super) struct Acks {
    ledger: Mutex<Ledger>,
    settled: Notify,
    status: ChannelStatus,
    closing: CancellationToken,
}

impl Acks {
    pub(super) fn of(channel: &Channel) -> Arc<Self> {
        let (ledger, settled, closing) = (Mutex::default(), Notify::new(), CancellationToken::new());
        Arc::new(Self { ledger, settled, status: channel.status().clone(), closing })
    }

    /// Takes in a delivery.
    pub(super) fn received(&self, tag: Tag) {
        self.lock().received(tag);
    }

    /// Settles a delivery; in vain when nothing can be sent any more.
    pub(super) fn settle(&self, tag: Tag, how: Settled) {
        let mut ledger = self.lock();
        if ledger.is_closed || !self.status.connected() {
            tracing::debug!(tag, ?how, "the channel was lost before a delivery was settled; it comes again");
            stale(usize::from(how != Settled::Requeued));
        } else if ledger.settle(tag, how) {
            self.settled.notify_one();
        }
    }

    /// Lets [`run`](Self::run) end once all that was settled is sent.
    pub(super) fn close(&self) {
        self.closing.cancel();
    }

    /// Sends what is settled until it is closed.
    pub(super) async fn run(self: Arc<Self>, channel: Channel) {
        let frames = metrics::counter!("errand_acks_total");
        let mut closing = false;
        while !closing {
            closing = self.closing.run_until_cancelled(self.settled.notified()).await.is_none();
            // Confirms come many at once: whoever else was woken by them settles first.
            yield_now().await;
            let frame = {
                let mut ledger = self.lock();
                ledger.is_closed = closing;
                ledger.gather()
            };
            frame.send(&channel, &frames).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts an ack that is too late: its message comes again.
fn stale(count: usize) {
    metrics::counter!("errand_stale_acks_total").increment(count as u64);
}

/// How a delivery is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    Acked,
    Requeued,
}

/// The deliveries of a channel, of which no more are unsettled than its prefetch.
#[derive(Debug, Default)]
struct Ledger {
    latest: Tag,
    unsettled: BTreeSet<Tag>,
    acked: Vec<Tag>,
    requeued: Vec<Tag>,
    /// Nothing is sent any more.
    is_closed: bool,
}

impl Ledger {
    /// The streams of two consumers of a channel, one cancelled, may give tags out of order: those between are to come.
    fn received(&mut self, tag: Tag) {
        self.unsettled.extend(self.latest + 1..=tag);
        self.latest = self.latest.max(tag);
    }

    /// Whether this is the first since the last were gathered.
    fn settle(&mut self, tag: Tag, how: Settled) -> bool {
        let first = self.acked.is_empty() && self.requeued.is_empty();
        match how {
            Settled::Acked => self.acked.push(tag),
            Settled::Requeued => self.requeued.push(tag),
        }
        first
    }

    /// The fewest frames for what was settled.
    fn gather(&mut self) -> Frames {
        let (acked, requeued) = (take(&mut self.acked), take(&mut self.requeued));
        for tag in iter::chain(&acked, &requeued) {
            self.unsettled.remove(tag);
        }
        let oldest = self.unsettled.first();
        let (before, single): (Vec<_>, _) = acked.into_iter().partition(|tag| oldest.is_none_or(|oldest| tag < oldest));
        Frames { requeued, through: before.iter().max().map(|tag| (*tag, before.len())), single }
    }
}

/// What to send, in this order: the ack of all through a tag must not meet what goes back.
#[derive(Debug, Default)]
struct Frames {
    requeued: Vec<Tag>,
    /// The last of the deliveries before the oldest unsettled one, and how many they are.
    through: Option<(Tag, usize)>,
    single: Vec<Tag>,
}

impl Frames {
    async fn send(self, channel: &Channel, frames: &Counter) {
        let requeue = BasicNackOptions { requeue: true, multiple: false };
        let requeued =
            self.requeued.into_iter().map(|tag| within("a nack", DEADLINE, channel.basic_nack(tag, requeue)));
        tell(join_all(requeued).await);
        let single = self.single.into_iter().map(|tag| (tag, false, 1));
        let through = self.through.map(|(tag, count)| (tag, true, count));
        let acks: Vec<_> = through.into_iter().chain(single).collect();
        frames.increment(acks.len() as u64);
        let acks = acks.into_iter().map(|(tag, multiple, count)| async move {
            let acked = within("an ack", DEADLINE, channel.basic_ack(tag, BasicAckOptions { multiple })).await;
            acked.inspect_err(|_| stale(count))
        });
        tell(join_all(acks).await);
    }
}

fn tell(sent: Vec<Result<(), Fault>>) {
    if let Some(Err(fault)) = sent.into_iter().find(Result::is_err) {
        tracing::debug!(%fault, "deliveries were settled too late; they come again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the broker has unsettled, and what it was told.
    #[derive(Default)]
    struct Channel {
        unsettled: BTreeSet<Tag>,
        acked: BTreeSet<Tag>,
        requeued: BTreeSet<Tag>,
    }

    impl Channel {
        /// Takes frames in as the broker does, which closes the channel at a tag that it does not know.
        fn take(&mut self, frames: Frames) {
            for tag in frames.requeued {
                assert!(self.unsettled.remove(&tag), "{tag} is requeued twice, or after an ack");
                self.requeued.insert(tag);
            }
            if let Some((last, _)) = frames.through {
                assert!(self.unsettled.contains(&last), "{last} is not known");
                let left = self.unsettled.split_off(&(last + 1));
                self.acked.extend(std::mem::replace(&mut self.unsettled, left));
            }
            for tag in frames.single {
                assert!(self.unsettled.remove(&tag), "{tag} is not known");
                self.acked.insert(tag);
            }
        }
    }

    proptest! {
        /// Each delivery: in which order it is seen and settled, how, and whether frames are sent after it.
        #[test]
        fn every_delivery_is_settled_once_and_as_it_was_said(
            deliveries in prop::collection::vec((any::<u8>(), any::<u8>(), 0..4_u8, any::<bool>()), 1..60),
        ) {
            let (mut ledger, mut channel) = (Ledger::default(), Channel::default());
            let tags = || deliveries.iter().zip(1..);
            channel.unsettled = tags().map(|(_, tag)| tag).collect();
            let mut seen: Vec<_> = tags().map(|(delivery, tag)| (tag / 8 + u64::from(delivery.0 % 2), tag)).collect();
            seen.sort_unstable();
            let mut settled: Vec<_> = tags().map(|(delivery, tag)| (delivery.1, tag, delivery.2, delivery.3)).collect();
            settled.sort_unstable();
            let (mut acked, mut requeued) = (BTreeSet::new(), BTreeSet::new());
            let mut seen = seen.into_iter();
            let mut here = BTreeSet::new();
            for (_, tag, how, send) in settled {
                while !here.contains(&tag) {
                    let (_, next) = seen.next().unwrap();
                    ledger.received(next);
                    here.insert(next);
                }
                match how {
                    0 => { ledger.settle(tag, Settled::Requeued); requeued.insert(tag); }
                    1 | 2 => { ledger.settle(tag, Settled::Acked); acked.insert(tag); }
                    _ => {}
                }
                if send {
                    channel.take(ledger.gather());
                    prop_assert_eq!((&channel.acked, &channel.requeued), (&acked, &requeued));
                }
            }
            channel.take(ledger.gather());
            prop_assert_eq!((channel.acked, channel.requeued), (acked, requeued));
        }
    }

    #[test]
    fn all_before_the_oldest_unsettled_delivery_take_one_frame() {
        let mut ledger = Ledger::default();
        (1..=100).for_each(|tag| ledger.received(tag));
        assert!(ledger.settle(2, Settled::Acked) && !ledger.settle(4, Settled::Acked));
        let frames = ledger.gather();
        assert_eq!((frames.through, frames.single), (None, vec![2, 4]), "1 holds back nobody");
        for tag in (1..=50).filter(|tag| ![2, 4, 7].contains(tag)) {
            ledger.settle(tag, Settled::Acked);
        }
        ledger.settle(7, Settled::Requeued);
        let frames = ledger.gather();
        assert_eq!((frames.requeued, frames.through, frames.single), (vec![7], Some((50, 47)), vec![]));
        for tag in 51..=99 {
            ledger.settle(tag, Settled::Acked);
        }
        assert_eq!((ledger.gather().through, ledger.unsettled), (Some((99, 49)), BTreeSet::from([100])));
    }
}
