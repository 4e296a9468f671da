//! Tests of the figures of a queue and of a task's place in it, and of the types that are kept.

use super::*;
use crate::store::depth::Depth;

async fn fill(store: &Store, sql: &str) {
    // By the side of the writer, which is idle: the rows are many.
    let path = store.readers.connect_options().get_filename().to_owned();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
    pool.close().await;
}

#[tokio::test]
async fn a_queue_counts_what_is_where() {
    let (_dir, store) = store().await;
    for (id, priority, eta) in [("a", 0, None), ("b", 5, None), ("c", 5, None), ("d", 0, Some(NOW + 60_000))] {
        store.insert(NewTask { priority, eta, ..new_task(id) }).await.unwrap();
    }
    store.insert(NewTask { queue: "mail".to_owned(), ..new_task("m") }).await.unwrap();
    let depth = store.depth("default").await.unwrap();
    assert_eq!(depth, Depth { scheduled: 1, waiting: 3, oldest: Some(NOW), ..Depth::default() });
    for (id, ahead) in [("b", Some(0)), ("c", Some(1)), ("a", Some(2)), ("d", None), ("m", Some(0))] {
        assert_eq!(row(&store, id).await.ahead, ahead, "{id}");
    }
    publish(&store, "b", 1).await;
    publish(&store, "c", 1).await;
    record(&store, [reply("b", report_of(State::Started), Some(0), None)].into()).await.unwrap();
    let depth = store.depth("default").await.unwrap();
    assert_eq!((depth.waiting, depth.queued, depth.running), (1, 1, 1));
    assert_eq!((row(&store, "b").await.ahead, row(&store, "c").await.ahead), (None, Some(1)), "one of them runs");
}

#[tokio::test]
async fn figures_stay_cheap_over_a_million_rows() {
    let (_dir, store) = store().await;
    store.insert(NewTask { priority: 9, ..new_task("first") }).await.unwrap();
    fill(
        &store,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)
        INSERT INTO tasks (id, task, queue, priority, args, kwargs, retry, created_at, stage, due_at)
        SELECT 'n' || i, 'add', 'default', i % 10, '[]', '{}', '{}', 0, iif(i % 2, 'waiting', 'done'), 0 FROM n",
    )
    .await;
    store.insert(new_task("last")).await.unwrap();
    let start = std::time::Instant::now();
    let depth = store.depth("default").await.unwrap();
    let counted = start.elapsed();
    let ahead = (row(&store, "first").await.ahead, row(&store, "last").await.ahead);
    let placed = start.elapsed().saturating_sub(counted);
    println!("500,000 waiting of 1,000,000 rows: counted in {counted:?}, two places found in {placed:?}");
    assert_eq!((depth.waiting, depth.oldest, ahead), (500_002, Some(0), (Some(0), Some(MAX_AHEAD + 1))));
    assert!(counted.as_millis() < 1_000 && placed.as_millis() < 200);
}

#[tokio::test]
async fn types_are_kept_over_a_restart_and_forgotten_on_demand() {
    let dir = TempDir::new().unwrap();
    let kept = |name: &str, text: Option<&str>| KeptType(name.to_owned(), text.map(str::to_owned));
    {
        let first = open(&dir).await;
        first.keep_task_types(vec![kept("a", Some("1")), kept("b", Some("2"))]).await.unwrap();
        first.keep_task_types(vec![kept("a", Some("3")), kept("b", None), kept("c", None)]).await.unwrap();
        assert_eq!(first.task_types().await.unwrap(), ["3"]);
    }
    let again = loop {
        let url = format!("sqlite:{}", dir.path().join("errand.db").display());
        if let Ok(store) = Store::open(&url, &TaskTracker::new()).await {
            break store;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(again.task_types().await.unwrap(), ["3"]);
}
