//! Attempts: those that were followed by another are kept, the last is read from its task.

use super::*;

fn started(retries: u32, at: UnixMs) -> Recorded {
    Recorded { at, ..reply("a", Report::Started, Some(retries), Some(0)) }
}

fn retry(retries: u32, at: UnixMs) -> Recorded {
    Recorded { at, ..reply("a", report_of(State::Retry), Some(retries), Some(1)) }
}

async fn attempts(store: &Store) -> Vec<Attempt> {
    store.attempts("a", &Whose::Anybody).await.unwrap().unwrap()
}

/// Number, state, start and end of each.
async fn told(store: &Store) -> Vec<(u32, Option<State>, Option<i64>, Option<i64>)> {
    let after = |at: Option<UnixMs>| at.map(|at| at - NOW);
    let told = |one: &Attempt| (one.number, one.state, after(one.started_at), after(one.ended_at));
    attempts(store).await.iter().map(told).collect()
}

async fn rows(store: &Store) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM attempts").fetch_one(&store.readers).await.unwrap()
}

#[tokio::test]
async fn every_attempt_is_told_in_order() {
    let (_dir, store) = store().await;
    assert!(store.attempts("a", &Whose::Anybody).await.unwrap().is_none());
    store.insert(new_task("a")).await.unwrap();
    assert_eq!(told(&store).await, []);
    let first = (0, Some(State::Retry), Some(1), Some(2));
    record(&store, [started(0, NOW + 1)].into()).await.unwrap();
    assert_eq!(told(&store).await, [(0, Some(State::Started), Some(1), None)]);
    record(&store, [retry(0, NOW + 2), retry(0, NOW + 2)].into()).await.unwrap();
    assert_eq!(told(&store).await, [first]);
    record(&store, [started(1, NOW + 3)].into()).await.unwrap();
    assert_eq!(told(&store).await, [first, (1, Some(State::Started), Some(3), None)]);
    let end = Recorded { at: NOW + 4, ..reply("a", Report::Failure(error("no")), Some(1), Some(1)) };
    record(&store, [end].into()).await.unwrap();
    record(&store, [retry(7, NOW + 5)].into()).await.unwrap();
    assert_eq!(told(&store).await, [first, (1, Some(State::Failure), Some(3), Some(4))]);
    let all = attempts(&store).await;
    assert!(all[0].error.as_ref().unwrap().get().contains("again"));
    assert!(all[1].error.as_ref().unwrap().get().contains("no") && all[1].worker.as_deref() == Some("w@h"));
}

#[tokio::test]
async fn a_task_that_succeeds_at_once_costs_no_second_row() {
    let (_dir, store) = store().await;
    store.insert(new_task("a")).await.unwrap();
    record(&store, [started(0, NOW + 1), reply("a", success("1"), Some(0), Some(1))].into()).await.unwrap();
    assert_eq!(told(&store).await, [(0, Some(State::Success), Some(1), Some(1))]);
    assert_eq!(rows(&store).await, 0);
}

#[tokio::test]
async fn what_does_not_count_is_no_attempt() {
    let (_dir, store) = store().await;
    store.insert(new_task("a")).await.unwrap();
    record(&store, [started(2, NOW + 1), retry(1, NOW + 2), retry(2, NOW + 3), retry(2, NOW + 4)].into())
        .await
        .unwrap();
    let again = Recorded { at: NOW + 5, ..reply("a", report_of(State::Retry), Some(2), Some(9)) };
    record(&store, [again].into()).await.unwrap();
    assert_eq!(told(&store).await, [(2, Some(State::Retry), Some(1), Some(3))]);
    store.insert(NewTask { expires: Some(NOW + 5), ..new_task("b") }).await.unwrap();
    store.tick(NOW + 6).await.unwrap();
    assert!(store.attempts("b", &Whose::Anybody).await.unwrap().unwrap().is_empty(), "it expired before any");
}

#[tokio::test]
async fn a_loss_is_an_attempt_that_comes_again() {
    let (_dir, store) = store().await;
    store.insert(new_task("a")).await.unwrap();
    for number in 1..=3 {
        publish(&store, "a", number).await;
        if number == 2 {
            record(&store, [started(0, NOW + 1)].into()).await.unwrap();
        }
        assert_eq!(store.put_back(vec![lost(Some(number))], NOW + 2).await.unwrap(), 1);
        store.tick(NOW + 60_000).await.unwrap();
    }
    let unseen = (0, None, None, Some(2));
    let seen = (0, None, Some(1), Some(2));
    let told = told(&store).await;
    assert_eq!((told.len(), told[0], told[1], row(&store, "a").await.state), (3, unseen, seen, State::Failure));
}

#[tokio::test]
async fn the_latest_fifty_are_kept() {
    let (_dir, store) = store().await;
    store.insert(new_task("a")).await.unwrap();
    for retries in 0..80 {
        record(&store, [retry(retries, NOW + i64::from(retries))].into()).await.unwrap();
    }
    record(&store, [reply("a", success("1"), Some(80), None)].into()).await.unwrap();
    let told: Vec<u32> = attempts(&store).await.iter().map(|attempt| attempt.number).collect();
    assert_eq!((told, rows(&store).await), ((31..=80).collect(), 50));
}
