//! Children: rows that running tasks make, once, and never for a stranger.

use super::*;

fn child(id: &str, parent_id: &str) -> Child {
    Child { task: new_task(id), parent_id: parent_id.to_owned(), fault: None }
}

fn bad(id: &str, parent_id: &str) -> Child {
    let fault = Some(ErrorInfo::new("InvalidSubmission", "queue: is none of QUEUES"));
    Child { fault, ..child(id, parent_id) }
}

async fn take_in(store: &Store, children: Vec<Child>) -> Counted {
    store.record(children.into(), Arc::default()).await.unwrap()
}

fn counted(children: u64, orphans: &[usize]) -> Counted {
    Counted { children, reports: 0, orphans: orphans.to_vec() }
}

#[tokio::test]
async fn a_child_is_there_when_its_parent_has_ended() {
    let (_dir, store) = store().await;
    store.insert(new_task("p")).await.unwrap();
    let mut relay = store.wake().due.subscribe();
    relay.mark_unchanged();
    let later = Child { task: NewTask { eta: Some(NOW + 100), ..new_task("later") }, ..child("later", "p") };
    let reports = [reply("p", success("1"), Some(0), None), reply("c", Report::Started, Some(0), None)];
    let both = store.record([child("c", "p"), later].into(), reports.into()).await.unwrap();
    assert_eq!(both, Counted { children: 2, reports: 2, orphans: vec![] });
    assert_eq!((row(&store, "p").await.state, row(&store, "c").await.state), (State::Success, State::Started));
    assert_eq!((row(&store, "later").await.stage, store.outstanding()), (Stage::Scheduled, 1));
    assert!(relay.has_changed().unwrap());
    store.wake().clock.notified().await;
    assert_eq!(store.next_tick().await.unwrap(), Some(NOW + 100));
}

#[tokio::test]
async fn a_child_knows_its_parent_and_the_root_of_its_parents_row() {
    let dir = TempDir::new().unwrap();
    let first = open(&dir).await;
    first.insert(new_task("p")).await.unwrap();
    take_in(&first, vec![child("c", "p")]).await;
    take_in(&first, vec![child("g", "c")]).await;
    drop(first);
    let store = open(&dir).await;
    let of = |id: &str| Some(Parent { id: id.to_owned(), root_id: "p".to_owned() });
    assert_eq!(row(&store, "p").await.accepted.parent, None);
    assert_eq!(row(&store, "c").await.accepted.parent, of("p"));
    assert_eq!(row(&store, "g").await.accepted.parent, of("c"));
    let due = store.due("default", 9, usize::MAX).await.unwrap();
    assert_eq!(due.into_iter().map(|task| task.parent).collect::<Vec<_>>(), [None, of("p"), of("c")]);
    assert_eq!(take_in(&store, vec![child("c", "p")]).await, counted(0, &[]), "delivered again after the restart");
    assert_eq!(store.outstanding(), 3);
}

#[tokio::test]
async fn a_parent_that_ran_twice_has_each_child_once() {
    let (_dir, store) = store().await;
    store.insert(new_task("p")).await.unwrap();
    assert_eq!(take_in(&store, vec![child("c", "p"), child("c", "p"), bad("c", "p")]).await, counted(1, &[]));
    record(&store, [reply("c", success("1"), Some(0), None)].into()).await.unwrap();
    let other = Child { task: NewTask { priority: 9, ..new_task("c") }, ..child("c", "p") };
    assert_eq!(take_in(&store, vec![other, bad("c", "p"), child("p", "p")]).await, counted(0, &[]));
    let ended = row(&store, "c").await;
    assert_eq!((ended.state, ended.accepted.priority, store.outstanding()), (State::Success, 0, 1));
    assert_eq!(row(&store, "p").await.state, State::Pending, "a fault does not end a task that is there");
}

#[tokio::test]
async fn a_child_of_a_stranger_makes_no_row() {
    let (_dir, store) = store().await;
    store.insert(new_task("p")).await.unwrap();
    let children = vec![child("x", "ghost"), child("c", "p"), bad("y", "ghost"), child("self", "self")];
    assert_eq!(take_in(&store, children).await, counted(1, &[0, 2, 3]));
    for id in ["x", "y", "self", "ghost"] {
        assert!(store.task(id, &Whose::Anybody).await.unwrap().is_none(), "{id}");
    }
    assert_eq!(store.outstanding(), 2);
}

#[tokio::test]
async fn a_child_that_cannot_be_accepted_is_a_failure_at_once() {
    let (_dir, store) = store().await;
    store.insert(new_task("p")).await.unwrap();
    let unshowable = NewTask { task: "a\0\u{1b}b".to_owned(), queue: "\0\"\\".to_owned(), ..new_task("d") };
    let unshowable = Child { task: unshowable, ..bad("d", "p") };
    assert_eq!(take_in(&store, vec![bad("c", "p"), unshowable]).await, counted(2, &[]));
    assert_eq!(row(&store, "d").await.state, State::Failure);
    let failed = row(&store, "c").await;
    assert_eq!((failed.state, failed.stage, failed.finished_at), (State::Failure, Stage::Done, Some(NOW)));
    assert!(failed.error.unwrap().get().contains("InvalidSubmission"));
    assert!(store.letter("c", &Whose::Anybody).await.unwrap().is_none(), "what was never accepted was not given up");
    assert_eq!(store.replay(replay::of("c", Route::Task)).await.unwrap(), Replayed::NeverAccepted);
    assert_eq!(store.replay(replay::of("c", Route::Letter)).await.unwrap(), Replayed::Unknown);
    assert_eq!((store.outstanding(), store.due("default", 9, usize::MAX).await.unwrap().len()), (1, 1));
}

#[tokio::test]
async fn children_are_found_by_their_parent() {
    let (_dir, store) = store().await;
    let explain = "EXPLAIN QUERY PLAN SELECT id FROM tasks WHERE parent_id = 'p'";
    let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(explain).fetch_all(&store.readers).await.unwrap();
    assert!(plan.iter().any(|step| step.3.contains("tasks_children (parent_id=?)")), "{plan:?}");
}
