//! What the tests make go wrong inside a process: failpoints, each a narrow window in which the process can be held or
//! killed, and seeded bugs, each a rule that the code then breaks, so that a checker can be seen to notice.
//!
//! Both are there with the feature `faults` only, which nothing enables by default. Without it [`point`] is nothing and
//! [`bug`] is false, for the compiler too. Code elsewhere names a point or asks for a bug, and knows no more of it.

#[cfg(not(feature = "faults"))]
mod absent;
#[cfg(feature = "faults")]
mod armed;

use clap::ValueEnum;

#[cfg(not(feature = "faults"))]
pub use self::absent::{FaultSettings, bug, point};
#[cfg(feature = "faults")]
pub use self::armed::{FaultSettings, bug, point};

/// A narrow window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Point {
    /// The statements of a commit of the store were run, it is not on disk. Passed once a commit, whatever is in it.
    #[value(name = "store.committing")]
    StoreCommitting,
    /// A commit of the store is on disk, nobody has heard of it.
    #[value(name = "store.committed")]
    StoreCommitted,
    /// Rows are in a relay's hands, none is published.
    #[value(name = "relay.taken")]
    RelayTaken,
    /// A message was handed to the connection, its confirm has not come. Passed once a message, by every publisher.
    #[value(name = "publish.sent")]
    PublishSent,
    /// Tasks were confirmed, their rows are not marked.
    #[value(name = "relay.confirmed")]
    RelayConfirmed,
    /// A handler ended, nothing that follows is published.
    #[value(name = "run.ended")]
    RunEnded,
    /// What follows a delivery was confirmed, it is not acked.
    #[value(name = "settle.confirmed")]
    SettleConfirmed,
    /// The same where the next attempt follows.
    #[value(name = "retry.confirmed")]
    RetryConfirmed,
    /// A child was confirmed, the handler has not heard of it.
    #[value(name = "child.confirmed")]
    ChildConfirmed,
    /// A batch of replies was delivered, nothing of it is stored.
    #[value(name = "replies.received")]
    RepliesReceived,
    /// A batch of replies is stored, none of it is acked.
    #[value(name = "replies.stored")]
    RepliesStored,
    /// The same of a batch with children.
    #[value(name = "children.stored")]
    ChildrenStored,
    /// Notices of lost tasks were delivered, nothing of them is stored.
    #[value(name = "lost.received")]
    LostReceived,
    /// Lost tasks were put back, the notices are not acked.
    #[value(name = "lost.stored")]
    LostStored,
    /// A replay is stored, or a part of a replay of many, its caller has no answer.
    #[value(name = "replay.stored")]
    ReplayStored,
    /// Revocations are stored, no worker is told.
    #[value(name = "revoke.stored")]
    RevokeStored,
    /// A callback is due, nothing is posted.
    #[value(name = "callback.due")]
    CallbackDue,
    /// A callback was posted, that is not kept.
    #[value(name = "callback.posted")]
    CallbackPosted,
}

/// A rule that the code can be told to break. The last sentence of each says which fault shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bug {
    /// A worker acks a task when it starts. A killed worker shows it: what it ran is gone.
    AckBeforeResult,
    /// A submit is answered before its commit. A producer that is killed as it commits shows it (`store.committing`, held
    /// for some ms and then killed): what was accepted is unknown.
    AcceptBeforeCommit,
    /// A publish counts once it was handed to the connection. A broker that is killed under load shows it, and a cut
    /// connection: what was in flight is gone.
    NoConfirm,
    /// What no queue takes is not returned. A deleted reply queue shows it: results are confirmed and gone.
    NoMandatory,
    /// A publish gets the confirm of its neighbour, which happens to a few in a thousand when several tasks publish on one
    /// channel. Publishes that end differently in one window show it: a full queue beside one with room, or a deleted
    /// reply queue while other tasks report progress.
    SharedChannel,
    /// Any report overwrites the one before. A worker killed between result and ack shows it (`settle.confirmed`), with
    /// tasks slow enough to be announced: what had ended is STARTED again.
    LastWriteWins,
    /// Queues have no dead-letter exchange. Any retry shows it without a fault, for delay queues let go of it to nowhere,
    /// and so do workers that die more than 20 times. Both services must have it: they declare the same queues.
    NoDeadLetterExchange,
    /// A producer acks replies before it stores them. A producer killed in between shows it (`replies.received`): those
    /// tasks never end.
    ReplyAckedBeforeCommit,
    /// The store drops tasks that it says it has, those whose id ends in 7. It shows without a fault.
    DroppedRow,
}
