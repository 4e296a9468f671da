//! Signatures as Celery's clients write them: what they call, and chains and groups of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::options::Options;
use super::{Unreached, WorkflowFault};

/// Chains and groups within each other.
const MAX_DEPTH: usize = 16;

/// A call, or what holds others in its `kwargs`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Signature {
    pub(super) task: String,
    #[serde(default)]
    args: Option<Box<RawValue>>,
    #[serde(default)]
    kwargs: Option<Box<RawValue>>,
    #[serde(default)]
    options: Option<BTreeMap<String, Box<RawValue>>>,
    #[serde(default)]
    subtask_type: Option<String>,
    #[serde(default)]
    immutable: Option<bool>,
}

/// A signature and what is in it.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// One task.
    Task(Signature),
    /// One after another.
    Chain(Signature, Vec<Step>),
    /// All at once.
    Group(Signature, Vec<Step>),
    /// One after all of others; with what comes after, if that can be read.
    Chord(Option<Box<Step>>),
}

/// The `kwargs` of a chain or group.
#[derive(Deserialize)]
struct Tasks {
    tasks: Vec<Box<RawValue>>,
}

/// The `kwargs` of a chord.
#[derive(Deserialize)]
struct Chord {
    body: Box<RawValue>,
}

/// A list of signatures, or one in its place; null is none.
pub(super) fn list(place: &'static str, raw: Option<&RawValue>) -> Result<Vec<Box<RawValue>>, WorkflowFault> {
    match raw {
        None => Ok(Vec::new()),
        Some(raw) if raw.get() == "null" => Ok(Vec::new()),
        Some(raw) if raw.get().starts_with('{') => Ok(vec![raw.to_owned()]),
        Some(raw) => serde_json::from_str(raw.get()).map_err(|_| WorkflowFault::NotAList(place)),
    }
}

impl Step {
    /// Reads a signature that stands in this place of a task.
    pub(super) fn read(place: &'static str, raw: &RawValue) -> Result<Self, WorkflowFault> {
        read(place, raw, MAX_DEPTH)
    }

    /// The signature; of a chord there is none to be sent.
    pub(super) fn signature(&mut self) -> Result<&mut Signature, WorkflowFault> {
        match self {
            Self::Task(signature) | Self::Chain(signature, _) | Self::Group(signature, _) => Ok(signature),
            Self::Chord(_) => Err(WorkflowFault::Chord),
        }
    }

    /// Whether what comes after it would have to wait for more than one task.
    pub(super) fn ends_in_a_group(&self) -> bool {
        match self {
            Self::Task(_) => false,
            Self::Chain(_, steps) => steps.last().is_some_and(Self::ends_in_a_group),
            Self::Group(..) | Self::Chord(_) => true,
        }
    }
}

fn read(place: &'static str, raw: &RawValue, depth: usize) -> Result<Step, WorkflowFault> {
    let wrong = || WorkflowFault::NotASignature(place);
    // serde would also read a struct from an array.
    if !raw.get().starts_with('{') {
        return Err(wrong());
    }
    let signature: Signature = serde_json::from_str(raw.get()).map_err(|_| wrong())?;
    let begins = |part: &Option<Box<RawValue>>, with| part.as_ref().is_none_or(|raw| raw.get().starts_with(with));
    if signature.task.is_empty() || !begins(&signature.args, '[') || !begins(&signature.kwargs, '{') {
        return Err(wrong());
    }
    let depth = depth.checked_sub(1).ok_or(WorkflowFault::TooDeep(MAX_DEPTH))?;
    let inside = || {
        let tasks: Tasks = serde_json::from_str(signature.kwargs().get()).map_err(|_| wrong())?;
        tasks.tasks.iter().map(|raw| read(place, raw, depth)).collect::<Result<Vec<_>, _>>()
    };
    match signature.subtask_type.as_deref() {
        Some("chain") => inside().map(|steps| Step::Chain(signature, steps)),
        Some("group") => inside().map(|members| Step::Group(signature, members)),
        Some("chord") => {
            let body = serde_json::from_str::<Chord>(signature.kwargs().get()).ok();
            Ok(Step::Chord(body.and_then(|chord| read(place, &chord.body, depth).ok()).map(Box::new)))
        }
        // Celery reads every other kind as a call too.
        _ => Ok(Step::Task(signature)),
    }
}

impl Signature {
    pub(super) fn kwargs(&self) -> Box<RawValue> {
        self.kwargs.clone().unwrap_or_else(|| raw("{}"))
    }

    /// Its arguments after `first`, the JSON of what came before; alone when they are not to be changed.
    pub(super) fn args_after(&self, first: &str) -> Box<RawValue> {
        let own = self.args.as_deref().map_or("[]", RawValue::get);
        if self.immutable == Some(true) {
            return raw(own);
        }
        let others = own.strip_prefix('[').unwrap_or_default().trim_start();
        let comma = if others == "]" { "" } else { ", " };
        raw(&format!("[{first}{comma}{others}"))
    }

    pub(super) fn options(&self) -> Result<Options, WorkflowFault> {
        let none = BTreeMap::new();
        Options::read(&self.task, self.options.as_ref().unwrap_or(&none))
    }

    /// Sets an option that is not set.
    pub(super) fn set_default(&mut self, option: &str, value: &impl Serialize) {
        let options = self.options.get_or_insert_default();
        if options.get(option).is_none_or(|present| present.get() == "null") {
            options.insert(option.to_owned(), to_raw_value(value).unwrap_or_default());
        }
    }

    /// Adds to `link` or `link_error`.
    pub(super) fn extend(&mut self, option: &'static str, more: &[Box<RawValue>]) -> Result<(), WorkflowFault> {
        if more.is_empty() {
            return Ok(());
        }
        let options = self.options.get_or_insert_default();
        let mut all = list(option, options.get(option).map(AsRef::as_ref))?;
        all.extend_from_slice(more);
        options.insert(option.to_owned(), to_raw_value(&all).unwrap_or_default());
        Ok(())
    }

    /// Takes over how `outer` is to be sent: an option of what holds signatures counts for them, over their own.
    pub(super) fn inherit(&mut self, outer: &Self) {
        for (option, value) in outer.options.iter().flatten() {
            if Options::is_inherited(option) && value.get() != "null" {
                self.options.get_or_insert_default().insert(option.clone(), value.clone());
            }
        }
    }

    /// The signature as JSON.
    pub(super) fn raw(&self) -> Box<RawValue> {
        to_raw_value(self).unwrap_or_default()
    }
}

/// What is passed here is JSON; null stands for what would not be.
fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap_or_default()
}

/// Collects the tasks in it whose client waits for them.
pub(super) fn never_run(step: &Step, unreached: &mut Vec<Unreached>) {
    match step {
        Step::Task(signature) => {
            let Ok(options) = signature.options() else { return };
            if let (Some(task_id), Some(reply_to), false) =
                (options.task_id, options.reply_to, options.ignore_result == Some(true))
            {
                unreached.push(Unreached { task_id, reply_to, group: options.group_id });
            }
        }
        Step::Chain(_, steps) | Step::Group(_, steps) => steps.iter().for_each(|step| never_run(step, unreached)),
        Step::Chord(body) => body.iter().for_each(|body| never_run(body, unreached)),
    }
}
