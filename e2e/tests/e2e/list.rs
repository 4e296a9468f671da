//! Lists, counts and deletion over HTTP.

use anyhow::Result;
use e2e::{Pair, broker};
use reqwest::Method;
use serde_json::{Value, json};

use crate::life::SOON;
use crate::rows;

fn ids(list: &Value) -> Vec<&str> {
    list["tasks"].as_array().into_iter().flatten().filter_map(|task| task["task_id"].as_str()).collect()
}

#[tokio::test]
async fn tasks_are_listed_newest_first_page_by_page() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).env("QUEUES", "default,mail").start().await?;
    for number in 0..5 {
        let queue = if number == 2 { "mail" } else { "default" };
        let name = if number == 3 { "no_such_task" } else { "echo" };
        let task = json!({"task": name, "args": [number], "task_id": format!("t{number}"), "queue": queue});
        pair.client().accepted(&task).await?;
        pair.client().await_terminal(&format!("t{number}"), SOON).await?;
    }
    let since = pair.client().get("t2").await?["created_at"].as_str().unwrap_or_default().to_owned();
    let list = async |query: &str| pair.client().get_path(&format!("/v1/tasks?{query}")).await;
    let cases = [
        (String::new(), vec!["t4", "t3", "t2", "t1", "t0"]),
        ("state=FAILURE".to_owned(), vec!["t3"]),
        ("state=FAILURE&state=SUCCESS&limit=2".to_owned(), vec!["t4", "t3"]),
        ("state=PENDING,STARTED".to_owned(), vec![]),
        ("task=no_such_task".to_owned(), vec!["t3"]),
        ("queue=mail".to_owned(), vec!["t2"]),
        (format!("since={since}"), vec!["t4", "t3", "t2"]),
    ];
    for (query, expected) in cases {
        let answer = list(&query).await?;
        assert_eq!((answer.status, ids(&answer.body)), (200, expected), "{query}: {}", answer.text);
    }
    let (mut query, mut seen) = ("limit=2".to_owned(), Vec::new());
    loop {
        let page = list(&query).await?.body;
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("limit=2&cursor={cursor}");
    }
    assert_eq!(seen, ["t4", "t3", "t2", "t1", "t0"]);
    assert_eq!(list("").await?.body["tasks"][0], pair.client().get("t4").await?, "the task as it is shown alone");
    for (query, parameter) in
        [("limit=1001", "limit"), ("state=done", "state"), ("cursor=x", "cursor"), ("page=2", "page")]
    {
        let answer = list(query).await?;
        assert_eq!((answer.status, &answer.body["parameters"][0]["parameter"]), (400, &json!(parameter)), "{query}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
    pair.stop().await
}

#[tokio::test]
async fn a_deleted_task_is_gone_and_stays_counted() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let open = pair.client().accepted(&json!({"task": "echo", "args": [0], "countdown": 600})).await?;
    let ended = pair.client().accepted(&json!({"task": "echo", "args": [0]})).await?;
    pair.client().await_terminal(&ended, SOON).await?;
    let delete =
        async |id: &str| pair.client().send(pair.client().request(Method::DELETE, &format!("/v1/tasks/{id}"))).await;
    let refused = delete(&open).await?;
    assert_eq!((refused.status, refused.header("content-type")), (409, Some("application/problem+json")));
    let gone = delete(&ended).await?;
    assert_eq!((gone.status, gone.text.as_str()), (204, ""));
    assert_eq!(delete(&ended).await?.status, 404);
    assert_eq!(pair.client().get_path(&format!("/v1/tasks/{ended}")).await?.status, 404);
    assert_eq!(rows::count(pair.store()).await?, 1);
    let stats = pair.client().get_path("/v1/stats").await?.body;
    let expected = json!({"accepted": 2, "scheduled": 1, "waiting": 0, "queued": 0, "running": 0, "retrying": 0,
        "success": 1, "failure": 0, "revoked": 0, "forgotten": 1});
    assert_eq!(stats, expected);
    pair.stop().await
}

#[tokio::test]
async fn the_sum_holds_whenever_it_is_looked_at() -> Result<()> {
    const TASKS: usize = 600;
    let pair = Pair::on(broker::shared().await?).start().await?;
    let client = pair.client().clone();
    let submit = async {
        for number in 0..TASKS / 100 {
            let tasks: Vec<Value> = (0..100)
                .map(|place| match place % 4 {
                    0 => json!({"task": "flaky", "args": [1], "retry": {"backoff": 0}}),
                    1 => json!({"task": "always_fails", "args": [number.to_string()], "retry": {"max_retries": 0}}),
                    2 => json!({"task": "sleep", "args": [0.2]}),
                    _ => json!({"task": "echo", "args": [place]}),
                })
                .collect();
            let request = client.request(Method::POST, "/v1/tasks/batch").json(&tasks);
            anyhow::ensure!(client.send(request).await?.status == 202, "a batch is refused");
        }
        Ok(())
    };
    let watch = async {
        let (start, mut looks) = (std::time::Instant::now(), 0);
        loop {
            let stats = pair.client().get_path("/v1/stats").await?.body;
            let of = |names: &[&str]| -> u64 { names.iter().filter_map(|name| stats[*name].as_u64()).sum() };
            let ended = of(&["success", "failure", "revoked"]);
            let open = of(&["scheduled", "waiting", "queued", "running", "retrying"]);
            anyhow::ensure!(of(&["accepted"]) == open + ended && stats["accepted"].is_u64(), "{stats}");
            looks += 1;
            if ended == TASKS as u64 {
                return Ok((looks, of(&["success"]), of(&["failure"])));
            }
            anyhow::ensure!(start.elapsed() < SOON, "{stats}");
        }
    };
    let ((), (looks, success, failure)) = tokio::try_join!(submit, watch)?;
    println!("{looks} looks");
    assert_eq!((success, failure), (450, 150));
    pair.stop().await
}
