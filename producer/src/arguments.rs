//! Whether arguments can be what a task takes, by the schema that a worker announced. Pure.
//!
//! It refuses only what the worker would. Where JSON Schema and the worker's deserializer may differ, a schema is taken
//! to say less: see [`loosen`].

use jsonschema::{PatternOptions, ValidationError, Validator};
use protocol::heartbeat::TaskType;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// A longer schema is not compiled, and refuses nothing.
const MAX_SCHEMA_BYTES: usize = 64 * 1024;
/// The most faults that are told.
const MAX_FAULTS: usize = 20;

/// An argument that no worker would take. It shows no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// JSON pointer into the submit.
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}

impl Fault {
    fn new(pointer: String, detail: impl Into<String>) -> Self {
        Self { pointer, detail: detail.into() }
    }
}

/// What a task takes, ready to be compared with.
pub struct Contract {
    shape: Shape,
    validator: Validator,
    redacted: Vec<String>,
}

/// How `args` and `kwargs` become one value.
enum Shape {
    /// Named fields, of which the schema knows these in this order, and these by other names.
    Struct { names: Vec<String>, aliases: Vec<String> },
    /// By position only.
    Tuple,
    /// By name only.
    Map,
}

impl Contract {
    /// `None` when nothing can be said for certain.
    pub fn new(task: &TaskType) -> Option<Self> {
        let mut schema = task.arguments.clone();
        let root = schema.as_object_mut()?;
        let shape = match (&task.positional, root.get("type").and_then(Value::as_str)) {
            (Some(names), Some("object")) => Shape::Struct { names: names.clone(), aliases: task.aliases.clone() },
            (None, Some("array")) if root.contains_key("prefixItems") => Shape::Tuple,
            (None, Some("object")) => Shape::Map,
            _ => return None,
        };
        // Compiled, it may take many times its bytes.
        if serde_json::to_string(&task.arguments).map_or(0, |json| json.len()) > MAX_SCHEMA_BYTES {
            return None;
        }
        let whole = (root.remove("required"), root.remove("type"));
        loosen(&mut schema);
        if let (Some(root), Shape::Struct { .. } | Shape::Tuple) = (schema.as_object_mut(), &shape) {
            root.extend(whole.0.map(|required| ("required".to_owned(), required)));
            root.extend(whole.1.map(|kind| ("type".to_owned(), kind)));
        }
        // Never backtracking, whatever pattern a stranger sends; a pattern that needs it refuses nothing.
        let options = jsonschema::draft202012::options().with_pattern_options(PatternOptions::regex());
        let validator = options.build(&schema).ok()?;
        Some(Self { shape, validator, redacted: task.redacted.clone() })
    }

    /// What no worker of this contract would take; empty when it may be taken.
    pub fn faults(&self, args: &RawValue, kwargs: &RawValue) -> Vec<Fault> {
        let parsed = (serde_json::from_str(args.get()), serde_json::from_str(kwargs.get()));
        let (Ok(args), Ok(kwargs)) = parsed else { return Vec::new() };
        match &self.shape {
            Shape::Struct { names, aliases } => self.named(args, kwargs, names, aliases),
            Shape::Tuple if kwargs.is_empty() => self.validate(&Value::Array(args), |index| format!("/args/{index}")),
            Shape::Tuple => kwargs.keys().take(MAX_FAULTS).map(|name| unexpected(name)).collect(),
            Shape::Map if args.is_empty() => self.validate(&Value::Object(kwargs), |name| pointer("/kwargs", name)),
            Shape::Map => Vec::new(),
        }
    }

    fn named(&self, args: Vec<Value>, kwargs: Map<String, Value>, names: &[String], aliases: &[String]) -> Vec<Fault> {
        if kwargs.keys().any(|name| aliases.contains(name)) {
            return Vec::new();
        }
        let given = args.len();
        if given > names.len() {
            let detail = format!("takes at most {} arguments by position, {given} given", names.len());
            return vec![Fault::new("/args".to_owned(), detail)];
        }
        let mut faults = Vec::new();
        for name in kwargs.keys() {
            match names.iter().position(|known| known == name) {
                None => faults.push(unexpected(name)),
                Some(place) if place < given => {
                    faults.push(Fault::new(pointer("/kwargs", name), "is given by position too"));
                }
                Some(_) => {}
            }
        }
        faults.truncate(MAX_FAULTS);
        if faults.is_empty() {
            let by_position = names.iter().cloned().zip(args);
            let all = Value::Object(by_position.chain(kwargs).collect());
            return self.validate(&all, |name| match names.iter().position(|known| known == name) {
                Some(place) if place < given => format!("/args/{place}"),
                _ => pointer("/kwargs", name),
            });
        }
        faults
    }

    /// `place` says where an argument of that name or index stands.
    fn validate(&self, all: &Value, place: impl Fn(&str) -> String) -> Vec<Fault> {
        let faults = self.validator.iter_errors(all).take(MAX_FAULTS).map(|error| self.fault(&error, &place));
        faults.collect()
    }

    fn fault(&self, error: &ValidationError<'_>, place: &impl Fn(&str) -> String) -> Fault {
        let path = error.instance_path().to_string();
        let (first, rest) = path
            .strip_prefix('/')
            .map_or(("", ""), |path| path.find('/').map_or((path, ""), |end| (&path[..end], &path[end..])));
        let name = first.replace("~1", "/").replace("~0", "~");
        if let jsonschema::error::ValidationErrorKind::Required { property } = error.kind() {
            let missing = property.as_str().unwrap_or_default();
            if path.is_empty() {
                return Fault::new(place(missing), "is required");
            }
        }
        if path.is_empty() {
            return Fault::new("/args".to_owned(), "not as many as the task takes");
        }
        if self.redacted.contains(&name) {
            return Fault::new(place(&name), "is not what the task takes; its value is not shown");
        }
        Fault::new(format!("{}{rest}", place(&name)), error.masked().to_string())
    }
}

fn unexpected(name: &str) -> Fault {
    Fault::new(pointer("/kwargs", name), "is not an argument of this task")
}

fn pointer(to: &str, name: &str) -> String {
    format!("{to}/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// Takes out of a schema what a deserializer need not share: a struct also comes as an array in the order of its fields,
/// and its fields may have other names; a variant also comes as an object with one member; of several variants more than
/// one may fit; an annotation is none.
fn loosen(schema: &mut Value) {
    match schema {
        Value::Object(members) => loosen_object(members),
        Value::Array(all) => all.iter_mut().for_each(loosen),
        _ => {}
    }
}

fn loosen_object(members: &mut Map<String, Value>) {
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

fn is_choice(keyword: &str) -> bool {
    matches!(keyword, "enum" | "const")
}

fn pair((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

#[cfg(test)]
mod tests;
