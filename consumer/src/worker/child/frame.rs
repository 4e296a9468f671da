//! What a worker and the process that runs a task for it say to each other: JSON in frames with a length before them.

use std::time::Duration;

use protocol::reply::Progress;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::bytes::Bytes;
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use crate::context::Cancelled;
use crate::handler::TaskError;
use crate::options::ResourceLimits;
use crate::signature::{Signature, SubmitError};

/// The largest frame to a child: a message is at most 16 MiB, and JSON in JSON grows little.
pub(super) const MAX_CALL: usize = 64 * 1024 * 1024;
/// The largest frame from a child but for its result: an error, or the call of a child task. Both are bounded below it.
pub(super) const MAX_REPORT: usize = 1024 * 1024;
/// What a frame has beside that.
pub(super) const ROOM: usize = 64 * 1024;

/// To the child.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToChild {
    /// The first frame.
    Run(Box<Order>),
    /// The run is asked to end.
    Cancel(Cancelled),
    /// What became of the submission of that number.
    Submitted(u64, Result<(), SubmitError>),
}

/// What the child is to run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) task_id: String,
    pub(super) task: String,
    pub(super) attempt: u32,
    pub(super) worker: String,
    pub(super) args: Box<RawValue>,
    pub(super) kwargs: Box<RawValue>,
    /// Until the hard limit.
    pub(super) time_left: Option<Duration>,
    pub(super) limits: Option<ResourceLimits>,
    /// The largest result, in bytes of JSON.
    pub(super) max_result: usize,
}

/// From the child.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromChild {
    /// It stands on its own; a death before this is not the task's.
    Ready,
    /// The latest progress.
    Progress(Progress),
    /// A child task, with the number of this submission.
    Submit(u64, String, Box<Signature>),
    /// The last frame.
    Ended(Verdict),
}

/// How the call ended.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Verdict {
    /// With this result.
    Returned(Box<RawValue>),
    /// With a result of so many bytes, more than are allowed.
    TooLarge(usize),
    /// With an error.
    Failed(TaskError),
    /// With a panic, which said this.
    Panicked(String),
}

pub(super) type Frames = FramedRead<OwnedReadHalf, LengthDelimitedCodec>;
pub(super) type Sink = FramedWrite<OwnedWriteHalf, LengthDelimitedCodec>;

/// The two directions of a channel.
pub(super) fn framed(channel: UnixStream, max: usize) -> (Frames, Sink) {
    let (reader, writer) = channel.into_split();
    let codec = |max| LengthDelimitedCodec::builder().max_frame_length(max).new_codec();
    (FramedRead::new(reader, codec(max)), FramedWrite::new(writer, codec(u32::MAX as usize)))
}

pub(super) fn encode(frame: &impl Serialize) -> std::io::Result<Bytes> {
    Ok(serde_json::to_vec(frame)?.into())
}

pub(super) fn decode<T: DeserializeOwned>(frame: &[u8]) -> std::io::Result<T> {
    Ok(serde_json::from_slice(frame)?)
}
