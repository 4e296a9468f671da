//! What of a task's JSON Schema may be compared with, and what that costs at most.

use serde_json::{Map, Value};

/// A schema whose references unfold to more members refuses nothing, and so does one that refers to itself: what it
/// costs to compare with would be anybody's choice.
const MAX_WEIGHT: usize = 5_000;

/// Takes out of a schema what a deserializer need not share: a struct also comes as an array in the order of its fields,
/// and its fields may have other names; a variant also comes as an object with one member; of several variants more than
/// one may fit; an annotation is none.
pub(super) fn loosen(schema: &mut Value) {
    match schema {
        Value::Object(members) => loosen_object(members),
        Value::Array(all) => all.iter_mut().for_each(loosen),
        _ => {}
    }
}

fn loosen_object(members: &mut Map<String, Value>) {
    keep_own_bounds(members);
    for keyword in [
        "required",
        "additionalProperties",
        "unevaluatedProperties",
        "unevaluatedItems",
        "propertyNames",
        "pattern",
        "patternProperties",
        "minProperties",
        "maxProperties",
        "minLength",
        "maxLength",
        "multipleOf",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "dependentRequired",
        "dependentSchemas",
        "contains",
        "uniqueItems",
        "format",
        "not",
        "if",
        "then",
        "else",
        "default",
        "examples",
    ] {
        members.remove(keyword);
    }
    if let Some(one) = members.remove("oneOf") {
        members.insert("anyOf".to_owned(), one);
    }
    let is_variant = ["enum", "const"].iter().any(|keyword| members.contains_key(*keyword));
    match members.remove("type") {
        // An object or an array of its fields; the members say what they must be where it is an object.
        Some(kind) if !is_variant => {
            let mut kinds = if let Value::Array(kinds) = kind { kinds } else { vec![kind] };
            if kinds.contains(&Value::from("object")) {
                kinds.push(Value::from("array"));
                for keyword in ["items", "prefixItems", "minItems", "maxItems"] {
                    members.remove(keyword);
                }
            }
            members.insert("type".to_owned(), Value::Array(kinds));
        }
        _ => {}
    }
    for (keyword, value) in members.iter_mut() {
        match (keyword.as_str(), value) {
            ("properties" | "$defs" | "definitions", Value::Object(named)) => named.values_mut().for_each(loosen),
            ("items" | "prefixItems" | "anyOf" | "allOf", value) => loosen(value),
            _ => {}
        }
    }
    if is_variant {
        let variant = Value::Object(members.iter().filter(|(key, _)| is_choice(key)).map(pair).collect());
        members.retain(|key, _| !is_choice(key));
        members.insert("anyOf".to_owned(), serde_json::json!([variant, {"type": ["object"]}]));
    }
}

/// An attribute may say bounds that no deserializer knows of. Those that go with an integer's width, or a tuple's length,
/// are its own.
fn keep_own_bounds(members: &mut Map<String, Value>) {
    let (least, greatest) = match members.get("format").and_then(Value::as_str) {
        Some("uint8") => (Some(0.0), Some(f64::from(u8::MAX))),
        Some("uint16") => (Some(0.0), Some(f64::from(u16::MAX))),
        Some("uint" | "uint32" | "uint64" | "uint128") => (Some(0.0), None),
        Some("int8") => (Some(f64::from(i8::MIN)), Some(f64::from(i8::MAX))),
        Some("int16") => (Some(f64::from(i16::MIN)), Some(f64::from(i16::MAX))),
        _ => (None, None),
    };
    for (keyword, own) in [("minimum", least), ("maximum", greatest)] {
        let said = members.get(keyword).and_then(Value::as_f64);
        if said.is_some() && said != own {
            members.remove(keyword);
        }
    }
    if !members.contains_key("prefixItems") {
        members.remove("minItems");
        members.remove("maxItems");
    }
}

/// How many members the schema has with each reference in it unfolded; `None` when there are too many, or when it refers
/// to itself.
pub(super) fn weight(schema: &Value) -> Option<usize> {
    unfolded(schema, schema, &mut Vec::new(), MAX_WEIGHT)
}

/// `within` are the references that are being unfolded.
fn unfolded<'a>(schema: &'a Value, whole: &'a Value, within: &mut Vec<&'a str>, room: usize) -> Option<usize> {
    let parts: Vec<&Value> = match schema {
        Value::Object(members) => members
            .iter()
            .filter(|(name, _)| *name != "$defs" && *name != "definitions")
            .map(|(_, part)| part)
            .collect(),
        Value::Array(parts) => parts.iter().collect(),
        _ => return Some(1),
    };
    let mut total = 1 + parts.len();
    for part in parts {
        total += unfolded(part, whole, within, room.checked_sub(total)?)?;
    }
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = whole.pointer(reference.strip_prefix('#')?)?;
        if within.contains(&reference) {
            return None;
        }
        within.push(reference);
        total += unfolded(target, whole, within, room.checked_sub(total)?)?;
        within.pop();
    }
    (total <= room).then_some(total)
}

fn is_choice(keyword: &str) -> bool {
    matches!(keyword, "enum" | "const")
}

fn pair((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}
