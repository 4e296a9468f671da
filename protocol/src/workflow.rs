//! What follows a task by the wish of the client that sent it: callbacks, error callbacks, the rest of its chain.
//!
//! Pure: from (task, outcome) to the messages that follow, with the ids of those to come. Whoever publishes them does so
//! before it tells the task's result, as Celery's workers do. A run that is repeated gives the same ids again.

use serde_json::value::RawValue;
use time::OffsetDateTime;

use crate::message::Message;
use crate::reply::Child;
use crate::task::Task;

mod follow;
mod options;
mod signature;

use self::follow::Plan;
use self::signature::{Step, list, never_run};

/// No task is followed by more messages.
pub const MAX_SUCCESSORS: usize = 10_000;
/// Nor by more bytes of bodies, in which its result may stand many times.
pub const MAX_SUCCESSOR_BYTES: usize = 64 * 1024 * 1024;

/// Where a successor goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// To the queue that its parent came from: it names none.
    Parent,
    /// To the queue of this full name.
    Queue(String),
    /// To an exchange, `None` for that of Errand's tasks.
    Exchange(Option<String>, String),
}

/// A task that follows another.
#[derive(Debug, Clone, PartialEq)]
pub struct Successor {
    /// Where it goes.
    pub destination: Destination,
    /// What is published.
    pub message: Message,
}

/// A task of a chain that never runs, because one before it did not succeed. Its client waits for it all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreached {
    /// Its id, which is what its reply carries back.
    pub task_id: String,
    /// The queue that its reply goes to.
    pub reply_to: String,
    /// Its group.
    pub group: Option<String>,
}

/// What follows a task.
#[derive(Debug, Default)]
pub struct Following {
    /// To be published before the task's result.
    pub successors: Vec<Successor>,
    /// What the task's result says of them.
    pub children: Vec<Child>,
    /// Who is to be told the same end.
    pub unreached: Vec<Unreached>,
}

/// Why what is to follow a task cannot.
#[derive(Debug, thiserror::Error)]
pub enum WorkflowFault {
    /// Counting the members of a group takes a store that workers share.
    #[error(
        "a chord, which a group followed by a task is too, is not supported: nothing counts the members of a group"
    )]
    Chord,
    /// Not a signature.
    #[error("{0} is not a signature")]
    NotASignature(&'static str),
    /// Not a list of signatures.
    #[error("{0} is not a list")]
    NotAList(&'static str),
    /// A signature's option of another type.
    #[error("option {option} of {task:?} is not {expected}")]
    Option {
        /// The signature's task.
        task: String,
        /// The option.
        option: &'static str,
        /// The type expected, with its article.
        expected: &'static str,
    },
    /// Chains and groups within each other.
    #[error("chains and groups are nested deeper than {0} levels")]
    TooDeep(usize),
    /// More than [`MAX_SUCCESSORS`].
    #[error("more than {MAX_SUCCESSORS} tasks follow this one")]
    TooMany,
    /// More than a message holds, or all of them together may.
    #[error("{task:?}, which follows, has {bytes} bytes of {what}, {max} are allowed")]
    TooLarge {
        /// The signature's task.
        task: String,
        /// `headers`, or what else is too large.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
}

/// Whether what is to follow the task can. To be asked before it runs.
///
/// # Errors
/// See [`WorkflowFault`].
pub fn check(task: &Task) -> Result<(), WorkflowFault> {
    if task.embed.is_empty() {
        return Ok(());
    }
    if task.embed.chord.is_some() {
        return Err(WorkflowFault::Chord);
    }
    let chain = chain_of(task)?;
    let steps = chain.iter().map(|raw| Step::read("chain", raw)).collect::<Result<Vec<_>, _>>()?;
    // In reverse order: only the first of the list is followed by nothing.
    if steps.iter().skip(1).any(Step::ends_in_a_group) {
        return Err(WorkflowFault::Chord);
    }
    let plan = || Plan::new(task, "null", OffsetDateTime::UNIX_EPOCH);
    for step in steps {
        plan().next_of_chain(step, Vec::new())?;
    }
    plan().callbacks(steps_of("callbacks", task.embed.callbacks.as_deref())?)?;
    plan().group_of(steps_of("errbacks", task.embed.errbacks.as_deref())?, "errbacks").map(drop)
}

/// What follows the task that returned `result`, at this time.
///
/// # Errors
/// What follows is larger than it may be, or is refused by [`check`].
pub fn after_success(task: &Task, result: &RawValue, now: OffsetDateTime) -> Result<Following, WorkflowFault> {
    let mut plan = Plan::new(task, result.get(), now);
    plan.callbacks(steps_of("callbacks", task.embed.callbacks.as_deref())?)?;
    let mut chain = chain_of(task)?;
    if let Some(next) = chain.pop() {
        plan.next_of_chain(Step::read("chain", &next)?, chain)?;
    }
    Ok(plan.following)
}

/// What follows the task that was given up: each error callback gets its id. They are left out when they cannot be read,
/// since that is then why the task was given up.
#[must_use]
pub fn after_failure(task: &Task, now: OffsetDateTime) -> Following {
    let id = serde_json::Value::from(task.id.as_str()).to_string();
    let mut plan = Plan::new(task, &id, now);
    let errbacks = steps_of("errbacks", task.embed.errbacks.as_deref());
    let sent = errbacks.and_then(|errbacks| plan.group_of(errbacks, "errbacks"));
    let successors = if sent.is_ok() { plan.following.successors } else { Vec::new() };
    Following { successors, children: Vec::new(), unreached: unreached(task) }
}

/// What follows the task that was revoked: nothing, and the rest of its chain is told.
#[must_use]
pub fn after_revocation(task: &Task) -> Following {
    Following { unreached: unreached(task), ..Following::default() }
}

fn chain_of(task: &Task) -> Result<Vec<Box<RawValue>>, WorkflowFault> {
    list("chain", task.embed.chain.as_deref())
}

fn steps_of(place: &'static str, raw: Option<&RawValue>) -> Result<Vec<Step>, WorkflowFault> {
    list(place, raw)?.iter().map(|raw| Step::read(place, raw)).collect()
}

fn unreached(task: &Task) -> Vec<Unreached> {
    let mut unreached = Vec::new();
    for step in chain_of(task).unwrap_or_default() {
        if let Ok(step) = Step::read("chain", &step) {
            never_run(&step, &mut unreached);
        }
    }
    unreached.truncate(MAX_SUCCESSORS);
    unreached
}

#[cfg(test)]
mod tests;
