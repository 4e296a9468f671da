//! The outbox of callbacks, and the secrets.

use std::time::Duration;

use sqlx::ConnectOptions;
use tokio::time::timeout;

use super::*;
use crate::store::secret_at;

const EACH: u32 = 4;
const ROOM: u32 = 100;

fn called_back(id: &str, events: &[State], receiver: &str) -> NewTask {
    let (url, receiver) = (format!("{receiver}/hook"), receiver.to_owned());
    NewTask { callback: Some(Callback { url, events: events.to_vec(), receiver }), ..new_task(id) }
}

fn always(id: &str) -> NewTask {
    called_back(id, &[State::Success, State::Failure, State::Revoked], "https://a")
}

/// What is to be posted: of which tasks, and how each ended.
async fn outbox(store: &Store) -> Vec<(String, State)> {
    let mut all = Vec::new();
    for (id, _) in store.due_callbacks(UnixMs::MAX, &[], ROOM, ROOM).await.unwrap() {
        let row = store.callback(&id).await.unwrap().unwrap().row;
        all.push((row.accepted.id, row.state));
    }
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    all
}

async fn end(store: &Store, id: &str, report: Report) {
    record(store, [reply(id, report, Some(0), None)].into()).await.unwrap();
}

async fn only(store: &Store) -> DueCallback {
    let due = store.due_callbacks(UnixMs::MAX, &[], EACH, ROOM).await.unwrap();
    assert_eq!(due.len(), 1, "{due:?}");
    store.callback(&due[0].0).await.unwrap().unwrap()
}

#[tokio::test]
async fn every_way_to_end_is_to_be_posted_once() {
    let (_dir, store) = store().await;
    let ids = ["expired", "failed", "lost", "other", "purged", "revoked", "stopped", "succeeded"];
    for id in ids {
        let expires = (id == "expired").then_some(NOW + 5);
        let queue = if id == "purged" { "mail" } else { "default" }.to_owned();
        store.insert(NewTask { queue, expires, ..always(id) }).await.unwrap();
    }
    store.insert(new_task("without")).await.unwrap();
    store.insert(called_back("unwanted", &[State::Failure], "https://a")).await.unwrap();
    assert_eq!(outbox(&store).await, []);
    for _ in 0..2 {
        end(&store, "succeeded", success("1")).await;
        end(&store, "failed", Report::Failure(ErrorInfo::new("Oops", "x"))).await;
        end(&store, "stopped", Report::Revoked { reason: "revoked".to_owned() }).await;
        end(&store, "without", success("1")).await;
        end(&store, "unwanted", success("1")).await;
        store.revoke("revoked", &Whose::Anybody, NOW).await.unwrap();
        store.purge("mail", NOW).await.unwrap();
        store.tick(NOW + 10).await.unwrap();
    }
    for publish_number in 1..=3 {
        publish(&store, "lost", publish_number).await;
        let notice = LostNotice { task_id: "lost".into(), reason: LostReason::Rejected, retries: 0, publish: None };
        store.put_back(vec![notice], NOW).await.unwrap();
        store.tick(NOW + 1_000_000_000).await.unwrap();
    }
    let ended = outbox(&store).await;
    let expected = [
        ("expired", State::Revoked),
        ("failed", State::Failure),
        ("lost", State::Failure),
        ("purged", State::Revoked),
        ("revoked", State::Revoked),
        ("stopped", State::Revoked),
        ("succeeded", State::Success),
    ];
    assert_eq!(ended, expected.map(|(id, state)| (id.to_owned(), state)));
}

#[tokio::test]
async fn an_end_wakes_whoever_posts_it_after_its_commit() {
    let (_dir, store) = store().await;
    for task in [always("a"), new_task("b")] {
        store.insert(task).await.unwrap();
    }
    let woken = || timeout(Duration::from_millis(50), store.wake().callbacks.notified());
    end(&store, "b", success("1")).await;
    assert!(woken().await.is_err());
    end(&store, "a", success("1")).await;
    assert!(woken().await.is_ok());
}

#[tokio::test]
async fn a_receiver_takes_its_own_room_only() {
    let (_dir, store) = store().await;
    for number in 0..20 {
        let receiver = if number < 19 { "https://a" } else { "https://b" };
        store.insert(called_back(&format!("t{number:02}"), &[State::Success], receiver)).await.unwrap();
        end(&store, &format!("t{number:02}"), success("1")).await;
    }
    let due = store.due_callbacks(NOW + 1, &[], EACH, ROOM).await.unwrap();
    let mut receivers = Vec::new();
    let later = CallbackStanding { attempts: 1, error: Some("x".to_owned()), next_at: Some(NOW + 9) };
    for (id, is_failing) in &due {
        let receiver = store.callback(id).await.unwrap().unwrap().row.accepted.callback.unwrap().receiver;
        if receiver == "https://a" {
            store.mark_callback(id, later.clone()).await.unwrap();
        }
        receivers.push((receiver, *is_failing));
    }
    receivers.sort();
    let (a, b) = (("https://a".to_owned(), false), ("https://b".to_owned(), false));
    assert_eq!(receivers, [a.clone(), a.clone(), a.clone(), a, b]);
    let next = store.due_callbacks(NOW + 1, &[], EACH, ROOM).await.unwrap();
    let failing: Vec<bool> = next.iter().map(|(_, is_failing)| *is_failing).collect();
    assert_eq!(failing, [false, true, true, true, true], "who fails comes last");
    let in_hand: Vec<&str> = next.iter().map(|(id, _)| id.as_str()).collect();
    assert!(store.due_callbacks(NOW + 1, &in_hand, EACH, ROOM).await.unwrap().is_empty());
    assert_eq!(store.next_callback(NOW + 1).await.unwrap(), Some(NOW + 9));
    assert_eq!(store.due_callbacks(NOW + 1, &[], EACH, 2).await.unwrap().len(), 2);
}

#[tokio::test]
async fn what_came_of_an_attempt_is_shown_and_outlives_the_process() {
    let (dir, first) = store().await;
    first.insert(always("a")).await.unwrap();
    end(&first, "a", success("1")).await;
    let due = only(&first).await;
    assert!(due.id.starts_with("msg_") && due.attempts == 0 && row(&first, "a").await.callback.is_none());
    let failed = CallbackStanding { attempts: 1, error: Some("x".to_owned()), next_at: Some(NOW + 9) };
    first.mark_callback(&due.id, failed.clone()).await.unwrap();
    drop(first);
    let again = open(&dir).await;
    assert_eq!(row(&again, "a").await.callback, Some(failed));
    let tried = only(&again).await;
    assert_eq!((tried.id.as_str(), tried.attempts), (due.id.as_str(), 1));
    let delivered = CallbackStanding { attempts: 2, error: None, next_at: None };
    again.mark_callback(&due.id, delivered.clone()).await.unwrap();
    assert_eq!((outbox(&again).await, row(&again, "a").await.callback), (vec![], Some(delivered)));
}

#[tokio::test]
async fn an_end_is_posted_as_it_was_though_the_task_runs_again() {
    let (dir, store) = store().await;
    store.insert(always("a")).await.unwrap();
    end(&store, "a", Report::Failure(ErrorInfo::new("Oops", "first"))).await;
    let first = only(&store).await;
    let failed = CallbackStanding { attempts: 1, error: Some("x".to_owned()), next_at: Some(NOW + 9) };
    store.mark_callback(&first.id, failed).await.unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("errand.db"));
    let mut connection = options.connect().await.unwrap();
    let reopen = "UPDATE tasks SET state = 'RETRY', stage = 'waiting', retries = 1, finished_at = NULL, error = NULL";
    sqlx::query(reopen).execute(&mut connection).await.unwrap();
    record(&store, [reply("a", success("7"), Some(1), None)].into()).await.unwrap();

    let kept = store.callback(&first.id).await.unwrap().unwrap().row;
    assert_eq!((kept.state, kept.retries, kept.result.is_none()), (State::Failure, 0, true));
    assert!(kept.error.unwrap().get().contains("first"));
    assert_eq!(outbox(&store).await.len(), 2, "the second end is another message");
    let now = row(&store, "a").await;
    assert_eq!((now.state, now.callback), (State::Success, None));
}

#[tokio::test]
async fn what_is_not_posted_yet_is_not_pruned_but_forgotten_with_its_task() {
    let (_dir, store) = store().await;
    for id in ["a", "b"] {
        store.insert(always(id)).await.unwrap();
        end(&store, id, success("1")).await;
    }
    assert_eq!(store.prune(NOW + 10).await.unwrap(), 0);
    assert_eq!(store.forget("a", &Whose::Anybody).await.unwrap(), Forgotten::Done);
    let due = only(&store).await;
    assert_eq!(due.row.accepted.id, "b");
    store.mark_callback(&due.id, CallbackStanding { attempts: 1, error: None, next_at: None }).await.unwrap();
    assert_eq!(store.prune(NOW + 10).await.unwrap(), 1);
}

#[tokio::test]
async fn a_secret_is_made_once_and_signs_on_for_a_day_after_its_rotation() {
    let (dir, store) = store().await;
    let url = format!("sqlite:{}", dir.path().join("errand.db").display());
    let secret = |byte: u8| Secret(vec![byte; 32]);
    let at = |fresh: u8, rotates, now| {
        let url = url.clone();
        async move { secret_at(&url, "", &secret(fresh), rotates, now).await.unwrap().unwrap().0[0] }
    };
    let signing = async |now| -> Vec<u8> {
        store.secrets("", now).await.unwrap().into_iter().map(|Secret(bytes)| bytes[0]).collect()
    };
    assert!(signing(NOW).await.is_empty());
    store.make_secret("", secret(1), NOW).await.unwrap();
    store.make_secret("", secret(2), NOW).await.unwrap();
    store.make_secret("key", secret(9), NOW).await.unwrap();
    assert_eq!((at(3, false, NOW).await, signing(NOW).await), (1, vec![1]));
    assert_eq!((at(4, true, NOW).await, signing(NOW + 1).await), (4, vec![4, 1]));
    let day = 24 * 3_600 * 1_000;
    assert_eq!((signing(NOW + day - 1).await, signing(NOW + day).await), (vec![4, 1], vec![4]));
    assert_eq!((at(5, true, NOW + day).await, signing(NOW + day).await), (5, vec![5, 4]));

    // And where no producer has made the store yet.
    let fresh = TempDir::new().unwrap();
    let url = format!("sqlite:{}", fresh.path().join("errand.db").display());
    assert!(secret_at(&url, "nobody", &secret(6), false, NOW).await.unwrap().is_none());
    assert_eq!(secret_at(&url, "", &secret(6), false, NOW).await.unwrap().unwrap().0[0], 6);
    let secrets = open(&fresh).await.secrets("", NOW).await.unwrap();
    assert!(secrets == [secret(6)]);
}
