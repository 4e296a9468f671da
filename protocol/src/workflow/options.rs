//! The options of a signature: how its task is to be sent.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::signature::list;
use super::{Destination, WorkflowFault};
use crate::message::Headers;
use crate::timestamp::parse_celery;
use crate::topology::MAX_PREFIX_BYTES;

/// AMQP's bound for correlation ids and the names of queues, exchanges and routing keys.
const MAX_SHORT_STRING_BYTES: usize = 255;
const SHORT_STRING: &str = "a string of at most 255 bytes";
/// What is left of it for what the prefix is put before, however long that is.
const MAX_PREFIXED_BYTES: usize = MAX_SHORT_STRING_BYTES - MAX_PREFIX_BYTES;
const PREFIXED: &str = "a string of at most 191 bytes, since a queue's name is the prefix and that";

/// What counts for one signature only, or is handed on in another way than by [`Options::is_inherited`].
const OWN: [&str; 10] =
    ["task_id", "reply_to", "group_id", "group_index", "link", "link_error", "chain", "chord", "root_id", "parent_id"];

/// The options in use. Others are ignored, as by a worker of Celery's.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) task_id: Option<String>,
    pub(super) reply_to: Option<String>,
    pub(super) group_id: Option<String>,
    pub(super) group_index: Option<i64>,
    pub(super) priority: Option<u8>,
    pub(super) retries: Option<u32>,
    pub(super) ignore_result: Option<bool>,
    pub(super) shadow: Option<String>,
    pub(super) time_limit: Option<Duration>,
    pub(super) soft_time_limit: Option<Duration>,
    pub(super) link: Vec<Box<RawValue>>,
    pub(super) link_error: Vec<Box<RawValue>>,
    pub(super) headers: Headers,
    pub(super) stamps: Headers,
    eta: Option<When>,
    expires: Option<When>,
    queue: Option<String>,
    exchange: Option<String>,
    routing_key: Option<String>,
}

/// A time, or seconds from when the task is sent.
#[derive(Debug, Clone, Copy)]
enum When {
    At(OffsetDateTime),
    In(Duration),
}

impl When {
    fn from(self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        match self {
            Self::At(at) => Some(at),
            Self::In(wait) => now.checked_add(wait.try_into().ok()?),
        }
    }
}

impl Options {
    /// Whether an option of a chain or group counts for the tasks in it.
    pub(super) fn is_inherited(option: &str) -> bool {
        !OWN.contains(&option)
    }

    pub(super) fn read(task: &str, options: &BTreeMap<String, Box<RawValue>>) -> Result<Self, WorkflowFault> {
        let from = Reader { task, options };
        if from.get("chord").is_some() {
            return Err(WorkflowFault::Chord);
        }
        let countdown = from.seconds("countdown")?.map(When::In);
        let exchange = from.name("exchange")?;
        // The default exchange's is a queue's full name.
        let routing_key = match exchange.as_deref() {
            Some("") => from.name("routing_key")?,
            _ => from.text("routing_key", MAX_PREFIXED_BYTES, PREFIXED)?,
        };
        Ok(Self {
            task_id: from.name("task_id")?.filter(|id| !id.is_empty()),
            reply_to: from.name("reply_to")?.filter(|queue| !queue.is_empty()),
            group_id: from.name("group_id")?,
            group_index: from.typed("group_index", "an integer")?,
            priority: from.typed("priority", "an integer from 0 to 255")?,
            retries: from.typed("retries", "a count")?,
            ignore_result: from.typed("ignore_result", "a boolean")?,
            shadow: from.typed("shadow", "a string")?,
            time_limit: from.seconds("time_limit")?.filter(|limit| !limit.is_zero()),
            soft_time_limit: from.seconds("soft_time_limit")?.filter(|limit| !limit.is_zero()),
            link: list("link", from.get("link"))?,
            link_error: list("link_error", from.get("link_error"))?,
            headers: from.typed("headers", "an object")?.unwrap_or_default(),
            stamps: from.stamps()?,
            eta: if countdown.is_some() { countdown } else { from.time("eta")? },
            expires: from.time("expires")?,
            queue: from.name("queue")?,
            exchange,
            routing_key,
        })
    }

    pub(super) fn eta(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        self.eta.and_then(|eta| eta.from(now))
    }

    pub(super) fn expires(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        self.expires.and_then(|expires| expires.from(now))
    }

    pub(super) fn destination(&self) -> Destination {
        let routing_key = self.routing_key.clone();
        match (&self.queue, &self.exchange) {
            (Some(queue), _) => Destination::Queue(queue.clone()),
            (None, Some(exchange)) => Destination::Exchange(Some(exchange.clone()), routing_key.unwrap_or_default()),
            (None, None) => {
                routing_key.map_or(Destination::Parent, |routing_key| Destination::Exchange(None, routing_key))
            }
        }
    }
}

/// The options of a task, in which an absent one is the same as null.
struct Reader<'a> {
    task: &'a str,
    options: &'a BTreeMap<String, Box<RawValue>>,
}

impl<'a> Reader<'a> {
    fn get(&self, option: &str) -> Option<&'a RawValue> {
        self.options.get(option).map(AsRef::as_ref).filter(|raw: &&RawValue| raw.get() != "null")
    }

    fn wrong(&self, option: &'static str, expected: &'static str) -> WorkflowFault {
        WorkflowFault::Option { task: self.task.to_owned(), option, expected }
    }

    fn typed<T: DeserializeOwned>(
        &self,
        option: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, WorkflowFault> {
        let read = |raw: &RawValue| serde_json::from_str(raw.get()).map_err(|_| self.wrong(option, expected));
        self.get(option).map(read).transpose()
    }

    fn name(&self, option: &'static str) -> Result<Option<String>, WorkflowFault> {
        self.text(option, MAX_SHORT_STRING_BYTES, SHORT_STRING)
    }

    fn text(
        &self,
        option: &'static str,
        max_bytes: usize,
        expected: &'static str,
    ) -> Result<Option<String>, WorkflowFault> {
        match self.typed::<String>(option, expected)? {
            Some(text) if text.len() > max_bytes => Err(self.wrong(option, expected)),
            text => Ok(text),
        }
    }

    /// What is negative is now.
    fn seconds(&self, option: &'static str) -> Result<Option<Duration>, WorkflowFault> {
        const EXPECTED: &str = "a number of seconds";
        let read =
            |seconds: f64| Duration::try_from_secs_f64(seconds.max(0.0)).map_err(|_| self.wrong(option, EXPECTED));
        self.typed::<f64>(option, EXPECTED)?.map(read).transpose()
    }

    fn time(&self, option: &'static str) -> Result<Option<When>, WorkflowFault> {
        let Some(raw) = self.get(option) else { return Ok(None) };
        let wrong = || self.wrong(option, "a time or a number of seconds");
        let text = match serde_json::from_str(raw.get()).map_err(|_| wrong())? {
            Time::Seconds(seconds) => {
                let wait = Duration::try_from_secs_f64(seconds.max(0.0)).map_err(|_| wrong())?;
                return Ok(Some(When::In(wait)));
            }
            Time::Text(text) => text,
            Time::Python { kind, value } if kind == "datetime" => value,
            Time::Python { .. } => return Err(wrong()),
        };
        parse_celery(&text).map(When::At).map(Some).ok_or_else(wrong)
    }

    /// Each stamp is an option of its own, which `stamped_headers` names.
    fn stamps(&self) -> Result<Headers, WorkflowFault> {
        let names: Option<OneOrMany> = self.typed("stamped_headers", "a list of strings")?;
        let names = match names {
            None => Vec::new(),
            Some(OneOrMany::One(name)) => vec![name],
            Some(OneOrMany::Many(names)) => names,
        };
        let value = |name: &str| self.get(name).and_then(|raw| serde_json::from_str::<Value>(raw.get()).ok());
        Ok(names.into_iter().map(|name| (name.clone(), value(&name).unwrap_or_default())).collect())
    }
}

/// How clients write a time: kombu marks a `datetime`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Time {
    Seconds(f64),
    Text(String),
    Python {
        #[serde(rename = "__type__")]
        kind: String,
        #[serde(rename = "__value__")]
        value: String,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}
