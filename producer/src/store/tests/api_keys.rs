//! API keys: whose a task is, and how much of it a key may have.

use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

use super::*;
use crate::key::{Scope, Token};

/// A key with these limits: its id.
async fn key(dir: &TempDir, limits: KeyLimits) -> String {
    let mut book = Keybook::open(&url(dir)).await.unwrap();
    let token = Token::generate().unwrap();
    book.add(&token, "test", &[Scope::Submit], limits).await.unwrap();
    token.id
}

fn url(dir: &TempDir) -> String {
    format!("sqlite:{}", dir.path().join("errand.db").display())
}

fn of(owner: &str, id: &str) -> NewTask {
    NewTask { owner: Some(owner.to_owned()), ..new_task(id) }
}

fn whose(owner: &str) -> Whose {
    Whose::Of(owner.into())
}

/// Unfinished tasks of the key and their bytes, as counted.
async fn used(store: &Store, id: &str) -> (i64, i64) {
    let keys = store.api_keys().await.unwrap();
    let key = keys.into_iter().find(|key| key.id == id).unwrap();
    (key.open_tasks, key.waiting_bytes)
}

/// Of `new_task`, as they are stored: `[1,2]` and `{}`.
const BYTES: i64 = 7;

#[tokio::test]
async fn to_another_a_task_is_as_good_as_absent() {
    let (dir, store) = store().await;
    let (one, other) = (key(&dir, KeyLimits::default()).await, key(&dir, KeyLimits::default()).await);
    store.insert(of(&one, "a")).await.unwrap();
    store.insert(new_task("nobody's")).await.unwrap();
    let stranger = whose(&other);
    for id in ["a", "nobody's"] {
        assert!(store.task(id, &stranger).await.unwrap().is_none());
        assert!(store.attempts(id, &stranger).await.unwrap().is_none());
        assert!(store.watch(id, stranger.clone()).unwrap().now().await.unwrap().is_none());
        assert_eq!(store.revoke(id, &stranger, NOW).await.unwrap(), Revocation::Unknown);
        assert_eq!(store.forget(id, &stranger).await.unwrap(), Forgotten::Unknown);
    }
    assert!(matches!(store.insert(of(&other, "a")).await, Err(StoreError::Taken)));
    let mut watch = store.watch("a", stranger).unwrap();
    assert_eq!(store.revoke("a", &whose(&one), NOW).await.unwrap(), Revocation::Never);
    assert!(watch.changed().await.unwrap().is_none(), "the news is told to its owner only");
    assert_eq!(store.forget("a", &whose(&one)).await.unwrap(), Forgotten::Done);
}

#[tokio::test]
async fn a_list_goes_through_the_tasks_of_its_key_only() {
    let (dir, store) = store().await;
    let (one, other) = (key(&dir, KeyLimits::default()).await, key(&dir, KeyLimits::default()).await);
    for number in 0..3_000 {
        let owner = if number % 1_000 == 0 { &one } else { &other };
        let task = NewTask { queue: "mail".to_owned(), ..of(owner, &format!("t{number}")) };
        store.insert_batch(vec![task], Atomicity::All).await.unwrap();
    }
    let list = async |owner, states: &[State], task: Option<&str>| {
        let (states, task) = (states.to_vec(), task.map(str::to_owned));
        let filter = Filter { states, task, whose: whose(owner), ..Filter::default() };
        let page = store.list(&filter, None, 10).await.unwrap();
        (page.rows.into_iter().map(|row| row.accepted.id).collect::<Vec<_>>(), page.next)
    };
    let own = (["t2000", "t1000", "t0"].map(str::to_owned).to_vec(), None);
    assert_eq!(list(&one, &[], None).await, own);
    assert_eq!(list(&one, &[State::Pending, State::Retry], None).await, own);
    assert_eq!(list(&one, &[State::Pending, State::Success], Some("add")).await, own);
    assert_eq!(list(&one, &[], Some("mul")).await, (Vec::new(), None));
    assert_eq!(list("nobody", &[], None).await, (Vec::new(), None));
}

#[tokio::test]
async fn what_is_unfinished_is_counted_whatever_ends_it_and_over_a_restart() {
    let (dir, store) = store().await;
    let id = key(&dir, KeyLimits::default()).await;
    for task in ["done", "revoked", "expired", "open", "edited"] {
        store.insert(NewTask { expires: (task == "expired").then_some(NOW + 5), ..of(&id, task) }).await.unwrap();
    }
    let child = NewTask { id: "child".to_owned(), ..new_task("child") };
    let child = Child { task: child, parent_id: "open".to_owned(), fault: None };
    store.record([child].into(), Arc::default()).await.unwrap();
    assert_eq!(row(&store, "child").await.accepted.owner.as_deref(), Some(id.as_str()));
    assert_eq!(used(&store, &id).await, (6, 6 * BYTES));
    store.revoke("revoked", &whose(&id), NOW).await.unwrap();
    store.tick(NOW + 6).await.unwrap();
    record(&store, [reply("done", success("1"), Some(0), None)].into()).await.unwrap();
    record(&store, [reply("done", success("1"), Some(0), None)].into()).await.unwrap();
    assert_eq!(used(&store, &id).await, (3, 3 * BYTES));
    store.forget("done", &Whose::Anybody).await.unwrap();
    drop(store);
    let mut connection = SqliteConnectOptions::new().filename(dir.path().join("errand.db")).connect().await.unwrap();
    let edit = "UPDATE tasks SET args = '[10, 20]' WHERE id = 'edited';
        UPDATE tasks SET finished_at = NULL WHERE id = 'revoked'; DELETE FROM tasks WHERE id = 'child'";
    sqlx::raw_sql(edit).execute(&mut connection).await.unwrap();
    let store = open(&dir).await;
    assert_eq!(used(&store, &id).await, (3, 3 * BYTES + 3));
}

#[tokio::test]
async fn no_more_tasks_get_in_than_the_key_may_have_and_children_do() {
    let (dir, store) = store().await;
    let two = key(&dir, KeyLimits { open_tasks: Some(2), ..KeyLimits::default() }).await;
    let free = key(&dir, KeyLimits::default()).await;
    let inserts = ["a", "b", "c", "d"].map(|id| store.insert(of(&two, id)));
    let verdicts = futures_util::future::join_all(inserts).await;
    let beyond = |verdict: &Result<(), StoreError>| matches!(verdict, Err(StoreError::Beyond(Excess::OpenTasks(2))));
    assert_eq!(verdicts.iter().map(beyond).collect::<Vec<_>>(), [false, false, true, true]);
    store.insert(of(&free, "e")).await.unwrap();
    let task = NewTask { id: "child".to_owned(), ..new_task("child") };
    let child = Child { task, parent_id: "a".to_owned(), fault: None };
    assert_eq!(store.record([child].into(), Arc::default()).await.unwrap().children, 1);
    record(&store, [reply("a", success("1"), Some(0), None)].into()).await.unwrap();
    assert!(beyond(&store.insert(of(&two, "c")).await), "the child is open");
    record(&store, [reply("child", success("1"), Some(0), None)].into()).await.unwrap();
    store.insert(of(&two, "c")).await.unwrap();
    assert_eq!(used(&store, &two).await, (2, 2 * BYTES));
}

#[tokio::test]
async fn a_batch_and_a_replay_know_the_limits() {
    let (dir, store) = store().await;
    let id = key(&dir, KeyLimits { waiting_bytes: Some(20), ..KeyLimits::default() }).await;
    let over = Placed::Beyond(Excess::WaitingBytes(20));
    let batch = |ids: [&str; 3]| ids.map(|task| of(&id, task)).to_vec();
    let whole = store.insert_batch(batch(["a", "b", "c"]), Atomicity::All).await.unwrap();
    assert_eq!((whole, store.outstanding()), (vec![Placed::Stored, Placed::Stored, over], 0));
    let named = |key: &str| IdempotencyKey { owner: id.clone(), key: key.to_owned(), fingerprint: "1".to_owned() };
    assert_eq!(store.insert_once(of(&id, "a"), named("k")).await.unwrap(), Accepted::Stored);
    let each = store.insert_batch(batch(["a", "b", "c"]), Atomicity::Each).await.unwrap();
    assert_eq!(each, [Placed::Taken, over, over], "what is taken counts until it is known to be");
    store.insert(of(&id, "b")).await.unwrap();
    let replayed = store.insert_once(of(&id, "d"), named("k")).await.unwrap();
    assert_eq!(replayed, Accepted::Replayed("a".to_owned()));
    let refused = [("d", "l"), ("e", "l")].map(|(task, key)| store.insert_once(of(&id, task), named(key)));
    for verdict in futures_util::future::join_all(refused).await {
        assert!(matches!(verdict, Err(StoreError::Beyond(_))), "{verdict:?}");
    }
    assert_eq!(store.replayed(&named("l"), NOW).await.unwrap(), None);
}

#[tokio::test]
async fn an_idempotency_key_is_its_owners() {
    let (_dir, store) = store().await;
    let named =
        |owner: &str| IdempotencyKey { owner: owner.to_owned(), key: "k".to_owned(), fingerprint: "1".to_owned() };
    let submits = [("a", "one"), ("b", "other"), ("c", "")];
    let verdicts = submits.map(|(id, owner)| store.insert_once(new_task(id), named(owner)));
    for verdict in futures_util::future::join_all(verdicts).await {
        assert_eq!(verdict.unwrap(), Accepted::Stored);
    }
    for (id, owner) in submits {
        assert_eq!(store.replayed(&named(owner), NOW).await.unwrap().as_deref(), Some(id));
    }
    assert_eq!(store.prune_keys(NOW + 2 * 24 * 60 * 60 * 1000).await.unwrap(), 3);
}

#[tokio::test]
async fn what_was_submitted_before_there_were_keys_is_kept() {
    let dir = TempDir::new().unwrap();
    let options = SqliteConnectOptions::new().filename(dir.path().join("errand.db")).create_if_missing(true);
    let mut connection = options.connect().await.unwrap();
    let mut before = sqlx::migrate!("migrations/sqlite");
    before.migrations = before.iter().filter(|migration| migration.version < 6).cloned().collect::<Vec<_>>().into();
    before.run(&mut connection).await.unwrap();
    let rows = "INSERT INTO tasks (id, task, queue, priority, args, kwargs, retry, created_at, stage, due_at)
            VALUES ('a', 'add', 'default', 0, '[]', '{}', '{}', 1, 'waiting', 1);
        INSERT INTO idempotency_keys VALUES ('k', '1', 'a', 1900000000000)";
    sqlx::raw_sql(rows).execute(&mut connection).await.unwrap();
    drop(connection);
    let store = open(&dir).await;
    let named =
        |owner: &str| IdempotencyKey { owner: owner.to_owned(), key: "k".to_owned(), fingerprint: "1".to_owned() };
    assert_eq!(store.replayed(&named(""), NOW).await.unwrap().as_deref(), Some("a"));
    assert_eq!(store.replayed(&named("one"), NOW).await.unwrap(), None);
    assert_eq!(row(&store, "a").await.accepted.owner, None);
}

#[tokio::test]
async fn a_replay_is_held_to_its_keys_limits() {
    let dir = TempDir::new().unwrap();
    let limits = KeyLimits { open_tasks: Some(2), waiting_bytes: Some(100), ..KeyLimits::default() };
    let owner = key(&dir, limits).await;
    let store = open(&dir).await;
    for id in ["a", "b", "c"] {
        store.insert(of(&owner, id)).await.unwrap();
        record(&store, [reply(id, report_of(State::Failure), None, None)].into()).await.unwrap();
    }
    let again = |id: &str, args: Option<String>| {
        let edit = args.map(|args| Edit { args: Some(RawValue::from_string(args).unwrap()), kwargs: None });
        store.replay(Replay { edit, ..super::replay::of(id, Route::Letter) })
    };
    let long = format!("[{:?}]", "x".repeat(100));
    assert_eq!(again("a", Some(long)).await.unwrap(), Replayed::Beyond(Excess::WaitingBytes(100)));
    assert_eq!(again("a", None).await.unwrap(), Replayed::Done);
    let pace = Pace { rate: Some(1.0), cap: 0, start: NOW + 100 };
    let bulk = store.replay_letters(&LetterFilter::default(), pace).await.unwrap();
    assert_eq!(bulk, Bulk { letters: 1, more: true, beyond: Some(Excess::OpenTasks(2)) });
    assert_eq!(again("c", None).await.unwrap(), Replayed::Beyond(Excess::OpenTasks(2)));
}

#[tokio::test]
async fn keys_are_made_and_revoked_while_the_store_is_in_use_and_before_there_is_one() {
    let dir = TempDir::new().unwrap();
    let first = key(&dir, KeyLimits::default()).await;
    let store = open(&dir).await;
    let second = key(&dir, KeyLimits { requests: Some(3), ..KeyLimits::default() }).await;
    let mut book = Keybook::open(&url(&dir)).await.unwrap();
    assert!(book.revoke(&first).await.unwrap() && !book.revoke("nobody").await.unwrap());
    let keys = store.api_keys().await.unwrap();
    let revoked: Vec<(&str, bool)> = keys.iter().map(|key| (key.id.as_str(), key.revoked_at.is_some())).collect();
    let mut expected = [(first.as_str(), true), (second.as_str(), false)];
    // Made in the same millisecond they stand by their ids.
    expected.sort_by_key(|(id, _)| keys.iter().position(|key| key.id == *id));
    assert_eq!(revoked, expected);
    assert_eq!(book.all().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_store_of_another_version_is_not_changed_under_its_owner() {
    let dir = TempDir::new().unwrap();
    let lock = std::fs::File::create(dir.path().join("errand.db.lock")).unwrap();
    lock.lock().unwrap();
    let Err(error) = Keybook::open(&url(&dir)).await else { panic!("opened") };
    assert!(error.to_string().contains("another producer uses this store"), "{error}");
}
