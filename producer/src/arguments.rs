//! Whether arguments can be what a task takes, by the schema that a worker announced. Pure.
//!
//! It refuses only what the worker would. Where JSON Schema and the worker's deserializer may differ, a schema is taken
//! to say less: see [`schema::loosen`].

mod schema;

use std::collections::{HashMap, HashSet};

use jsonschema::{PatternOptions, ValidationError, Validator};
use protocol::heartbeat::TaskType;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// A longer schema is not compiled, and refuses nothing.
const MAX_SCHEMA_BYTES: usize = 64 * 1024;
/// Members of a schema times bytes of arguments: what is beyond is not compared.
const MAX_WORK: usize = 64 * 1024 * 1024;
/// The most faults that are told.
const MAX_FAULTS: usize = 20;
/// Of larger arguments the first fault is told alone: the validator makes all of them before one can be looked at.
const MANY_FAULTS_BYTES: usize = 8 * 1024;

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
    weight: usize,
    validator: Validator,
    redacted: Vec<String>,
}

/// How `args` and `kwargs` become one value.
enum Shape {
    /// Named fields, of which the schema knows these in this order, and these by other names.
    Struct { names: Vec<String>, places: HashMap<String, usize>, aliases: HashSet<String> },
    /// By position only.
    Tuple,
    /// By name only.
    Map,
}

impl Contract {
    /// `None` when nothing can be said for certain.
    pub fn new(task: &TaskType) -> Option<Self> {
        let mut loose = task.arguments.clone();
        let root = loose.as_object_mut()?;
        let shape = match (&task.positional, root.get("type").and_then(Value::as_str)) {
            (Some(names), Some("object")) => Shape::Struct {
                names: names.clone(),
                places: names.iter().enumerate().map(|(place, name)| (name.clone(), place)).collect(),
                aliases: task.aliases.iter().cloned().collect(),
            },
            (None, Some("array")) if root.contains_key("prefixItems") => Shape::Tuple,
            (None, Some("object")) => Shape::Map,
            _ => return None,
        };
        // Compiled, it may take many times its bytes.
        if serde_json::to_string(&task).map_or(0, |json| json.len()) > MAX_SCHEMA_BYTES {
            return None;
        }
        let weight = schema::weight(&task.arguments)?;
        let whole = (root.remove("required"), root.remove("type"));
        schema::loosen(&mut loose);
        if let (Some(root), Shape::Struct { .. } | Shape::Tuple) = (loose.as_object_mut(), &shape) {
            root.extend(whole.0.map(|required| ("required".to_owned(), required)));
            root.extend(whole.1.map(|kind| ("type".to_owned(), kind)));
        }
        // Never backtracking, whatever pattern a stranger sends; a pattern that needs it refuses nothing.
        let options = jsonschema::draft202012::options().with_pattern_options(PatternOptions::regex());
        let validator = options.build(&loose).ok()?;
        Some(Self { shape, weight, validator, redacted: task.redacted.clone() })
    }

    /// What no worker of this contract would take; empty when it may be taken.
    pub fn faults(&self, args: &RawValue, kwargs: &RawValue) -> Vec<Fault> {
        let bytes = args.get().len() + kwargs.get().len();
        if bytes.saturating_mul(self.weight) > MAX_WORK {
            return Vec::new();
        }
        let parsed = (serde_json::from_str(args.get()), serde_json::from_str(kwargs.get()));
        let (Ok(args), Ok(kwargs)) = parsed else { return Vec::new() };
        let most = if bytes > MANY_FAULTS_BYTES { 1 } else { MAX_FAULTS };
        let (args, kwargs): (Vec<Value>, Map<String, Value>) = (args, kwargs);
        match &self.shape {
            Shape::Struct { names, places, aliases } => {
                if kwargs.keys().any(|name| aliases.contains(name)) {
                    return Vec::new();
                }
                self.named(args, kwargs, (names, places), most)
            }
            Shape::Tuple if kwargs.is_empty() => {
                self.validate(&Value::Array(args), most, |index| format!("/args/{index}"))
            }
            Shape::Tuple => kwargs.keys().take(MAX_FAULTS).map(|name| unexpected(name)).collect(),
            Shape::Map if args.is_empty() => {
                self.validate(&Value::Object(kwargs), most, |name| pointer("/kwargs", name))
            }
            Shape::Map => Vec::new(),
        }
    }

    fn named(
        &self,
        args: Vec<Value>,
        kwargs: Map<String, Value>,
        (names, places): (&[String], &HashMap<String, usize>),
        most: usize,
    ) -> Vec<Fault> {
        let given = args.len();
        if given > names.len() {
            let detail = format!("takes at most {} arguments by position, {given} given", names.len());
            return vec![Fault::new("/args".to_owned(), detail)];
        }
        let mut faults = Vec::new();
        for name in kwargs.keys() {
            match places.get(name) {
                None => faults.push(unexpected(name)),
                Some(place) if *place < given => {
                    faults.push(Fault::new(pointer("/kwargs", name), "is given by position too"));
                }
                Some(_) => {}
            }
        }
        faults.truncate(MAX_FAULTS);
        if faults.is_empty() {
            let by_position = names.iter().cloned().zip(args);
            let all = Value::Object(by_position.chain(kwargs).collect());
            return self.validate(&all, most, |name| match places.get(name) {
                Some(place) if *place < given => format!("/args/{place}"),
                _ => pointer("/kwargs", name),
            });
        }
        faults
    }

    /// `place` says where an argument of that name or index stands.
    fn validate(&self, all: &Value, most: usize, place: impl Fn(&str) -> String) -> Vec<Fault> {
        match self.validator.validate(all) {
            Ok(()) => Vec::new(),
            Err(first) if most == 1 => vec![self.fault(&first, &place)],
            Err(_) => self.validator.iter_errors(all).take(most).map(|error| self.fault(&error, &place)).collect(),
        }
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

#[cfg(test)]
mod tests;
