use serde_json::{Value, json};
use time::macros::datetime;

use super::*;
use crate::task::Embed;
use crate::topology::{MAX_PREFIX_BYTES, Topology};

fn raw(value: &Value) -> Option<Box<RawValue>> {
    (!value.is_null()).then(|| RawValue::from_string(value.to_string()).unwrap())
}

/// A task `p` of the root `r` with what is to follow it.
fn parent(embed: &Value) -> Task {
    let embed = Embed {
        callbacks: raw(&embed["callbacks"]),
        errbacks: raw(&embed["errbacks"]),
        chain: raw(&embed["chain"]),
        chord: raw(&embed["chord"]),
    };
    Task { id: "p".to_owned(), root_id: Some("r".to_owned()), embed, ..Task::default() }
}

fn call(task: &str, options: &Value) -> Value {
    json!({"task": task, "args": ["own"], "kwargs": {"k": 1}, "options": options, "subtask_type": null, "immutable": false})
}

fn within(kind: &str, tasks: &[Value], options: &Value) -> Value {
    json!({"task": format!("celery.{kind}"), "args": [], "kwargs": {"tasks": tasks}, "options": options, "subtask_type": kind})
}

const NOW: OffsetDateTime = datetime!(2026-11-20 12:00 UTC);

fn success(embed: &Value) -> Following {
    let task = parent(embed);
    check(&task).unwrap();
    after_success(&task, &raw(&json!(42)).unwrap(), NOW).unwrap()
}

fn fault(embed: &Value) -> String {
    check(&parent(embed)).unwrap_err().to_string()
}

fn decoded(following: &Following) -> Vec<Task> {
    following.successors.iter().map(|successor| Task::decode(&successor.message).unwrap()).collect()
}

fn json_of(raw: Option<&RawValue>) -> Value {
    raw.map_or(Value::Null, |raw| serde_json::from_str(raw.get()).unwrap())
}

#[test]
fn the_next_of_a_chain_takes_the_rest_along() {
    let [second, third, fourth] = ["b", "c", "d"].map(|task| call(task, &json!({"task_id": task, "reply_to": "q"})));
    let following = success(&json!({"chain": [fourth, third, second]}));
    let sent = &decoded(&following)[..];
    let [task] = sent else { panic!("{sent:?}") };
    assert_eq!((task.id.as_str(), task.task.as_str(), task.args.get()), ("b", "b", r#"[42, "own"]"#));
    assert_eq!((task.root_id.as_deref(), task.parent_id.as_deref()), (Some("r"), Some("p")));
    assert_eq!((task.reply_to.as_deref(), task.correlation_id.as_deref()), (Some("q"), Some("b")));
    assert_eq!(json_of(task.embed.chain.as_deref()), json!([fourth, third]));
    assert_eq!(following.children, [Child::Task("b".to_owned())]);
    assert_eq!(following.successors[0].destination, Destination::Parent);
    assert!(!task.durable_reply && following.unreached.is_empty());
}

#[test]
fn every_option_of_a_signature_reaches_its_message() {
    let options = json!({
        "priority": 7, "countdown": 90, "expires": 600, "time_limit": 30, "soft_time_limit": 20.5, "queue": "q",
        "ignore_result": true, "shadow": "s", "retries": 2, "headers": {"x-mine": [1], "id": "theirs", "errand-reply": "durable"},
        "stamped_headers": ["tenant"], "tenant": "a", "group_id": "g", "group_index": 3, "link": call("l", &json!({})),
        "link_error": [call("e", &json!({}))], "unknown": {"x": 1}, "root_id": null, "reply_to": "",
    });
    let following = success(&json!({"callbacks": [call("t", &options)]}));
    let task = &decoded(&following)[0];
    let headers = &following.successors[0].message.properties.headers;
    assert_eq!((task.priority, task.retries, task.ignore_result), (7, 2, true));
    assert_eq!(
        (task.eta, task.expires),
        (Some(datetime!(2026-11-20 12:01:30 UTC)), Some(datetime!(2026-11-20 12:10 UTC)))
    );
    assert_eq!(headers["timelimit"], json!([30, 20.5]));
    assert_eq!((task.group.as_deref(), task.group_index, task.shadow.as_deref()), (Some("g"), Some(3), Some("s")));
    assert_eq!((&headers["stamps"], &headers["stamped_headers"]), (&json!({"tenant": "a"}), &json!(["tenant"])));
    assert_eq!((&headers["x-mine"], &headers["id"]), (&json!([1]), &json!(task.id)));
    assert!(!task.durable_reply && task.reply_to.is_none());
    assert_eq!(json_of(task.embed.callbacks.as_deref()), json!([call("l", &json!({}))]));
    assert_eq!(json_of(task.embed.errbacks.as_deref()), json!([call("e", &json!({}))]));
    assert_eq!(following.successors[0].destination, Destination::Queue("q".to_owned()));
}

#[test]
fn times_are_read_as_clients_write_them() {
    for (eta, expected) in [
        (json!({"__type__": "datetime", "__value__": "2030-01-01T00:00:00"}), Some(datetime!(2030-01-01 00:00 UTC))),
        (json!("2030-01-01T01:00:00+01:00"), Some(datetime!(2030-01-01 00:00 UTC))),
        (Value::Null, None),
    ] {
        let following = success(&json!({"chain": [call("t", &json!({"eta": eta}))]}));
        assert_eq!(decoded(&following)[0].eta, expected, "{eta}");
    }
    let negative = success(&json!({"chain": [call("t", &json!({"countdown": -5}))]}));
    assert_eq!(decoded(&negative)[0].eta, Some(NOW));
}

#[test]
fn arguments_come_after_the_result_unless_they_are_not_to_change() {
    for (args, immutable, expected) in [
        (json!([]), false, "[42]"),
        (json!([1, 2]), false, "[42, 1,2]"),
        (json!([1, 2]), true, "[1,2]"),
        (Value::Null, false, "[42]"),
        (Value::Null, true, "[]"),
    ] {
        let signature = json!({"task": "t", "args": args, "immutable": immutable});
        assert_eq!(decoded(&success(&json!({"callbacks": [signature]})))[0].args.get(), expected);
    }
}

#[test]
fn a_run_that_is_repeated_sends_the_same_ids_and_each_once() {
    let anonymous = |task| call(task, &json!({}));
    let embed = json!({
        "callbacks": [anonymous("a"), anonymous("a"), within("chain", &[anonymous("a"), anonymous("b")], &json!({})),
            within("group", &[anonymous("a"), anonymous("a")], &json!({}))],
        "errbacks": [anonymous("a"), anonymous("a")],
        "chain": [anonymous("z"), anonymous("a")],
    });
    let ids = || {
        let sent = [decoded(&success(&embed)), decoded(&after_failure(&parent(&embed), NOW))].concat();
        sent.into_iter().map(|task| task.id).collect::<Vec<_>>()
    };
    let first = ids();
    assert_eq!(first, ids());
    assert_eq!(first.iter().collect::<std::collections::HashSet<_>>().len(), 8, "{first:?}");
}

#[test]
fn a_group_at_the_end_sends_its_members_and_names_them() {
    let member = |id: &str, place: u8| call("m", &json!({"task_id": id, "group_index": place}));
    let steps = [call("first", &json!({"task_id": "c1"})), member("c2", 1)];
    let chain = within("chain", &steps, &json!({"task_id": "c2"}));
    let nested = within("group", &[member("n", 2)], &json!({}));
    let group = within("group", &[member("m", 0), chain, nested], &json!({"task_id": "g", "priority": 4}));
    let following = success(&json!({"chain": [group]}));
    let sent = decoded(&following);
    assert_eq!(sent.iter().map(|task| task.id.as_str()).collect::<Vec<_>>(), ["m", "c1", "n"]);
    assert_eq!(sent.iter().map(|task| task.group.as_deref()).collect::<Vec<_>>(), [Some("g"), None, Some("g")]);
    assert!(sent.iter().all(|task| task.priority == 4 && task.args.get().starts_with("[42")));
    let last = &json_of(sent[1].embed.chain.as_deref())[0]["options"];
    assert_eq!((&last["task_id"], &last["group_id"], &last["group_index"]), (&json!("c2"), &json!("g"), &json!(1)));
    let members = ["m", "c2", "n"].map(|id| Child::Task(id.to_owned()));
    assert_eq!(following.children, [Child::Group("g".to_owned(), members.to_vec())]);
}

#[test]
fn callbacks_of_a_chain_are_its_last_tasks_and_error_callbacks_are_every_ones() {
    let options = json!({"link": [call("l", &json!({}))], "link_error": [call("e", &json!({}))]});
    let steps = ["a", "b"].map(|task| call(task, &json!({})));
    let following = success(&json!({"callbacks": [within("chain", &steps, &options)]}));
    let first = &decoded(&following)[0];
    let last = &json_of(first.embed.chain.as_deref())[0]["options"];
    assert!(first.embed.callbacks.is_none() && first.embed.errbacks.is_some());
    assert_eq!((&last["link"][0]["task"], &last["link_error"][0]["task"]), (&json!("l"), &json!("e")));
}

#[test]
fn what_failed_is_told_to_error_callbacks_and_to_who_waits_for_the_rest() {
    let waited = |id: &str| call("t", &json!({"task_id": id, "reply_to": "q"}));
    let ignored = call("t", &json!({"task_id": "i", "reply_to": "q", "ignore_result": true}));
    let group = within("group", &[waited("m"), ignored], &json!({}));
    let fixed = json!({"task": "e", "args": [1], "immutable": true});
    let embed =
        json!({"errbacks": [call("e", &json!({})), fixed], "chain": [group, waited("b")], "callbacks": [waited("c")]});
    let following = after_failure(&parent(&embed), NOW);
    let sent = decoded(&following);
    assert_eq!(sent.iter().map(|task| task.args.get()).collect::<Vec<_>>(), [r#"["p", "own"]"#, "[1]"]);
    assert_eq!(following.unreached.iter().map(|task| task.task_id.as_str()).collect::<Vec<_>>(), ["m", "b"]);
    let revoked = after_revocation(&parent(&embed));
    assert_eq!((revoked.successors.len(), revoked.unreached), (0, following.unreached));
}

#[test]
fn what_would_have_to_be_counted_is_refused_before_it_runs() {
    let task = || call("t", &json!({}));
    let group = || within("group", &[task()], &json!({}));
    let chord = json!({"task": "celery.chord", "kwargs": {"header": [], "body": task()}, "subtask_type": "chord"});
    for embed in [
        json!({"chord": task()}),
        json!({"chain": [chord, task()]}),
        json!({"chain": [task(), group()]}),
        json!({"chain": [task(), within("chain", &[task(), group()], &json!({}))]}),
        json!({"callbacks": [within("chain", &[group(), task()], &json!({}))]}),
        json!({"callbacks": [call("t", &json!({"chord": task()}))]}),
        json!({"errbacks": [within("group", &[task()], &json!({"link": [task()]}))]}),
    ] {
        assert!(fault(&embed).contains("a chord"), "{embed}");
    }
}

#[test]
fn what_is_no_signature_is_named() {
    let deep = (0..20).fold(call("t", &json!({})), |inner, _| within("chain", &[inner], &json!({})));
    for (embed, said) in [
        (json!({"callbacks": [17]}), "callbacks is not a signature"),
        (json!({"errbacks": 17}), "errbacks is not a list"),
        (json!({"chain": [{"args": []}]}), "chain is not a signature"),
        (json!({"chain": [{"task": "t", "args": {}}]}), "chain is not a signature"),
        (
            json!({"chain": [call("t", &json!({"countdown": "soon"}))]}),
            r#"option countdown of "t" is not a number of seconds"#,
        ),
        (
            json!({"chain": [call("t", &json!({"priority": 256}))]}),
            r#"option priority of "t" is not an integer from 0 to 255"#,
        ),
        (
            json!({"chain": [call("t", &json!({"queue": "x".repeat(256)}))]}),
            r#"option queue of "t" is not a string of at most 255 bytes"#,
        ),
        (json!({"chain": [within("chain", &[], &json!({}))]}), "an empty chain is not a signature"),
        (json!({"chain": [deep]}), "chains and groups are nested deeper than 16 levels"),
    ] {
        assert_eq!(fault(&embed), said);
    }
}

#[test]
fn a_routing_key_leaves_room_for_the_longest_prefix() {
    let fits = |key: usize, exchange: &Value| {
        check(&parent(&json!({"chain": [call("t", &json!({"routing_key": "x".repeat(key), "exchange": exchange}))]})))
    };
    for exchange in [Value::Null, json!("errand.tasks")] {
        fits(191, &exchange).unwrap();
        let refused = fits(192, &exchange).unwrap_err().to_string();
        assert!(refused.starts_with(r#"option routing_key of "t" is not a string of at most 191 bytes"#), "{refused}");
    }
    fits(255, &json!("")).unwrap();
    let longest = success(&json!({"chain": [call("t", &json!({"routing_key": "x".repeat(191)}))]}));
    let Destination::Exchange(None, key) = &longest.successors[0].destination else { panic!("{longest:?}") };
    let name = Topology::new("p".repeat(MAX_PREFIX_BYTES)).queue(key);
    assert_eq!(name.len(), 255, "AMQP's longest name");
}

#[test]
fn what_follows_is_bounded() {
    let many = vec![call("t", &json!({})); MAX_SUCCESSORS + 1];
    assert!(matches!(check(&parent(&json!({"callbacks": many}))), Err(WorkflowFault::TooMany)));
    let headers = call("t", &json!({"headers": {"x": "x".repeat(40_000)}}));
    assert!(fault(&json!({"chain": [headers]})).contains("bytes of headers, 32768 are allowed"));
    let large = raw(&json!("x".repeat(1024 * 1024))).unwrap();
    let group = within("group", &vec![call("t", &json!({})); 80], &json!({}));
    let error = after_success(&parent(&json!({"chain": [group]})), &large, NOW).unwrap_err();
    assert!(matches!(error, WorkflowFault::TooLarge { max: MAX_SUCCESSOR_BYTES, .. }), "{error}");
}
