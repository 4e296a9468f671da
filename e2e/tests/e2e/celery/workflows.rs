//! Chains, groups, callbacks and error callbacks of a stock client.

use std::time::Duration;

use anyhow::Result;
use e2e::Pair;
use serde_json::{Value, json};

use super::on_each_version;

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn what_a_client_links_runs_in_its_order_over_retries_and_failures() -> Result<()> {
    on_each_version("workflows.py", |pair, told| async move {
        chains(&told);
        groups(&told);
        elsewhere(&told["a_successor_elsewhere"]);
        callbacks(&told);
        refusals(&told);
        letters(&pair).await?;
        pair.stop().await
    })
    .await
}

fn chains(told: &Value) {
    assert_eq!(told["a_chain"], json!([15, 7, 3]));
    assert_eq!(told["children"], json!(true));
    assert_eq!((&told["over_a_retry"], &told["immutable"]), (&json!(11), &json!(10)));
    assert_eq!(told["by_our_names"], json!([7, 7]));
    let delayed = &told["delayed"];
    assert!(delayed["value"] == 7 && delayed["seconds"].as_f64() >= Some(1.4), "{delayed}");
    let failed = json!({"module": "celery.backends.base", "type": "AlwaysFails", "message": "as asked"});
    assert_eq!(told["a_failing_chain"], json!([failed, failed]));
    assert_eq!(told["an_expired_chain"]["type"], "TaskRevokedError");
}

fn groups(told: &Value) {
    assert_eq!(told["a_group"], json!([0, 2, 4, 6, 8]));
    assert_eq!(told["a_group_of_chains"], json!([11, 12, 13]));
    assert_eq!(told["a_group_at_the_end"], json!([7, 8, 16]));
}

fn elsewhere(told: &Value) {
    let (sent, headers) = (&told["sent"], &told["sent"]["headers"]);
    assert_eq!((&sent["args"], &sent["kwargs"]), (&json!([3, 4]), &json!({"name": "b"})));
    assert_eq!(json!([headers["parent_id"], headers["id"]]), json!([told["ids"][0], told["ids"][1]]));
    assert_eq!((&headers["root_id"], &sent["correlation_id"]), (&told["ids"][0], &told["ids"][1]));
    assert_eq!((&sent["reply_to"], &sent["priority"]), (&told["reply_to"], &json!(7)));
    assert_eq!((&headers["timelimit"], &headers["shadow"]), (&json!([30, 20]), &json!("shown")));
    assert!(headers["eta"].is_string() && headers["expires"].is_string(), "{headers}");
    assert_eq!((&headers["x-second"], headers.get("x-first")), (&json!([1, {"a": null}]), None));
    assert_eq!((&headers["stamped_headers"], &headers["stamps"]["tenant"]), (&json!(["tenant"]), &json!("a")));
    assert_eq!((&told["link"], &told["link_error"]), (&json!(["linked"]), &json!(["failed"])));
    assert_eq!(told["chain"], json!([["third", told["ids"][2]]]));
    assert_eq!((&headers["argsrepr"], &headers["retries"]), (&json!("[3, 4]"), &json!(0)));
}

fn callbacks(told: &Value) {
    let callback = json!({"args": [3, "own"], "reply_to": null, "parent": true, "child": true});
    assert_eq!(told["a_callback"], callback);
    assert_eq!(
        told["several_callbacks"],
        json!({"args": [[3], [3], [3]], "group": true, "places": [0, 1], "members": true, "rest": ["behind_it"]})
    );
    assert_eq!(
        told["a_callback_over_a_retry"],
        json!({"told": ["RETRY", "SUCCESS"], "args": [1], "once": true, "no_error": true})
    );
    let error = &told["an_error_callback"];
    assert_eq!((&error["end"]["type"], &error["told"]), (&json!("AlwaysFails"), &json!(["RETRY", "FAILURE"])));
    assert_eq!([&error["args"], &error["parent"], &error["no_success"]], [&json!(true); 3]);
}

fn refusals(told: &Value) {
    let lost = &told["nobody_takes_it"];
    assert_eq!((&lost["ends"][0]["type"], &lost["ends"][1]["type"]), (&json!("Unroutable"), &json!("Unroutable")));
    let message = lost["ends"][1]["message"].as_str().unwrap_or_default();
    assert!(message.contains("no-such-queue"), "{message}");
    assert_eq!((&lost["ends"][2], &lost["told"]), (&json!({"returned": 3}), &json!(true)));
    for end in told["no_such_exchange"].as_array().into_iter().flatten() {
        assert!(
            end["type"] == "Unroutable" && end["message"].as_str().is_some_and(|m| m.contains("no-such-")),
            "{end}"
        );
    }
    for end in told["chords"].as_array().into_iter().flatten() {
        assert!(
            end["type"] == "UnsupportedWorkflow" && end["message"].as_str().is_some_and(|m| m.contains("chord")),
            "{end}"
        );
    }
    for end in told["no_signatures"].as_array().into_iter().flatten() {
        assert_eq!(end["type"], "UnsupportedWorkflow", "{end}");
    }
}

/// One letter for each task that was given up, and none besides: nothing loops.
async fn letters(pair: &Pair) -> Result<()> {
    let given_up = [("AlwaysFails", 2), ("UnsupportedWorkflow", 5), ("Unroutable", 3)];
    let count = given_up.iter().map(|(_, count)| count).sum::<usize>();
    let ready = u32::try_from(count)?;
    pair.broker().await_depth(pair.vhost(), "errand.dead-letters", |depth| depth.ready == ready, SOON).await?;
    let letters = pair.broker().management.peek(pair.vhost(), "errand.dead-letters", count).await?;
    for (kind, count) in given_up {
        let of_kind = letters.iter().filter(|letter| letter.headers["errand-dead-type"] == kind);
        assert_eq!(of_kind.count(), count, "{kind}");
    }
    assert!(letters.iter().all(|letter| letter.headers["errand-dead-message"].as_str().is_some_and(|m| !m.is_empty())));
    Ok(())
}
