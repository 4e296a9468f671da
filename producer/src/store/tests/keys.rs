//! Idempotency keys, batches and what is deleted.

use super::*;

const DAY: i64 = 24 * 60 * 60 * 1000;

fn key(key: &str, fingerprint: &str) -> IdempotencyKey {
    IdempotencyKey { owner: String::new(), key: key.to_owned(), fingerprint: fingerprint.to_owned() }
}

fn at(id: &str, created_at: UnixMs) -> NewTask {
    NewTask { created_at, ..new_task(id) }
}

#[tokio::test]
async fn a_key_stands_for_one_task_in_one_commit_and_in_many() {
    let (dir, store) = store().await;
    let submits =
        [("a", "k", "1"), ("b", "k", "1"), ("c", "k", "2"), ("d", "l", "1"), ("a", "m", "1"), ("e", "m", "1")];
    let together = submits.map(|(id, name, fingerprint)| store.insert_once(new_task(id), key(name, fingerprint)));
    let verdicts = futures_util::future::join_all(together).await;
    let replayed = |id: &str| Accepted::Replayed(id.to_owned());
    assert_eq!((verdicts[0].clone().unwrap(), verdicts[3].clone().unwrap()), (Accepted::Stored, Accepted::Stored));
    assert_eq!(verdicts[1].clone().unwrap(), replayed("a"));
    assert!(matches!(verdicts[2], Err(StoreError::KeyReused)));
    assert!(matches!(verdicts[4], Err(StoreError::Taken)));
    assert_eq!(store.outstanding(), 2 + u64::from(verdicts[5].is_ok()));
    drop(store);
    let store = open(&dir).await;
    assert_eq!(store.insert_once(new_task("f"), key("k", "1")).await.unwrap(), replayed("a"));
    assert_eq!(store.replayed(&key("k", "1"), NOW).await.unwrap().as_deref(), Some("a"));
    assert!(matches!(store.replayed(&key("k", "2"), NOW).await, Err(StoreError::KeyReused)));
    assert!(
        store.task("b", &Whose::Anybody).await.unwrap().is_none()
            && store.task("f", &Whose::Anybody).await.unwrap().is_none()
    );
}

#[tokio::test]
async fn a_refused_task_leaves_its_key_free() {
    let (_dir, store) = store().await;
    store.insert(new_task("a")).await.unwrap();
    assert!(matches!(store.insert_once(new_task("a"), key("k", "1")).await, Err(StoreError::Taken)));
    assert_eq!(store.insert_once(new_task("b"), key("k", "2")).await.unwrap(), Accepted::Stored);
}

#[tokio::test]
async fn a_key_is_new_again_after_a_day() {
    let (_dir, store) = store().await;
    store.insert_once(at("a", NOW), key("k", "1")).await.unwrap();
    assert_eq!(store.replayed(&key("k", "1"), NOW + DAY - 1).await.unwrap().as_deref(), Some("a"));
    assert_eq!(store.replayed(&key("k", "2"), NOW + DAY).await.unwrap(), None);
    assert_eq!(store.insert_once(at("b", NOW + DAY), key("k", "2")).await.unwrap(), Accepted::Stored);
    assert_eq!(store.prune_keys(NOW + DAY).await.unwrap(), 0, "it was written anew");
    assert_eq!(store.prune_keys(NOW + 2 * DAY).await.unwrap(), 1);
}

#[tokio::test]
async fn what_is_deleted_frees_its_key_and_what_expires_does_not() {
    let (_dir, store) = store().await;
    for id in ["a", "b"] {
        store.insert_once(new_task(id), key(id, "1")).await.unwrap();
        record(&store, [reply(id, report_of(State::Retry), Some(0), None)].into()).await.unwrap();
        assert_eq!(store.forget(id, &Whose::Anybody).await.unwrap(), Forgotten::Open);
        record(&store, [reply(id, success("1"), Some(1), None)].into()).await.unwrap();
    }
    assert_eq!(store.forget("a", &Whose::Anybody).await.unwrap(), Forgotten::Done);
    assert_eq!(store.forget("a", &Whose::Anybody).await.unwrap(), Forgotten::Unknown);
    assert_eq!(store.replayed(&key("a", "2"), NOW).await.unwrap(), None);
    assert_eq!(store.prune(NOW + 2).await.unwrap(), 1);
    assert_eq!(store.replayed(&key("b", "1"), NOW).await.unwrap().as_deref(), Some("b"));
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM attempts").fetch_one(&store.readers).await.unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_batch_is_stored_whole_or_not_at_all_or_as_far_as_it_can_be() {
    let (_dir, store) = store().await;
    store.insert(new_task("b")).await.unwrap();
    let batch = || ["a", "b", "c"].map(new_task).to_vec();
    assert_eq!(
        store.insert_batch(batch(), Atomicity::All).await.unwrap(),
        [Placed::Stored, Placed::Taken, Placed::Stored]
    );
    assert_eq!(store.outstanding(), 1);
    assert_eq!(
        store.insert_batch(batch(), Atomicity::Each).await.unwrap(),
        [Placed::Stored, Placed::Taken, Placed::Stored]
    );
    assert_eq!(store.outstanding(), 3);
    let fresh = ["d", "e"].map(new_task).to_vec();
    assert_eq!(store.insert_batch(fresh, Atomicity::All).await.unwrap(), [Placed::Stored; 2]);
    assert_eq!((store.outstanding(), store.counts().await.unwrap().waiting), (5, 5));
}
