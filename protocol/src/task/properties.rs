//! The envelope, whatever is in it and whatever became of it on its way.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::{DecodeFault, Embed, Task, TaskMessage, Undecodable};
use crate::any::{any_arguments, any_json, any_text};
use crate::message::{DELAY_LEFT_MS, Headers, Message, PACKS, PUBLISH, REPLY, RETRY, SINCE, SUBMIT};
use crate::timestamp::from_unix_ms;

/// Every header that is read.
const READ: [&str; 20] = [
    "id",
    "task",
    "retries",
    "eta",
    "expires",
    "timelimit",
    "root_id",
    "parent_id",
    "group",
    "group_index",
    "shadow",
    "ignore_result",
    "origin",
    RETRY,
    DELAY_LEFT_MS,
    REPLY,
    PACKS,
    PUBLISH,
    SINCE,
    SUBMIT,
];

/// A message that can be read.
fn sent(args: &RawValue, kwargs: &RawValue) -> Message {
    TaskMessage { reply_to: Some("results"), ..TaskMessage::of("i", "t", args, kwargs) }.message()
}

/// A change to a byte string: bytes put in the place of others.
#[derive(Debug, Clone)]
struct Damage {
    at: Index,
    cut: usize,
    put: Vec<u8>,
}

prop_compose! {
    fn any_damage()(
        at: Index, cut in 0..9_usize, put in prop_oneof![prop::collection::vec(any::<u8>(), 0..4), "[\\[\\]{}:,\"0n]{0,4}".prop_map(String::into_bytes)],
    ) -> Damage { Damage { at, cut, put } }
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let from = self.at.index(bytes.len() + 1);
        let to = bytes.len().min(from + self.cut);
        bytes.splice(from..to, self.put.iter().copied());
    }
}

/// What a worker answers by, which must be there whatever is wrong with the rest.
fn is_answerable(refused: &Undecodable) -> bool {
    refused.id.is_some() && refused.reply_to.as_deref() == Some("results")
}

/// A header that is read, or another one.
fn any_header(other: &'static str) -> impl Strategy<Value = String> {
    prop_oneof![other, select(&READ[..]).prop_map(str::to_owned)]
}

fn any_signatures() -> impl Strategy<Value = Option<Box<RawValue>>> {
    prop::option::of(prop::collection::vec(any_json(), 1..3).prop_map(|list| to_raw_value(&list).unwrap()))
}

fn text_of(raw: Option<&RawValue>) -> Option<&str> {
    raw.map(RawValue::get)
}

proptest! {
    #[test]
    fn what_belongs_to_a_workflow_decodes_to_the_same(
        (root_id, group, shadow) in
            (any_text(64), prop::option::of(any_text(64)), prop::option::of(any_text(64))),
        (group_index, ignore_result, eta) in any::<(Option<i64>, Option<bool>, u32)>(),
        (callbacks, errbacks, chain) in (any_signatures(), any_signatures(), any_signatures()),
        stamps in prop::collection::btree_map(any_text(8), any_json(), 0..3),
        own in prop::collection::btree_map(any_header("x-[a-z]{1,8}"), any_json(), 0..6),
    ) {
        let embed = Embed { callbacks, errbacks, chain, chord: None };
        let (stamps, own): (Headers, Headers) = (stamps.into_iter().collect(), own.into_iter().collect());
        let sent = TaskMessage {
            root_id: Some(&root_id), group: group.as_deref(), shadow: shadow.as_deref(), group_index, ignore_result,
            eta: from_unix_ms(eta.into()), stamps: Some(&stamps), headers: Some(&own), embed: Some(&embed),
            ..TaskMessage::of("i", "t", RawValue::NULL, RawValue::NULL)
        };
        let (args, kwargs) = (to_raw_value(&json!([])).unwrap(), to_raw_value(&json!({})).unwrap());
        let message = TaskMessage { args: &args, kwargs: &kwargs, ..sent }.message();
        let read = Task::decode(&message).unwrap();
        prop_assert_eq!((read.id.as_str(), read.task.as_str(), read.retries), ("i", "t", 0), "the writer's own come first");
        prop_assert_eq!((read.root_id, read.group, read.shadow), (Some(root_id), group, shadow));
        prop_assert_eq!((read.group_index, read.ignore_result), (group_index, ignore_result.unwrap_or(false)));
        prop_assert_eq!(read.eta, from_unix_ms(eta.into()));
        for (read, sent) in [
            (&read.embed.callbacks, &embed.callbacks),
            (&read.embed.errbacks, &embed.errbacks),
            (&read.embed.chain, &embed.chain),
            (&read.embed.chord, &None),
        ] {
            prop_assert_eq!(text_of(read.as_deref()), text_of(sent.as_deref()));
        }
        prop_assert_eq!(&message.properties.headers["stamps"], &Value::Object(stamps));
        for (name, value) in own.iter().filter(|(name, _)| name.starts_with("x-")) {
            prop_assert_eq!(&message.properties.headers[name], value);
        }
    }

    #[test]
    fn a_header_of_any_value_is_read_or_refused_by_its_name(
        (args, kwargs) in any_arguments(), name in select(&READ[..]),
        value in prop_oneof![
            any_json(), any::<i64>().prop_map(Value::from), any::<String>().prop_map(Value::from),
            prop::collection::vec(any::<f64>(), 2).prop_map(Value::from),
            "[0-9T:.+Z-]{0,30}".prop_map(Value::from),
        ],
    ) {
        let mut message = sent(&args, &kwargs);
        message.properties.headers.insert(name.to_owned(), value);
        match Task::decode(&message) {
            Ok(read) => prop_assert_eq!((read.args.get(), read.kwargs.get()), (args.get(), kwargs.get())),
            Err(refused) => {
                let reason = refused.reason.to_string();
                prop_assert!(reason.starts_with(&format!("header {name} is ")), "{reason}");
                prop_assert!(is_answerable(&refused), "{refused:?}");
            }
        }
    }

    #[test]
    fn a_damaged_body_is_refused_for_what_it_is_or_read_as_what_it_says(
        (args, kwargs) in any_arguments(), damages in prop::collection::vec(any_damage(), 1..4), compress: bool,
    ) {
        let mut message = sent(&args, &kwargs);
        if compress {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&message.body).unwrap();
            message.body = encoder.finish().unwrap();
            message.properties.headers.insert("compression".to_owned(), json!("application/x-gzip"));
            let whole = Task::decode(&message).unwrap();
            prop_assert_eq!(whole.args.get(), args.get());
        }
        for damage in &damages {
            damage.apply(&mut message.body);
        }
        match Task::decode(&message) {
            Ok(read) => {
                let json = message.json_body().unwrap();
                let body: Vec<&RawValue> = serde_json::from_slice(&json).unwrap();
                prop_assert_eq!((read.args.get(), read.kwargs.get()), (body[0].get(), body[1].get()));
                let is_a_call = read.args.get().starts_with('[') && read.kwargs.get().starts_with('{');
                prop_assert!(is_a_call, "{read:?}");
            }
            Err(refused) => {
                prop_assert!(is_answerable(&refused), "{refused:?}");
                let named = matches!(
                    refused.reason,
                    DecodeFault::Json(_) | DecodeFault::BodyType | DecodeFault::BodyLength(_) | DecodeFault::Args
                        | DecodeFault::Kwargs | DecodeFault::Embed
                );
                prop_assert!(named || (compress && matches!(refused.reason, DecodeFault::Content(_))), "{refused:?}");
            }
        }
    }

    #[test]
    fn any_table_and_any_content_type_are_read_or_refused_within_bounds(
        headers in prop::collection::hash_map(any_header(".{0,30}"), any_json(), 0..12),
        content_type in prop::option::of(prop_oneof![any::<String>(), Just("application/json".to_owned())]),
        body in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let mut message = Message { body, ..Message::default() };
        message.properties.headers = headers.into_iter().collect();
        message.properties.content_type = content_type;
        if let Err(refused) = Task::decode(&message) {
            // It becomes a header of a dead letter, and an error of a reply.
            prop_assert!(refused.reason.to_string().len() <= 1024, "{refused:?}");
        }
    }
}
