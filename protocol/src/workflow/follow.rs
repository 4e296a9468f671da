//! From the signatures that follow a task to their messages.

use serde_json::value::{RawValue, to_raw_value};
use time::OffsetDateTime;

use super::signature::{Signature, Step};
use super::{Following, MAX_SUCCESSOR_BYTES, MAX_SUCCESSORS, Successor, WorkflowFault};
use crate::message::{MAX_HEADERS_BYTES, MAX_INFLATED_BYTES, Message, headers_size};
use crate::reply::Child;
use crate::task::{Embed, Task, TaskMessage, child_id};

/// The messages that follow one task, as they come together.
pub(super) struct Plan<'a> {
    parent: &'a Task,
    /// JSON: what each successor gets as its first argument.
    first: &'a str,
    now: OffsetDateTime,
    bytes: usize,
    pub(super) following: Following,
}

/// What was sent for a signature: of a chain its first and its last task, which are the same of everything else.
pub(super) struct Sent {
    first: Child,
    last: Child,
}

impl<'a> Plan<'a> {
    pub(super) fn new(parent: &'a Task, first: &'a str, now: OffsetDateTime) -> Self {
        Self { parent, first, now, bytes: 0, following: Following::default() }
    }

    /// As Celery sends them: a single one by itself, several as a group beside the groups among them.
    pub(super) fn callbacks(&mut self, mut callbacks: Vec<Step>) -> Result<(), WorkflowFault> {
        if callbacks.len() == 1
            && let Some(only) = callbacks.pop()
        {
            let sent = self.step(only, Vec::new(), "callbacks/0")?;
            self.following.children.push(sent.first);
            return Ok(());
        }
        let (groups, others): (Vec<_>, Vec<_>) =
            callbacks.into_iter().partition(|step| matches!(step, Step::Group(..)));
        for (place, group) in groups.into_iter().enumerate() {
            let sent = self.step(group, Vec::new(), &format!("callbacks/groups/{place}"))?;
            self.following.children.push(sent.first);
        }
        if !others.is_empty() {
            let sent = self.group_of(others, "callbacks")?;
            self.following.children.push(sent);
        }
        Ok(())
    }

    /// The next task of the chain, which takes the rest of it along.
    pub(super) fn next_of_chain(&mut self, next: Step, rest: Vec<Box<RawValue>>) -> Result<(), WorkflowFault> {
        let sent = self.step(next, rest, "chain")?;
        self.following.children.push(sent.first);
        Ok(())
    }

    /// Several signatures as a group.
    pub(super) fn group_of(&mut self, steps: Vec<Step>, path: &str) -> Result<Child, WorkflowFault> {
        let group_id = self.id(path);
        self.members(&group_id, steps, path)
    }

    /// One signature, and after it the rest of a chain in reverse order. The path tells it from what else follows the
    /// same task.
    pub(super) fn step(&mut self, step: Step, rest: Vec<Box<RawValue>>, path: &str) -> Result<Sent, WorkflowFault> {
        let child = match step {
            Step::Chord(_) => return Err(WorkflowFault::Chord),
            Step::Chain(own, steps) => return self.chain(&own, steps, rest, path),
            Step::Group(own, members) => self.group(&own, members, &rest, path)?,
            Step::Task(signature) => self.task(&signature, &rest, path)?,
        };
        Ok(Sent { first: child.clone(), last: child })
    }

    fn chain(
        &mut self,
        own: &Signature,
        mut steps: Vec<Step>,
        mut rest: Vec<Box<RawValue>>,
        path: &str,
    ) -> Result<Sent, WorkflowFault> {
        let options = own.options()?;
        for step in &mut steps {
            step.signature()?.extend("link_error", &options.link_error)?;
        }
        let end = options.task_id.clone().unwrap_or_else(|| self.id(&format!("{path}/end")));
        let last = match steps.last_mut() {
            None => return Err(WorkflowFault::NotASignature("an empty chain")),
            Some(Step::Task(last)) => {
                last.extend("link", &options.link)?;
                last.set_default("task_id", &end);
                last.set_default("group_id", &options.group_id);
                last.set_default("group_index", &options.group_index);
                last.options()?.task_id.map(Child::Task)
            }
            // Nothing counts the members of a group that something follows.
            Some(last) if !options.link.is_empty() && last.ends_in_a_group() => return Err(WorkflowFault::Chord),
            Some(last) => {
                last.signature()?.extend("link", &options.link)?;
                None
            }
        };
        let mut steps = steps.into_iter();
        let Some(mut next) = steps.next() else { return Err(WorkflowFault::NotASignature("an empty chain")) };
        next.signature()?.inherit(own);
        let mut behind = steps.collect::<Vec<_>>();
        if behind.iter().rev().skip(1).any(Step::ends_in_a_group)
            || (!behind.is_empty() && next.ends_in_a_group())
            || (!rest.is_empty() && behind.last().is_some_and(Step::ends_in_a_group))
        {
            return Err(WorkflowFault::Chord);
        }
        behind.reverse();
        for step in &mut behind {
            rest.push(step.signature()?.raw());
        }
        let sent = self.step(next, rest, &format!("{path}/0"))?;
        Ok(Sent { last: last.unwrap_or(sent.last), first: sent.first })
    }

    fn group(
        &mut self,
        own: &Signature,
        members: Vec<Step>,
        rest: &[Box<RawValue>],
        path: &str,
    ) -> Result<Child, WorkflowFault> {
        let options = own.options()?;
        if !rest.is_empty() || !options.link.is_empty() {
            return Err(WorkflowFault::Chord);
        }
        let group_id = options.task_id.clone().unwrap_or_else(|| self.id(path));
        self.members(&group_id, flat(own, members)?, path)
    }

    fn members(&mut self, group_id: &str, members: Vec<Step>, path: &str) -> Result<Child, WorkflowFault> {
        let mut children = Vec::with_capacity(members.len());
        for (place, mut member) in members.into_iter().enumerate() {
            let signature = member.signature()?;
            signature.set_default("group_id", &group_id);
            signature.set_default("group_index", &place);
            children.push(self.step(member, Vec::new(), &format!("{path}/{place}"))?.last);
        }
        Ok(Child::Group(group_id.to_owned(), children))
    }

    fn task(&mut self, signature: &Signature, rest: &[Box<RawValue>], path: &str) -> Result<Child, WorkflowFault> {
        let options = signature.options()?;
        let id = options.task_id.clone().unwrap_or_else(|| self.id(path));
        let (args, kwargs) = (signature.args_after(self.first), signature.kwargs());
        let embed = Embed {
            callbacks: raw_list(&options.link),
            errbacks: raw_list(&options.link_error),
            chain: raw_list(rest),
            chord: None,
        };
        let message = TaskMessage {
            priority: options.priority.unwrap_or(0),
            retries: options.retries.unwrap_or(0),
            eta: options.eta(self.now),
            expires: options.expires(self.now),
            time_limit: options.time_limit,
            soft_time_limit: options.soft_time_limit,
            reply_to: options.reply_to.as_deref(),
            durable_reply: false,
            root_id: Some(self.parent.root_id.as_ref().unwrap_or(&self.parent.id)),
            parent_id: Some(&self.parent.id),
            group: options.group_id.as_deref(),
            group_index: options.group_index,
            shadow: options.shadow.as_deref(),
            ignore_result: options.ignore_result,
            stamps: (!options.stamps.is_empty()).then_some(&options.stamps),
            headers: Some(&options.headers),
            embed: Some(&embed),
            ..TaskMessage::of(&id, &signature.task, &args, &kwargs)
        }
        .message();
        self.fits(&signature.task, &message)?;
        self.following.successors.push(Successor { destination: options.destination(), message });
        Ok(Child::Task(id))
    }

    fn fits(&mut self, task: &str, message: &Message) -> Result<(), WorkflowFault> {
        self.bytes += message.body.len();
        if self.following.successors.len() >= MAX_SUCCESSORS {
            return Err(WorkflowFault::TooMany);
        }
        for (what, bytes, max) in [
            ("headers", headers_size(&message.properties.headers), MAX_HEADERS_BYTES),
            ("body", message.body.len(), MAX_INFLATED_BYTES),
            ("bodies before and with it", self.bytes, MAX_SUCCESSOR_BYTES),
        ] {
            if bytes > max {
                return Err(WorkflowFault::TooLarge { task: task.to_owned(), what, bytes, max });
            }
        }
        Ok(())
    }

    fn id(&self, path: &str) -> String {
        child_id(&self.parent.id, path.as_bytes()).to_string()
    }
}

/// The members of a group, with those of groups in it.
fn flat(own: &Signature, members: Vec<Step>) -> Result<Vec<Step>, WorkflowFault> {
    let errbacks = own.options()?.link_error;
    let mut all = Vec::with_capacity(members.len());
    for mut member in members {
        let signature = member.signature()?;
        signature.inherit(own);
        signature.extend("link_error", &errbacks)?;
        match member {
            Step::Group(own, members) => all.extend(flat(&own, members)?),
            member => all.push(member),
        }
    }
    Ok(all)
}

/// Signatures as JSON, null when there are none.
fn raw_list(signatures: &[Box<RawValue>]) -> Option<Box<RawValue>> {
    if signatures.is_empty() { None } else { to_raw_value(signatures).ok() }
}
