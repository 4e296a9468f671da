//! Tasks of stock Celery workers, whose reports have neither attempt nor order, and may never come.

use std::time::Duration;

use super::*;

const LONGEST: Duration = Duration::from_secs(10);

async fn handed(store: &Store, task: NewTask) {
    let id = task.id.clone();
    store.insert(task).await.unwrap();
    store.mark([Published(id, 1)].into(), HandedTo::Celery(NOW)).await.unwrap();
}

async fn end_silent(store: &Store, seconds: i64) -> u64 {
    store.end_silent(Silence { longest: LONGEST, now: NOW + seconds * 1_000 }).await.unwrap()
}

fn told(id: &str, report: Report, seconds: i64) -> Recorded {
    Recorded::now(Reply::of(id, report), NOW + seconds * 1_000)
}

#[tokio::test]
async fn what_celery_never_reports_ends_by_the_clock_and_a_late_result_loses() {
    let (_dir, store) = store().await;
    handed(&store, new_task("silent")).await;
    handed(&store, new_task("told")).await;
    handed(&store, NewTask { time_limit: Some(5.5), ..new_task("limited") }).await;
    handed(&store, new_task("revoked")).await;
    store.insert(new_task("ours")).await.unwrap();
    publish(&store, "ours", 1).await;
    store.revoke("revoked", &Whose::Anybody, NOW).await.unwrap();
    assert_eq!(end_silent(&store, 9).await, 0);
    record(&store, [told("told", Report::Started, 9)].into()).await.unwrap();
    assert_eq!(end_silent(&store, 10).await, 2);
    let silent = row(&store, "silent").await;
    let error: ErrorInfo = serde_json::from_str(silent.error.unwrap().get()).unwrap();
    assert_eq!((silent.state, error.kind.as_str()), (State::Failure, "ForeignTimeout"));
    assert!(error.message.contains("within 10s"), "{}", error.message);
    assert_eq!(row(&store, "revoked").await.state, State::Revoked);
    assert_eq!(record(&store, [told("silent", success("1"), 11)].into()).await.unwrap(), 0);
    assert_eq!((end_silent(&store, 15).await, end_silent(&store, 16).await), (0, 1));
    assert_eq!(row(&store, "limited").await.state, State::Failure);
    assert_eq!((end_silent(&store, 18).await, end_silent(&store, 19).await), (0, 1));
    assert_eq!(end_silent(&store, 1_000_000).await, 0);
    assert_eq!((row(&store, "ours").await.state, store.outstanding()), (State::Pending, 1));
}

#[tokio::test]
async fn a_task_that_celery_has_without_the_brokers_confirm_ends_by_the_clock_too() {
    let (_dir, store) = store().await;
    for id in ["report first", "mark first"] {
        store.insert(new_task(id)).await.unwrap();
    }
    let mark = async |id: &str| store.mark([Published(id.to_owned(), 1)].into(), HandedTo::Nobody).await.unwrap();
    record(&store, [told("report first", Report::Started, 1)].into()).await.unwrap();
    mark("report first").await;
    mark("mark first").await;
    record(&store, [told("mark first", Report::Started, 1)].into()).await.unwrap();
    assert_eq!((end_silent(&store, 10).await, end_silent(&store, 11).await), (0, 2));
}

#[tokio::test]
async fn the_retries_of_a_stock_worker_are_attempts() {
    let (_dir, store) = store().await;
    handed(&store, new_task("a")).await;
    let retry = || Report::Retry { error: error("again"), eta: None };
    for (number, report) in [Report::Started, retry(), Report::Started, retry(), retry()].into_iter().enumerate() {
        let at = i64::try_from(number).unwrap();
        assert_eq!(record(&store, [told("a", report, at)].into()).await.unwrap(), 1, "{number}");
    }
    assert_eq!((row(&store, "a").await.state, row(&store, "a").await.retries), (State::Retry, 2));
    record(&store, [told("a", success("3"), 6)].into()).await.unwrap();
    assert_eq!(row(&store, "a").await.retries, 3);
    let attempts = store.attempts("a", &Whose::Anybody).await.unwrap().unwrap();
    let told: Vec<_> = attempts.iter().map(|attempt| (attempt.number, attempt.state)).collect();
    let (retry, success) = (Some(State::Retry), Some(State::Success));
    assert_eq!(told, [(0, retry), (1, retry), (2, retry), (3, success)]);
}

#[tokio::test]
async fn a_retry_of_a_stock_worker_that_the_broker_delivers_again_is_no_attempt_of_its_own() {
    let (_dir, store) = store().await;
    handed(&store, new_task("a")).await;
    let retry = || Report::Retry { error: error("again"), eta: None };
    let again = |report| Recorded { redelivered: true, ..told("a", report, 1) };
    let counted = record(&store, [again(retry()), again(Report::Started), again(retry())].into()).await.unwrap();
    assert_eq!((counted, row(&store, "a").await.retries), (1, 0), "the first was new to the store");
    let batch = [told("a", Report::Started, 2), told("a", retry(), 3), again(retry()), again(success("3"))];
    assert_eq!(record(&store, batch.into()).await.unwrap(), 3);
    let attempts = store.attempts("a", &Whose::Anybody).await.unwrap().unwrap();
    let states: Vec<_> = attempts.iter().map(|attempt| (attempt.number, attempt.state)).collect();
    let (retry, success) = (Some(State::Retry), Some(State::Success));
    assert_eq!(states, [(0, retry), (1, retry), (2, success)]);
}

#[tokio::test]
async fn a_task_that_was_handed_over_before_that_was_noted_ends_by_the_clock_too() {
    let (_dir, store) = store().await;
    for (id, queue) in [("sent", "py"), ("retried", "py"), ("ours", "default")] {
        store.insert(NewTask { queue: queue.to_owned(), ..new_task(id) }).await.unwrap();
        publish(&store, id, 1).await;
    }
    store.insert(NewTask { queue: "py".to_owned(), ..new_task("waits") }).await.unwrap();
    record(&store, [reply("retried", report_of(State::Retry), Some(0), Some(1))].into()).await.unwrap();
    assert_eq!(end_silent(&store, 1_000_000).await, 0);
    store.hear_from_now(vec!["py".to_owned()], NOW + 1_000).await.unwrap();
    assert_eq!((end_silent(&store, 10).await, end_silent(&store, 11).await), (0, 2));
    let states = ["sent", "retried", "ours", "waits"].map(|id| row(&store, id));
    let states = futures_util::future::join_all(states).await.into_iter().map(|row| row.state).collect::<Vec<_>>();
    assert_eq!(states, [State::Failure, State::Failure, State::Pending, State::Pending]);
}

#[tokio::test]
async fn silence_finds_its_rows_by_their_time() {
    let (_dir, store) = store().await;
    let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {}", time::SILENT));
    let plan: Vec<(i64, i64, i64, String)> =
        sqlx::query_as(explain).bind(NOW).bind(10).fetch_all(&store.readers).await.unwrap();
    assert!(plan.iter().all(|(.., step)| step.contains("USING INDEX tasks_silent")), "{plan:?}");
}
