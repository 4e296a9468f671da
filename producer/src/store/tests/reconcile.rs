//! What the reconciler asks of the store, and what becomes of what is lost.

use std::time::{Duration, Instant};

use super::*;
use crate::store::reconcile::UNHEARD;

async fn queued(store: &Store, ids: &[&str], at: UnixMs) {
    for id in ids {
        store.insert(new_task(id)).await.unwrap();
    }
    let published = ids.iter().map(|id| Published((*id).to_owned(), 1)).collect();
    store.mark(published, HandedTo::Workers(at)).await.unwrap();
}

async fn unheard(store: &Store, before: UnixMs) -> Vec<String> {
    let rows = store.unheard("default", before, None, 100).await.unwrap();
    rows.into_iter().map(|row| row.id).collect()
}

async fn presume(store: &Store, id: &str, before: UnixMs) -> u64 {
    let rows = store.unheard("default", UnixMs::MAX, None, 100).await.unwrap();
    let seq = rows.into_iter().find(|row| row.id == id).unwrap().seq;
    store.presume_lost(vec![seq], before, NOW + 90_000).await.unwrap()
}

#[tokio::test]
async fn a_task_is_heard_of_by_its_publish_its_reports_and_the_wait_it_is_in() {
    let (_dir, store) = store().await;
    assert!(!store.has_at_broker("default").await.unwrap());
    queued(&store, &["published", "started", "held", "retried", "eta"], NOW).await;
    assert!(store.has_at_broker("default").await.unwrap() && !store.has_at_broker("other").await.unwrap());
    assert_eq!((unheard(&store, NOW).await.len(), unheard(&store, NOW + 1).await.len()), (0, 5));
    let held = |seconds| Held::new("held".to_owned(), Duration::from_secs(seconds), NOW);
    store.hold(vec![held(9), held(1)]).await.unwrap();
    let retry = |eta| Report::Retry { error: error("again"), eta };
    let mut told = reply("retried", retry(None), Some(0), Some(0));
    told.reply.held_ms = Some(20_000);
    let eta = protocol::timestamp::from_unix_ms(NOW + 40_000);
    let started = reply("started", Report::Started, Some(0), Some(0));
    record(&store, [told, started, reply("eta", retry(eta), Some(0), Some(0))].into()).await.unwrap();
    let known = [("published", 0), ("started", 1), ("held", 14_000), ("retried", 25_001), ("eta", 45_000)];
    for (count, (id, until)) in known.into_iter().enumerate() {
        assert_eq!(unheard(&store, NOW + until).await.len(), count, "{id}");
        assert_eq!(unheard(&store, NOW + until + 1).await[count], id);
    }
    assert_eq!(row(&store, "held").await.state, State::Pending, "a note moves no state");
}

#[tokio::test]
async fn a_wait_is_as_long_after_the_clock_was_set() {
    let (_dir, store) = store().await;
    queued(&store, &["a"], NOW).await;
    store.hold(vec![Held::new("a".to_owned(), Duration::from_hours(1), NOW)]).await.unwrap();
    for (step, until) in [(7_200_000, NOW + 10_805_000), (-10_800_000, NOW + 5_000)] {
        store.shift_alive(step).await.unwrap();
        assert_eq!((unheard(&store, until).await.len(), unheard(&store, until + 1).await.len()), (0, 1), "{step}");
    }
}

#[tokio::test]
async fn a_note_may_overtake_the_mark_of_its_publish() {
    let (_dir, store) = store().await;
    store.insert(new_task("a")).await.unwrap();
    store.hold(vec![Held::new("a".to_owned(), Duration::from_mins(1), NOW)]).await.unwrap();
    publish(&store, "a", 1).await;
    assert_eq!(unheard(&store, NOW + 65_000).await, [""; 0]);
    assert_eq!(unheard(&store, NOW + 65_001).await, ["a"]);
}

#[tokio::test]
async fn what_is_presumed_lost_goes_back_to_the_relay_as_it_was() {
    let (_dir, store) = store().await;
    queued(&store, &["a", "heard", "retried", "revoked"], NOW).await;
    let retry = Report::Retry { error: error("again"), eta: None };
    record(&store, [reply("retried", retry, Some(0), Some(0))].into()).await.unwrap();
    store.revoke("revoked", &Whose::Anybody, NOW).await.unwrap();
    record(&store, [reply("heard", Report::Started, Some(0), Some(0))].into()).await.unwrap();
    assert_eq!(presume(&store, "heard", NOW + 1).await, 0, "something was heard since");
    for id in ["a", "retried", "revoked"] {
        assert_eq!(presume(&store, id, NOW + 60_000).await, 1, "{id}");
    }
    assert_eq!((row(&store, "revoked").await.state, store.outstanding()), (State::Revoked, 3));
    let due = store.due("default", 10, usize::MAX).await.unwrap();
    let due: Vec<_> = due.iter().map(|task| (task.id.as_str(), task.retries, task.publish)).collect();
    assert_eq!(due, [("a", 0, 2), ("retried", 1, 2)]);
    assert_eq!(row(&store, "a").await.lost, 0, "it is no verdict of the broker's");
    let attempts = store.attempts("a", &Whose::Anybody).await.unwrap().unwrap();
    assert_eq!(attempts.iter().map(|attempt| (attempt.number, attempt.state)).collect::<Vec<_>>(), [(0, None)]);
    // The copy that was not lost ends it.
    record(&store, [reply("a", success("3"), Some(0), Some(0))].into()).await.unwrap();
    publish(&store, "a", 2).await;
    assert_eq!((row(&store, "a").await.stage, store.outstanding()), (Stage::Done, 2));
}

#[tokio::test]
async fn a_look_at_a_hundred_thousand_queued_tasks_is_cheap() {
    let (_dir, store) = store().await;
    for group in 0..20 {
        let ids: Vec<String> = (0..5_000).map(|number| format!("t{group}-{number}")).collect();
        store.insert_batch(ids.iter().map(|id| new_task(id)).collect(), Atomicity::All).await.unwrap();
        let published = ids.into_iter().map(|id| Published(id, 1)).collect();
        store.mark(published, HandedTo::Workers(NOW + group)).await.unwrap();
    }
    let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {UNHEARD}"));
    let plan = sqlx::query_as(explain).bind("default").bind(NOW).bind(0).bind(0).bind(10);
    let plan: Vec<(i64, i64, i64, String)> = plan.fetch_all(&store.readers).await.unwrap();
    let by_index = |step: &str| step.contains("USING INDEX tasks_at_broker (queue=? AND alive_at");
    assert!(matches!(&plan[..], [(.., step)] if by_index(step)), "{plan:?}");
    let start = Instant::now();
    let first = store.unheard("default", UnixMs::MAX, None, 1_000).await.unwrap();
    let next = store.unheard("default", UnixMs::MAX, first.last(), 1_000).await.unwrap();
    let none = store.unheard("default", NOW, None, 1_000).await.unwrap();
    println!("three looks took {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!((first.len(), next[0].id.as_str(), none.len()), (1_000, "t0-1000", 0));
}
