//! Revoking, purging and pausing on a real database.

use super::*;
use crate::store::revoke::Revocation::{Ended, Never, Told, Unknown};
use crate::store::revoke::{Purged, Revocation};

async fn revoked(store: &Store) -> Vec<(String, String)> {
    store.revoked_before(i64::MAX).await.unwrap().into_iter().map(|task| (task.id, task.reason)).collect()
}

fn now() -> UnixMs {
    protocol::timestamp::now_ms()
}

/// A task that was accepted by this process.
fn fresh(id: &str) -> NewTask {
    NewTask { created_at: now(), ..new_task(id) }
}

#[tokio::test]
async fn what_the_relay_never_had_ends_at_once_and_what_it_may_have_had_is_told() {
    let (_dir, store) = store().await;
    for id in ["waits", "held", "queued", "runs"] {
        store.insert(fresh(id)).await.unwrap();
    }
    store.insert(NewTask { eta: Some(now() + 60_000), ..fresh("later") }).await.unwrap();
    publish(&store, "queued", 1).await;
    publish(&store, "runs", 1).await;
    record(&store, [reply("runs", Report::Started, Some(0), Some(1))].into()).await.unwrap();
    store.control.hand.lock().await.ids.insert("held".to_owned());
    let mut verdicts = Vec::new();
    for id in ["waits", "later", "held", "queued", "runs", "nobody", "waits"] {
        verdicts.push(store.revoke(id, &Whose::Anybody, now()).await.unwrap());
    }
    assert_eq!(verdicts, [Never, Never, Told, Told, Told, Unknown, Ended]);
    let ids: Vec<String> = revoked(&store).await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, ["runs", "queued", "held"], "the others were never handed out; the oldest is told last");
    let row = row(&store, "waits").await;
    assert_eq!((row.state, row.stage, row.started_at), (State::Revoked, Stage::Done, None));
    assert!(row.error.unwrap().get().contains(r#""message":"revoked""#));
    assert_eq!((store.outstanding(), store.untold().await["revoked"].len()), (3, 3));
}

#[tokio::test]
async fn what_is_revoked_in_the_relays_hands_is_not_published_again() {
    let (_dir, store) = store().await;
    store.insert(fresh("a")).await.unwrap();
    store.insert(fresh("b")).await.unwrap();
    let taken = store.take_due("default", 10, usize::MAX).await.unwrap().tasks;
    assert_eq!(taken.len(), 2);
    assert_eq!(store.revoke("a", &Whose::Anybody, now()).await.unwrap(), Revocation::Told);
    store.end_revoked(now()).await.unwrap();
    assert_eq!(row(&store, "a").await.state, State::Pending, "it may have been published just now");
    store.let_go(taken.iter().map(|task| &task.id)).await;
    assert_eq!(store.due("default", 10, usize::MAX).await.unwrap().len(), 1);
    store.end_revoked(now()).await.unwrap();
    assert_eq!((row(&store, "a").await.state, store.outstanding()), (State::Revoked, 1));
    assert_eq!(revoked(&store).await.len(), 1, "nobody knows whether the broker has it");
}

#[tokio::test]
async fn a_row_that_the_process_before_may_have_published_is_in_doubt() {
    let dir = TempDir::new().unwrap();
    let first = open(&dir).await;
    first.insert(NewTask { created_at: now() - 1_000, ..new_task("a") }).await.unwrap();
    drop(first);
    let store = open(&dir).await;
    assert_eq!(store.revoke("a", &Whose::Anybody, now()).await.unwrap(), Revocation::Told);
    assert_eq!(row(&store, "a").await.state, State::Revoked);
    assert_eq!(revoked(&store).await, [("a".to_owned(), "revoked".to_owned())]);
}

#[tokio::test]
async fn a_revoked_task_that_the_broker_loses_has_ended() {
    let (_dir, store) = store().await;
    store.insert(fresh("a")).await.unwrap();
    publish(&store, "a", 1).await;
    store.revoke("a", &Whose::Anybody, now()).await.unwrap();
    let notice = LostNotice { task_id: "a".into(), retries: 0, publish: Some(1), reason: LostReason::DeliveryLimit };
    assert_eq!(store.put_back(vec![notice], now()).await.unwrap(), 1);
    let row = row(&store, "a").await;
    assert_eq!((row.state, row.stage, store.outstanding()), (State::Revoked, Stage::Done, 0));
}

#[tokio::test]
async fn a_purge_takes_a_queue_in_every_stage_but_what_runs_or_is_not_due() {
    let (_dir, store) = store().await;
    let other = |id: &str| NewTask { queue: "other".to_owned(), ..fresh(id) };
    for task in [fresh("waits"), fresh("held"), fresh("queued"), fresh("retries"), fresh("runs"), other("other")] {
        store.insert(task).await.unwrap();
    }
    store.insert(NewTask { eta: Some(now() + 60_000), ..fresh("later") }).await.unwrap();
    for id in ["queued", "retries", "runs"] {
        publish(&store, id, 1).await;
    }
    let started = reply("runs", Report::Started, Some(0), Some(1));
    let failed = reply("retries", report_of(State::Retry), Some(0), Some(0));
    record(&store, [started, failed].into()).await.unwrap();
    store.control.hand.lock().await.ids.insert("held".to_owned());
    assert_eq!(store.purge("default", now()).await.unwrap(), Purged { purged: 4, at_broker: 3 });
    assert_eq!(store.purge("default", now()).await.unwrap(), Purged::default());
    let mut told: Vec<String> = revoked(&store).await.into_iter().map(|(id, _)| id).collect();
    told.sort();
    assert_eq!(told, ["held", "queued", "retries"]);
    assert_eq!(row(&store, "waits").await.state, State::Revoked);
    for id in ["runs", "later", "other"] {
        assert!(row(&store, id).await.revoked_at.is_none(), "{id}");
    }
}

#[tokio::test]
async fn a_large_purge_goes_in_chunks_and_misses_none() {
    let (_dir, store) = store().await;
    let ids: Vec<String> = (0..12_000).map(|number| number.to_string()).collect();
    futures_util::future::join_all(ids.iter().map(|id| store.insert(fresh(id)))).await;
    let queued: Vec<Published> = ids[..6_000].iter().map(|id| Published(id.clone(), 1)).collect();
    store.mark(queued.into(), HandedTo::Workers(NOW)).await.unwrap();
    let start = std::time::Instant::now();
    assert_eq!(store.purge("default", now()).await.unwrap(), Purged { purged: 12_000, at_broker: 6_000 });
    println!("12,000 purged in {:?}", start.elapsed());
    assert_eq!((store.outstanding(), store.untold().await["purged"].len()), (6_000, 6_000));
    let (mut before, mut told) = (i64::MAX, 0);
    while let Some(last) = store.revoked_before(before).await.unwrap().last() {
        told += store.revoked_before(before).await.unwrap().len();
        before = last.seq;
    }
    assert_eq!(told, 6_000);
}

#[tokio::test]
async fn what_a_relay_held_during_a_purge_and_could_not_publish_is_purged_too() {
    let (_dir, store) = store().await;
    store.insert(fresh("a")).await.unwrap();
    let taken = store.take_due("default", 10, usize::MAX).await.unwrap().tasks;
    assert_eq!(store.purge("default", now()).await.unwrap(), Purged { purged: 1, at_broker: 1 });
    store.let_go(taken.iter().map(|task| &task.id)).await;
    assert!(store.due("default", 10, usize::MAX).await.unwrap().is_empty());
    store.end_revoked(now()).await.unwrap();
    assert_eq!((row(&store, "a").await.state, store.outstanding()), (State::Revoked, 0));
}

#[tokio::test]
async fn a_revocation_that_workers_must_know_of_is_not_forgotten() {
    let (_dir, store) = store().await;
    for id in ["doubt", "never"] {
        store.insert(fresh(id)).await.unwrap();
    }
    store.mark([Published("doubt".to_owned(), 1)].into(), HandedTo::Nobody).await.unwrap();
    let revoked = [
        store.revoke("doubt", &Whose::Anybody, now()).await.unwrap(),
        store.revoke("never", &Whose::Anybody, now()).await.unwrap(),
    ];
    assert_eq!(revoked, [Told, Never]);
    let forgotten =
        [store.forget("doubt", &Whose::Anybody).await.unwrap(), store.forget("never", &Whose::Anybody).await.unwrap()];
    assert_eq!(forgotten, [Forgotten::InDoubt, Forgotten::Done]);
}

#[tokio::test]
async fn a_pause_outlives_the_process() {
    let dir = TempDir::new().unwrap();
    let first = open(&dir).await;
    first.pause("default", Some(NOW)).await.unwrap();
    first.pause("default", Some(NOW + 1)).await.unwrap();
    first.pause("mail", Some(NOW)).await.unwrap();
    first.pause("mail", None).await.unwrap();
    assert_eq!((first.paused_at("default"), first.paused_at("mail")), (Some(NOW), None));
    drop(first);
    let again = open(&dir).await;
    assert_eq!((again.paused_at("default"), again.paused_at("mail")), (Some(NOW), None));
}

#[tokio::test]
async fn a_publish_that_was_not_confirmed_leaves_a_revocation_in_doubt() {
    let (_dir, store) = store().await;
    store.insert(fresh("a")).await.unwrap();
    store.mark([Published("a".to_owned(), 1)].into(), HandedTo::Nobody).await.unwrap();
    let again = store.due("default", 10, usize::MAX).await.unwrap();
    assert_eq!((again.len(), again[0].publish), (1, 2), "it is published again, as another publish");
    assert_eq!(store.revoke("a", &Whose::Anybody, now()).await.unwrap(), Told);
    assert_eq!((row(&store, "a").await.state, revoked(&store).await.len()), (State::Revoked, 1));
}
