//! Several messages to the same place as one: to a broker a small message is as much work as a large one.
//!
//! It owns the form of a pack and which messages may share one. What they say, and when they are published, it does not know.
//!
//! What the members have in common stands once, as the properties of the pack. Its body has for each member a line of JSON with
//! its headers and correlation id, and the member's body as it is:
//!
//! ```text
//! {"bytes":38,"correlation_id":"a"}
//! {"status":"SUCCESS","task_id":"a", …}
//! {"bytes":0,"correlation_id":"b","headers":{"errand-held-ms":2000}}
//!
//! ```

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::message::{Headers, Message, PACK, Properties, headers_size};

/// The form that is written and read, the value of the header [`PACK`].
pub const FORM: u32 = 1;
/// No pack has more members.
pub const MAX_MEMBERS: usize = 256;
/// Members are not larger together by [`size`]: what waits longer for its confirm costs more than it saves.
pub const MAX_BYTES: usize = 256 * 1024;

/// The longest short string (AMQP 0-9-1, 4.2.5.3).
const MAX_ID_BYTES: usize = 255;

/// What a member's line takes beside its headers.
const LINE_BYTES: usize = 80;

/// Why a pack cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum PackFault {
    /// It says that it has another form than [`FORM`].
    #[error("a pack of another form than {FORM}")]
    Form,
    /// It has more than [`MAX_MEMBERS`].
    #[error("a pack of more than {MAX_MEMBERS} messages")]
    TooMany,
    /// A member's correlation id is longer than AMQP's short strings, so that it could go nowhere by itself.
    #[error("message {0} of a pack has a correlation id of more than {MAX_ID_BYTES} bytes")]
    Id(usize),
    /// The line before a member is not what it should be.
    #[error("message {place} of a pack: {fault}")]
    Line {
        /// Which member, from 0.
        place: usize,
        /// What is wrong with it.
        #[source]
        fault: serde_json::Error,
    },
    /// It ends within this member, from 0.
    #[error("message {0} of a pack is cut short")]
    Cut(usize),
}

/// What a member has of its own beside its body.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    /// The length of the body that follows.
    bytes: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlation_id: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Headers::is_empty")]
    headers: Cow<'a, Headers>,
}

/// What messages must have in common to share a pack: all properties but headers and correlation id.
#[must_use]
pub fn common(properties: &Properties) -> impl Eq + '_ {
    let Properties { content_type, content_encoding, persistent, priority, reply_to, expiration, .. } = properties;
    (content_type, content_encoding, persistent, priority, reply_to, expiration)
}

/// The bytes that a message takes in a pack, about.
#[must_use]
pub fn size(message: &Message) -> usize {
    message.body.len() + headers_size(&message.properties.headers) + LINE_BYTES
}

/// The pack of messages that have the same [`common`], at most [`MAX_MEMBERS`].
#[must_use]
pub fn pack(members: &[&Message]) -> Message {
    let headers = Headers::from_iter([(PACK.to_owned(), FORM.into())]);
    let shared = members.first().map(|first| shared(&first.properties)).unwrap_or_default();
    let mut body = Vec::with_capacity(members.iter().map(|member| size(member)).sum());
    for member in members {
        let Properties { correlation_id, headers, .. } = &member.properties;
        let correlation_id = correlation_id.as_deref().map(Cow::Borrowed);
        let line = Line { bytes: member.body.len(), correlation_id, headers: Cow::Borrowed(headers) };
        // A vector takes every write, and strings and JSON always serialize.
        let _ = serde_json::to_writer(&mut body, &line);
        body.push(b'\n');
        body.extend_from_slice(&member.body);
        body.push(b'\n');
    }
    Message { properties: Properties { headers, ..shared }, body }
}

/// The members of a pack in their order, `None` for a message that is none.
#[must_use]
pub fn unpack(pack: &Message) -> Option<Result<Vec<Message>, PackFault>> {
    let form = pack.properties.headers.get(PACK)?;
    Some(if *form == FORM { members(pack) } else { Err(PackFault::Form) })
}

fn members(pack: &Message) -> Result<Vec<Message>, PackFault> {
    let (shared, mut rest) = (shared(&pack.properties), pack.body.as_slice());
    let mut members = Vec::new();
    while !rest.is_empty() {
        let place = members.len();
        if place == MAX_MEMBERS {
            return Err(PackFault::TooMany);
        }
        let (line, body) = split_line(rest).ok_or(PackFault::Cut(place))?;
        let line: Line<'_> = serde_json::from_slice(line).map_err(|fault| PackFault::Line { place, fault })?;
        if line.correlation_id.as_ref().is_some_and(|id| id.len() > MAX_ID_BYTES) {
            return Err(PackFault::Id(place));
        }
        let (body, after) = split_body(body, line.bytes).ok_or(PackFault::Cut(place))?;
        let (headers, correlation_id) = (line.headers.into_owned(), line.correlation_id.map(Cow::into_owned));
        let properties = Properties { headers, correlation_id, ..shared.clone() };
        members.push(Message { properties, body: body.to_vec() });
        rest = after;
    }
    Ok(members)
}

/// The properties that stand once.
fn shared(properties: &Properties) -> Properties {
    Properties { headers: Headers::new(), correlation_id: None, ..properties.clone() }
}

fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

fn split_body(bytes: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
    let (body, rest) = bytes.split_at_checked(length)?;
    Some((body, rest.strip_prefix(b"\n")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::any::any_text;
    use proptest::prelude::*;
    use proptest::sample::Index;
    use serde_json::Value;

    fn any_header() -> impl Strategy<Value = Value> {
        prop_oneof![any::<i64>().prop_map(Value::from), any::<String>().prop_map(Value::from)]
    }

    prop_compose! {
        fn any_members()(
            (content_type, reply_to) in (prop::option::of(any_text(20)), prop::option::of(any_text(20))),
            (persistent, priority) in any::<(bool, Option<u8>)>(),
            own in prop::collection::vec(
                (
                    prop::option::of(any_text(20)),
                    prop::collection::btree_map(any_text(20), any_header(), 0..4),
                    prop::collection::vec(any::<u8>(), 0..60),
                ),
                0..8,
            ),
        ) -> Vec<Message> {
            let shared = Properties { content_type, persistent, priority, reply_to, ..Properties::default() };
            let member = |(correlation_id, headers, body): (_, std::collections::BTreeMap<_, _>, _)| {
                let headers = headers.into_iter().collect();
                Message { properties: Properties { headers, correlation_id, ..shared.clone() }, body }
            };
            own.into_iter().map(member).collect()
        }
    }

    fn of(members: &[Message]) -> Message {
        pack(&members.iter().collect::<Vec<_>>())
    }

    fn hostile(body: &[u8]) -> Message {
        let mut pack = pack(&[]);
        body.clone_into(&mut pack.body);
        pack
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked_in_its_order(members in any_members()) {
            let pack = of(&members);
            if let Some(first) = members.first() {
                prop_assert!(common(&pack.properties) == common(&first.properties));
            }
            prop_assert_eq!(unpack(&pack).unwrap().unwrap(), members);
        }

        #[test]
        fn a_damaged_pack_is_refused_or_has_other_members(
            members in any_members(), at: Index, cut in 0..9_usize, put in prop::collection::vec(any::<u8>(), 0..4),
        ) {
            let mut pack = of(&members);
            let from = at.index(pack.body.len() + 1);
            let to = pack.body.len().min(from + cut);
            pack.body.splice(from..to, put);
            if let Ok(members) = unpack(&pack).unwrap() {
                prop_assert!(members.iter().map(|member| member.body.len()).sum::<usize>() <= pack.body.len());
            }
        }

        #[test]
        fn no_bytes_make_it_panic(body in "([{}\"a-z:0-9,]{0,9}\n?){0,9}", bytes: u64) {
            let _ = unpack(&hostile(body.as_bytes()));
            let _ = unpack(&hostile(format!("{{\"bytes\":{bytes}}}\n{body}\n").as_bytes()));
        }
    }

    #[test]
    fn it_has_at_most_so_many_members_and_one_form() {
        let least = b"{\"bytes\":0}\n\n";
        assert_eq!(unpack(&hostile(&least.repeat(MAX_MEMBERS))).unwrap().unwrap().len(), MAX_MEMBERS);
        let fault = |pack: &Message| unpack(pack).unwrap().unwrap_err().to_string();
        assert_eq!(fault(&hostile(&least.repeat(MAX_MEMBERS + 1))), "a pack of more than 256 messages");
        assert_eq!(fault(&hostile(b"{\"bytes\":1}\n\n")), "message 0 of a pack is cut short");
        let long = format!("{{\"bytes\":0,\"correlation_id\":\"{}\"}}\n\n", "x".repeat(MAX_ID_BYTES + 1));
        assert!(fault(&hostile(long.as_bytes())).ends_with("a correlation id of more than 255 bytes"));
        assert!(fault(&hostile(b"{}\n\n")).starts_with("message 0 of a pack: missing field `bytes`"));
        for form in [Value::Null, 0.into(), 2.into(), "1".into()] {
            let mut pack = hostile(b"");
            pack.properties.headers.insert(PACK.to_owned(), form);
            assert_eq!(fault(&pack), "a pack of another form than 1");
        }
        assert!(unpack(&Message::default()).is_none());
    }

    #[test]
    fn its_form_is_the_one_that_was_released() {
        let mut member = Message { body: b"[1]".to_vec(), ..Message::default() };
        member.properties.correlation_id = Some("a".to_owned());
        let mut held = Message::default();
        held.properties.headers.insert("h".to_owned(), 2.into());
        let pack = pack(&[&member, &held]);
        let body = "{\"bytes\":3,\"correlation_id\":\"a\"}\n[1]\n{\"bytes\":0,\"headers\":{\"h\":2}}\n\n";
        assert_eq!(String::from_utf8(pack.body).unwrap(), body);
        assert_eq!(Value::from(pack.properties.headers), serde_json::json!({"errand-pack": 1}));
    }
}
