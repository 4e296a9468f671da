//! Tests of the comparison: what is refused and how it is named, and what must not be.

use proptest::prelude::*;
use protocol::retry::RetryPolicy;
use serde_json::json;

use super::*;

fn task(arguments: Value, positional: Option<&[&str]>) -> TaskType {
    TaskType {
        name: "t".to_owned(),
        arguments,
        positional: positional.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
        aliases: vec!["old".to_owned()],
        result: Value::Null,
        execution: "async".to_owned(),
        retry: RetryPolicy::default(),
        time_limit: None,
        soft_time_limit: None,
        concurrency_limit: None,
        rate_limit: None,
        redacted: vec!["secret".to_owned()],
    }
}

fn resize() -> TaskType {
    let arguments = json!({
        "type": "object",
        "required": ["width", "height"],
        "properties": {
            "width": {"type": "integer", "format": "uint8", "minimum": 0, "maximum": 255},
            "height": {"$ref": "#/$defs/Side"},
            "secret": {"type": ["string", "null"]},
            "format": {"$ref": "#/$defs/Format"},
            "inner": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"],
                "additionalProperties": false},
        },
        "$defs": {"Side": {"type": "integer"}, "Format": {"type": "string", "enum": ["png", "gif"]}},
    });
    task(arguments, Some(&["width", "height", "secret", "format", "inner"]))
}

fn raw(value: &Value) -> Box<RawValue> {
    RawValue::from_string(value.to_string()).unwrap()
}

fn faults(task: &TaskType, args: &Value, kwargs: &Value) -> Vec<Fault> {
    Contract::new(task).unwrap().faults(&raw(args), &raw(kwargs))
}

#[test]
fn each_bad_argument_is_named_where_it_stands() {
    for (args, kwargs, expected) in [
        (json!([1]), json!({"height": 2}), vec![]),
        (json!([1]), json!({}), vec!["/kwargs/height"]),
        (json!(["x"]), json!({"height": "y"}), vec!["/args/0", "/kwargs/height"]),
        (json!([256, 2]), json!({}), vec!["/args/0"]),
        (json!([1, 2, null, "png", {"a": 1}]), json!({}), vec!["/args/4/a"]),
        (json!([1, 2, null, "png", {}, 6]), json!({}), vec!["/args"]),
        (json!([1, 2]), json!({"width": 1}), vec!["/kwargs/width"]),
        (json!([1, 2]), json!({"widht/~": 1}), vec!["/kwargs/widht~1~0"]),
        (json!([1, 2]), json!({"format": "bmp"}), vec!["/kwargs/format"]),
    ] {
        let mut told: Vec<String> = faults(&resize(), &args, &kwargs).into_iter().map(|fault| fault.pointer).collect();
        told.sort();
        assert_eq!(told, expected, "{args} {kwargs}");
    }
}

#[test]
fn what_a_deserializer_may_take_is_not_refused() {
    for kwargs in [
        json!({"old": 1}),
        json!({"width": 1, "height": 2, "format": {"png": null}}),
        json!({"width": 1, "height": 2, "inner": ["by position"]}),
        json!({"width": 1, "height": 2, "inner": {"by an alias": 1}}),
        json!({"width": 1.0, "height": 2, "secret": null}),
    ] {
        assert_eq!(faults(&resize(), &json!([]), &kwargs), [], "{kwargs}");
    }
}

#[test]
fn no_fault_shows_a_value() {
    let secret = "hunter2";
    for kwargs in [
        json!({"width": secret, "height": [secret], "secret": {secret: [secret]}}),
        json!({"width": 1, "height": 2, "format": secret, "inner": {"a": [secret]}, "secret": 7}),
    ] {
        let faults = faults(&resize(), &json!([]), &kwargs);
        assert!(faults.len() >= 3, "{faults:?}");
        assert!(!format!("{faults:?}").contains(secret), "{faults:?}");
    }
}

#[test]
fn tuples_go_by_position_and_maps_by_name() {
    let number = json!({"type": "integer"});
    let pair = json!({"type": "array", "prefixItems": [number, number], "minItems": 2, "maxItems": 2});
    let pair = task(pair, None);
    assert_eq!(faults(&pair, &json!([1, 2]), &json!({})), []);
    assert_eq!(faults(&pair, &json!([1]), &json!({}))[0].pointer, "/args");
    assert_eq!(faults(&pair, &json!([1, "x"]), &json!({}))[0].pointer, "/args/1");
    assert_eq!(faults(&pair, &json!([1, 2]), &json!({"x": 1}))[0].pointer, "/kwargs/x");
    let map = task(json!({"type": "object", "properties": {"a/b": number}}), None);
    assert_eq!(faults(&map, &json!([]), &json!({"a/b": "x"}))[0].pointer, "/kwargs/a~1b");
    assert_eq!(faults(&map, &json!([1]), &json!({"any": "x"})), []);
}

#[test]
fn a_schema_that_says_nothing_certain_refuses_nothing() {
    let remote = json!({"type": "object", "properties": {"x": {"$ref": "http://127.0.0.1:1/schema"}}});
    let long = json!({"type": "object", "description": "x".repeat(MAX_SCHEMA_BYTES)});
    for schema in [json!(true), json!(7), json!({"type": "null"}), json!({"$ref": "#/$defs/A"}), remote, long] {
        assert!(Contract::new(&task(schema.clone(), None)).is_none(), "{schema}");
    }
}

#[test]
fn bounds_that_no_deserializer_knows_refuse_nothing() {
    let properties = json!({
        "name": {"type": "string", "minLength": 3, "maxLength": 3},
        "all": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
        "number": {"type": "integer", "format": "uint32", "minimum": 1, "maximum": 7, "multipleOf": 7},
    });
    let task = task(json!({"type": "object", "properties": properties}), Some(&["name", "all", "number"]));
    assert_eq!(faults(&task, &json!(["x", [], 8]), &json!({})), []);
    assert_eq!(faults(&task, &json!([1, ["x"], "x"]), &json!({})).len(), 3);
}

#[test]
fn references_that_unfold_without_end_refuse_nothing() {
    let mut defs = Map::new();
    for level in 0..40 {
        let next = json!({"$ref": format!("#/$defs/a{}", level + 1)});
        defs.insert(format!("a{level}"), json!({"anyOf": [next, next]}));
    }
    defs.insert("a40".to_owned(), json!({"type": "null"}));
    let doubling = json!({"type": "object", "properties": {"x": {"$ref": "#/$defs/a0"}}, "$defs": defs});
    let tree = json!({"type": "object", "properties": {"x": {"$ref": "#/$defs/Tree"}},
        "$defs": {"Tree": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}}});
    for schema in [doubling, tree] {
        assert!(Contract::new(&task(schema, Some(&["x"]))).is_none());
    }
}

#[test]
fn of_a_hundred_thousand_faults_one_is_told_and_made() {
    let items = json!({"type": "array", "items": {"type": "string"}});
    let task = task(json!({"type": "object", "properties": {"x": items}}), Some(&["x"]));
    assert_eq!(faults(&task, &json!([vec![1; 100_000]]), &json!({})).len(), 1);
    assert_eq!(faults(&task, &json!([vec![1; 100]]), &json!({})).len(), MAX_FAULTS);
}

#[test]
fn a_comparison_costs_microseconds() {
    let contract = Contract::new(&resize()).unwrap();
    let (args, kwargs) = (raw(&json!([1, 2])), raw(&json!({"format": "png", "secret": "s"})));
    let start = std::time::Instant::now();
    for _ in 0..10_000 {
        assert!(contract.faults(&args, &kwargs).is_empty());
    }
    let each = start.elapsed() / 10_000;
    println!("a submit's arguments are compared in {each:?}");
    assert!(each.as_micros() < 500);
}

proptest! {
    #[test]
    fn no_schema_and_no_arguments_make_it_panic(schema in "[\\[\\]{}:,\"a-z0-9$#/ ]{0,60}", args in "[\\[\\]0-9,\"a ]{0,20}") {
        let schema = serde_json::from_str(&schema).unwrap_or_else(|_| json!({"type": "object", "properties": {&schema: {"pattern": schema}}}));
        if let Some(contract) = Contract::new(&task(schema, Some(&["a"]))) {
            let args = RawValue::from_string(args).unwrap_or_else(|_| raw(&json!([])));
            let _ = contract.faults(&args, &raw(&json!({"x": 1})));
        }
    }
}
