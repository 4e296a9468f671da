//! What is recorded together: messages of the reply queue, unpacked and sorted by what is to be done with each. It stores
//! nothing and acks nothing.

use protocol::amqp::Delivery;
use protocol::json;
use protocol::lost::LostNotice;
use protocol::message::Message;
use protocol::pack;
use protocol::reply::{ErrorInfo, Reply, Report};
use protocol::topology::Topology;
use protocol::trace::{Said, Tracer};

use crate::rules::Limits;
use crate::store::{Child, Held, Recorded, UnixMs};
use crate::submission;

/// Messages that share a transaction, give or take a pack: who submits meanwhile waits for it.
const MAX_MESSAGES: usize = 1_000;
/// Bodies that share a transaction.
const MAX_BYTES: usize = 8 * 1024 * 1024;
/// A larger reply is no result of a worker of ours (`MAX_RESULT_BYTES` there) and is set aside.
const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;
/// SQLite refuses JSON that nests deeper than 1,000, and with it the whole batch; `json::check` ends at 127.
const MAX_RESULT_DEPTH: usize = 100;

/// A batch sorted by what is to be done with it.
#[derive(Default)]
pub(super) struct Batch {
    /// All that came, without their messages, to be acked.
    pub(super) deliveries: Vec<Delivery>,
    pub(super) children: Vec<Child>,
    /// The children's messages, in the same order.
    pub(super) submissions: Vec<Received>,
    pub(super) reports: Vec<Recorded>,
    pub(super) lost: Vec<LostNotice>,
    pub(super) held: Vec<Held>,
    /// Tracers that workers have met, told once all that came before them is recorded.
    pub(super) traced: Vec<Tracer>,
    /// What cannot be read, and why.
    pub(super) unreadable: Vec<(Received, String)>,
    at: UnixMs,
    messages: usize,
    bytes: usize,
}

/// A message and the place of the delivery that it came in, alone or in a pack.
pub(super) struct Received {
    pub(super) place: usize,
    pub(super) message: Message,
}

impl Batch {
    /// An empty one of that time.
    pub(super) fn at(at: UnixMs) -> Self {
        Self { at, ..Self::default() }
    }

    /// How many messages it has, those of packs each.
    pub(super) const fn messages(&self) -> usize {
        self.messages
    }

    pub(super) const fn is_full(&self) -> bool {
        self.messages >= MAX_MESSAGES || self.bytes >= MAX_BYTES
    }

    /// Takes a delivery in.
    pub(super) fn add(&mut self, mut delivery: Delivery, limits: &Limits, topology: &Topology) {
        let message = std::mem::take(&mut delivery.message);
        let (place, redelivered) = (self.deliveries.len(), message.returns() > 0);
        self.deliveries.push(delivery);
        self.bytes += message.body.len();
        let mut sort = |message| self.sort(Received { place, message }, redelivered, limits, topology);
        match pack::unpack(&message) {
            None => sort(message),
            Some(Ok(members)) => members.into_iter().for_each(sort),
            Some(Err(fault)) => self.unreadable.push((Received { place, message }, fault.to_string())),
        }
    }

    fn sort(&mut self, received: Received, redelivered: bool, limits: &Limits, topology: &Topology) {
        self.messages += 1;
        let message = &received.message;
        if submission::is_submission(message) {
            // No report follows from one that cannot be read: its id may be that of a task that goes well.
            match submission::read(message, limits, self.at) {
                Ok(child) => {
                    self.children.push(child);
                    self.submissions.push(received);
                }
                Err(reason) => self.unreadable.push((received, reason)),
            }
        } else if let Some(said) = Said::read(message) {
            match said {
                Said::Traced(tracer) => self.traced.push(tracer),
                Said::Held { task_id, wait } => self.held.push(Held::new(task_id, wait, self.at)),
                Said::Nothing => tracing::debug!("a tracer that the broker gave up"),
            }
        } else if let Some(notice) = LostNotice::read(message, topology) {
            self.lost.push(notice);
        } else {
            self.report(received, redelivered);
        }
    }

    fn report(&mut self, received: Received, redelivered: bool) {
        let at = self.at;
        let recorded = |reply| Recorded { reply, at, redelivered };
        match read(&received.message) {
            Ok(reply) => self.reports.push(recorded(reply)),
            Err(reason) => {
                self.reports.extend(failure_of(&received.message, &reason).map(recorded));
                self.unreadable.push((received, reason));
            }
        }
    }
}

fn read(message: &Message) -> Result<Reply, String> {
    if message.body.len() > MAX_REPLY_BYTES {
        return Err(format!("a reply of {} bytes", message.body.len()));
    }
    let mut reply = Reply::decode(message).map_err(|fault| fault.to_string())?;
    refuse_deep_result(&mut reply);
    Ok(reply)
}

/// A reply that cannot be read still ends its task: a stock worker sends `NaN`, which is no JSON, and sends it once.
fn failure_of(message: &Message, reason: &str) -> Option<Reply> {
    let error = ErrorInfo::new("UnreadableReply", format!("the worker's reply cannot be read: {reason}"));
    Some(Reply::of(message.properties.correlation_id.clone()?, Report::Failure(error)))
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
