//! Tests of the store on a real database.

mod api_keys;
mod attempts;
mod bulk;
mod callbacks;
mod children;
mod control;
mod cost;
mod depth;
mod foreign;
mod guard;
mod keys;
mod list;
mod migrate;
mod reconcile;
mod replay;
mod watch;

use std::sync::Arc;

use protocol::lost::{LostNotice, LostReason};
use protocol::reply::{ErrorInfo, Progress, Reply, Report};
use protocol::retry::RetryPolicy;
use protocol::state::State;
use serde_json::value::RawValue;
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use super::*;

const NOW: UnixMs = 1_800_000_000_000;

/// A task that is due at once.
pub(crate) fn new_task(id: &str) -> NewTask {
    NewTask {
        id: id.to_owned(),
        task: "add".to_owned(),
        queue: "default".to_owned(),
        priority: 0,
        args: RawValue::from_string("[1,2]".to_owned()).unwrap(),
        kwargs: RawValue::from_string("{}".to_owned()).unwrap(),
        retry: RetryOptions::default(),
        time_limit: None,
        soft_time_limit: None,
        created_at: NOW,
        eta: None,
        expires: None,
        parent: None,
        owner: None,
        callback: None,
    }
}

async fn open(dir: &TempDir) -> Store {
    let url = format!("sqlite:{}", dir.path().join("errand.db").display());
    Store::open(&url, &TaskTracker::new()).await.unwrap()
}

async fn store() -> (TempDir, Store) {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).await;
    (dir, store)
}

fn reply(id: &str, report: Report, retries: Option<u32>, seq: Option<u32>) -> Recorded {
    let reply = Reply { retries, seq, worker: Some("w@h".to_owned()), ..Reply::of(id, report) };
    Recorded::now(reply, NOW + 1)
}

fn error(message: &str) -> ErrorInfo {
    ErrorInfo::new("ValueError", message)
}

fn success(json: &str) -> Report {
    Report::Success(RawValue::from_string(json.to_owned()).unwrap())
}

fn report_of(state: State) -> Report {
    match state {
        State::Pending | State::Started => Report::Started,
        State::Retry => Report::Retry { error: error("again"), eta: None },
        State::Success => success("3"),
        State::Failure => Report::Failure(error("no")),
        State::Revoked => Report::Revoked { reason: "expired".to_owned() },
    }
}

async fn record(store: &Store, reports: Arc<[Recorded]>) -> Result<u64, StoreError> {
    store.record(Arc::default(), reports).await.map(|counted| counted.reports)
}

async fn row(store: &Store, id: &str) -> TaskRow {
    store.task(id, &Whose::Anybody).await.unwrap().unwrap()
}

async fn publish(store: &Store, id: &str, publish: u32) {
    store.mark([Published(id.to_owned(), publish)].into(), HandedTo::Workers(NOW)).await.unwrap();
}

#[tokio::test]
async fn an_accepted_task_is_read_back_as_it_was() {
    let (_dir, store) = store().await;
    let args = r#"[123456789012345678901234567890,1.10,"\u00e9\u0000 ' \" \\",{"a":null}]"#;
    let kwargs = r#"{"k":[]}"#;
    let task = NewTask {
        args: RawValue::from_string(args.to_owned()).unwrap(),
        kwargs: RawValue::from_string(kwargs.to_owned()).unwrap(),
        time_limit: Some(1.5),
        expires: Some(NOW + 60_000),
        ..new_task("a")
    };
    store.insert(task).await.unwrap();
    let row = row(&store, "a").await;
    assert_eq!((row.accepted.args.get(), row.accepted.kwargs.get()), (args, kwargs));
    assert_eq!((row.accepted.time_limit, row.accepted.expires), (Some(1.5), Some(NOW + 60_000)));
    assert_eq!((row.state, row.stage, store.outstanding()), (State::Pending, Stage::Waiting, 1));
    assert!(store.task("b", &Whose::Anybody).await.unwrap().is_none());
}

#[tokio::test]
async fn of_the_retry_policy_what_was_chosen_is_kept_and_a_whole_one_is_still_read() {
    let (dir, store) = store().await;
    let chosen = RetryOptions { max_retries: Some(7), ..RetryOptions::default() };
    store.insert(NewTask { retry: chosen, ..new_task("a") }).await.unwrap();
    store.insert(new_task("b")).await.unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("errand.db"));
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let whole = r#"{"max_retries":3,"backoff":1.0,"backoff_max":600.0,"jitter":true}"#;
    let older = sqlx::query("UPDATE tasks SET retry = ? WHERE id = 'b'").bind(whole);
    older.execute(&mut connection).await.unwrap();
    let due = store.due("default", 2, usize::MAX).await.unwrap();
    assert_eq!([due[0].retry, due[1].retry], [chosen, RetryPolicy::default().into()]);
    assert_eq!(row(&store, "a").await.accepted.retry, chosen);
}

#[tokio::test]
async fn a_taken_id_refuses_its_own_task_only() {
    let (_dir, store) = store().await;
    let inserts = ["a", "b", "a", "c"].map(|id| store.insert(new_task(id)));
    let stored = futures_util::future::join_all(inserts).await;
    let taken: Vec<bool> = stored.iter().map(|stored| matches!(stored, Err(StoreError::Taken))).collect();
    assert_eq!(taken, [false, false, true, false]);
    assert_eq!(store.outstanding(), 3);
}

#[tokio::test]
async fn what_was_accepted_outlives_the_process() {
    let dir = TempDir::new().unwrap();
    let first = open(&dir).await;
    first.insert(new_task("a")).await.unwrap();
    let id = first.id().to_owned();
    drop(first);
    let again = open(&dir).await;
    assert_eq!((again.id(), again.outstanding()), (id.as_str(), 1));
    assert_eq!(again.due("default", 10, usize::MAX).await.unwrap().len(), 1);
}

#[tokio::test]
async fn one_store_has_one_owner() {
    let (dir, _store) = store().await;
    let url = format!("sqlite:{}", dir.path().join("errand.db").display());
    let second = Store::open(&url, &TaskTracker::new()).await;
    assert!(second.is_err_and(|error| error.to_string().contains("another producer")));
}

#[tokio::test]
async fn the_relay_reads_by_priority_then_age() {
    let (_dir, store) = store().await;
    for (id, priority) in [("a", 0), ("b", 5), ("c", 9), ("d", 5)] {
        store.insert(NewTask { priority, ..new_task(id) }).await.unwrap();
    }
    let due = store.due("default", 10, usize::MAX).await.unwrap();
    let ids: Vec<&str> = due.iter().map(|task| task.id.as_str()).collect();
    assert_eq!(ids, ["c", "b", "d", "a"]);
    assert_eq!(store.due("default", 10, 1).await.unwrap().len(), 1);
    publish(&store, "c", 1).await;
    assert_eq!(store.due("default", 10, usize::MAX).await.unwrap().len(), 3);
    assert_eq!(store.queued("default").await.unwrap(), 1);
}

#[tokio::test]
async fn a_task_is_due_by_its_eta_and_gone_by_its_expiry() {
    let (_dir, store) = store().await;
    store.insert(NewTask { eta: Some(NOW + 100), ..new_task("later") }).await.unwrap();
    store.insert(NewTask { expires: Some(NOW + 50), ..new_task("brief") }).await.unwrap();
    store.insert(NewTask { eta: Some(NOW + 100), expires: Some(NOW + 40), ..new_task("never") }).await.unwrap();
    assert_eq!(store.next_tick().await.unwrap(), Some(NOW + 40));
    store.tick(NOW + 60).await.unwrap();
    for id in ["brief", "never"] {
        let row = row(&store, id).await;
        assert_eq!((row.state, row.finished_at), (State::Revoked, Some(NOW + 60)));
        assert!(row.error.unwrap().get().contains("expired"));
    }
    assert_eq!((store.outstanding(), store.next_tick().await.unwrap()), (0, Some(NOW + 100)));
    store.tick(NOW + 100).await.unwrap();
    assert_eq!(store.due("default", 10, usize::MAX).await.unwrap()[0].id, "later");
    assert_eq!(store.outstanding(), 1);
}

#[tokio::test]
async fn a_life_is_recorded_in_order() {
    let (_dir, store) = store().await;
    store.insert(new_task("a")).await.unwrap();
    publish(&store, "a", 1).await;
    let progress = Progress { current: 1, total: Some(2), message: None };
    let batch = vec![
        reply("a", Report::Started, Some(0), Some(0)),
        reply("a", Report::Progress(progress), Some(0), Some(1)),
        reply("a", Report::Retry { error: error("first"), eta: None }, Some(0), Some(2)),
    ];
    assert_eq!(record(&store, batch.into()).await.unwrap(), 3);
    let retrying = row(&store, "a").await;
    assert_eq!((retrying.state, retrying.stage, retrying.retries), (State::Retry, Stage::Retrying, 0));
    assert!(retrying.error.unwrap().get().contains("first") && retrying.progress.is_some());
    assert_eq!(store.queued("default").await.unwrap(), 0);
    let end = vec![reply("a", Report::Started, Some(1), Some(0)), reply("a", success("null"), Some(1), Some(1))];
    assert_eq!(record(&store, end.into()).await.unwrap(), 2);
    let ended = row(&store, "a").await;
    assert_eq!((ended.state, ended.retries, ended.worker.as_deref()), (State::Success, 1, Some("w@h")));
    assert_eq!(ended.result.unwrap().get(), "null");
    assert!(ended.error.is_none() && ended.finished_at.is_some());
    assert_eq!(store.outstanding(), 0);
}

#[tokio::test]
async fn reports_about_unknown_ids_make_no_row() {
    let (_dir, store) = store().await;
    assert_eq!(record(&store, [reply("ghost", success("1"), Some(0), None)].into()).await.unwrap(), 0);
    assert!(store.task("ghost", &Whose::Anybody).await.unwrap().is_none());
}

fn lost(publish: Option<u32>) -> LostNotice {
    LostNotice { task_id: "a".to_owned(), retries: 0, publish, reason: LostReason::DeliveryLimit }
}

#[tokio::test]
async fn a_lost_task_goes_back_to_the_relay_and_fails_at_the_third_loss() {
    let (_dir, store) = store().await;
    store.insert(new_task("a")).await.unwrap();
    for (number, end) in [(1, State::Pending), (2, State::Pending), (3, State::Failure)] {
        publish(&store, "a", number).await;
        assert_eq!(store.put_back(vec![lost(Some(number))], NOW).await.unwrap(), 1);
        assert_eq!(store.put_back(vec![lost(Some(number))], NOW).await.unwrap(), 0, "the broker repeats itself");
        assert_eq!(row(&store, "a").await.state, end);
        store.tick(NOW + 60_000).await.unwrap();
    }
    assert!(row(&store, "a").await.error.unwrap().get().contains("WorkerLost"));
    assert_eq!(store.outstanding(), 0);
}

#[tokio::test]
async fn a_notice_may_overtake_the_mark_of_its_publish() {
    let (_dir, store) = store().await;
    store.insert(new_task("a")).await.unwrap();
    assert_eq!(store.put_back(vec![lost(Some(1))], NOW).await.unwrap(), 1);
    publish(&store, "a", 1).await;
    assert_eq!(row(&store, "a").await.stage, Stage::Scheduled);
    store.tick(NOW + 60_000).await.unwrap();
    assert_eq!(store.due("default", 10, usize::MAX).await.unwrap()[0].publish, 2);
}

#[tokio::test]
async fn a_report_does_not_take_a_lost_task_from_the_relay() -> Result<(), StoreError> {
    let (_dir, store) = store().await;
    store.insert(new_task("a")).await?;
    publish(&store, "a", 1).await;
    store.put_back(vec![lost(Some(1))], NOW).await?;
    assert_eq!(store.outstanding(), 1, "it was due before, and is not forgotten while it waits");
    record(&store, [reply("a", report_of(State::Retry), Some(0), Some(0))].into()).await?;
    assert_eq!((row(&store, "a").await.state, row(&store, "a").await.stage), (State::Retry, Stage::Scheduled));
    store.tick(NOW + 60_000).await?;
    let due = store.due("default", 10, usize::MAX).await?;
    assert_eq!((due[0].retries, due[0].publish, store.outstanding()), (1, 2, 1));
    record(&store, [reply("a", success("1"), Some(0), None)].into()).await?;
    assert_eq!((store.outstanding(), row(&store, "a").await.stage), (0, Stage::Done));
    Ok(())
}

#[tokio::test]
async fn only_the_loss_of_the_latest_publish_and_attempt_counts() -> Result<(), StoreError> {
    let (_dir, store) = store().await;
    store.insert(new_task("a")).await?;
    record(&store, [reply("a", Report::Started, Some(0), Some(0))].into()).await?;
    publish(&store, "a", 1).await;
    store.put_back(vec![lost(Some(1))], NOW).await?;
    store.tick(NOW + 60_000).await?;
    record(&store, [reply("a", Report::Started, Some(0), Some(1))].into()).await?;
    publish(&store, "a", 2).await;
    assert_eq!(store.put_back(vec![lost(Some(1))], NOW).await?, 0, "publish 1 was counted, publish 2 runs");
    record(&store, [reply("a", report_of(State::Retry), Some(0), Some(2))].into()).await?;
    assert_eq!(store.put_back(vec![lost(Some(2))], NOW).await?, 0, "attempt 0 was followed by attempt 1");
    assert_eq!(row(&store, "a").await.lost, 1);
    Ok(())
}

#[tokio::test]
async fn a_late_end_keeps_the_attempts_that_were_made() -> Result<(), StoreError> {
    let (_dir, store) = store().await;
    store.insert(new_task("a")).await?;
    record(&store, [reply("a", Report::Started, Some(2), Some(0))].into()).await?;
    record(&store, [reply("a", success("1"), Some(0), None)].into()).await?;
    assert_eq!((row(&store, "a").await.state, row(&store, "a").await.retries), (State::Success, 2));
    Ok(())
}

#[tokio::test]
async fn a_notice_of_a_publish_that_never_was_counts_for_nothing() {
    let (_dir, store) = store().await;
    store.insert(new_task("a")).await.unwrap();
    publish(&store, "a", 1).await;
    let notice = |publish| LostNotice {
        task_id: "a".into(),
        retries: 0,
        publish: Some(publish),
        reason: LostReason::DeliveryLimit,
    };
    assert_eq!(store.put_back(vec![notice(u32::MAX), notice(3)], NOW).await.unwrap(), 0);
    assert_eq!(store.put_back(vec![notice(2)], NOW).await.unwrap(), 1, "it has overtaken the mark of its publish");
}

#[tokio::test]
async fn of_what_expires_only_what_was_due_was_outstanding() {
    let (_dir, store) = store().await;
    let expires = Some(NOW + 10);
    store.insert(NewTask { expires, ..new_task("due") }).await.unwrap();
    store.insert(NewTask { expires, eta: Some(NOW + 1_000), ..new_task("later") }).await.unwrap();
    store.insert(new_task("stays")).await.unwrap();
    store.tick(NOW + 10).await.unwrap();
    assert_eq!((row(&store, "due").await.state, row(&store, "later").await.state), (State::Revoked, State::Revoked));
    assert_eq!(store.outstanding(), 1);
}

#[tokio::test]
async fn expiry_finds_its_rows_by_their_expiry() {
    let (_dir, store) = store().await;
    let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {}", time::EXPIRED));
    let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(explain).fetch_all(&store.readers).await.unwrap();
    assert!(plan.iter().any(|step| step.3.contains("tasks_expiring (expires>? AND expires<?)")), "{plan:?}");
}

#[tokio::test]
async fn ended_tasks_are_forgotten_after_their_time() {
    let (_dir, store) = store().await;
    for id in ["a", "b"] {
        store.insert(new_task(id)).await.unwrap();
    }
    record(&store, [reply("a", success("1"), Some(0), None)].into()).await.unwrap();
    assert_eq!(store.prune(NOW + 1).await.unwrap(), 0);
    assert_eq!(store.prune(NOW + 2).await.unwrap(), 1);
    assert!(
        store.task("a", &Whose::Anybody).await.unwrap().is_none()
            && store.task("b", &Whose::Anybody).await.unwrap().is_some()
    );
}
