//! Tests of waking those who watch a task.

use super::*;

async fn news(watch: &mut Watch) -> Arc<TaskRow> {
    let changed = tokio::time::timeout(std::time::Duration::from_secs(10), watch.changed());
    changed.await.expect("no news").unwrap().expect("the task is gone")
}

#[tokio::test]
async fn each_report_of_one_commit_is_news_of_its_own() {
    let (_dir, store) = store().await;
    store.insert(new_task("a")).await.unwrap();
    let mut watch = store.watch("a", Whose::Anybody).unwrap();
    let progress = |current| Report::Progress(Progress { current, total: None, message: None });
    let batch = [
        reply("a", Report::Started, Some(0), Some(0)),
        reply("a", progress(1), Some(0), Some(1)),
        reply("a", progress(2), Some(0), Some(2)),
        reply("a", success("3"), Some(0), Some(3)),
    ];
    record(&store, batch.into()).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..4 {
        let row = news(&mut watch).await;
        seen.push((row.state, row.report_seq));
    }
    assert_eq!(seen, [(State::Started, 0), (State::Started, 1), (State::Started, 2), (State::Success, 3)]);
}

#[tokio::test]
async fn all_watchers_of_a_task_share_one_read() {
    let (_dir, store) = store().await;
    store.insert(NewTask { expires: Some(NOW + 50), ..new_task("a") }).await.unwrap();
    let mut watches = [(); 3].map(|()| store.watch("a", Whose::Anybody).unwrap());
    store.tick(NOW + 60).await.unwrap();
    let first = news(&mut watches[0]).await;
    assert_eq!(first.state, State::Revoked);
    for watch in &mut watches[1..] {
        assert!(Arc::ptr_eq(&news(watch).await, &first));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_during_a_commit_misses_nothing() {
    let (_dir, store) = store().await;
    for number in 0..200 {
        let id = format!("t{number}");
        store.insert(new_task(&id)).await.unwrap();
        let commit = {
            let (store, end) = (store.clone(), reply(&id, success("1"), Some(0), Some(0)));
            async move { record(&store, [end].into()).await.unwrap() }
        };
        let watch = async {
            let mut watch = store.watch(&id, Whose::Anybody).unwrap();
            let mut row = Arc::new(watch.now().await.unwrap().unwrap());
            while !row.state.is_terminal() {
                row = news(&mut watch).await;
            }
        };
        tokio::join!(commit, watch);
    }
}

#[tokio::test]
async fn watchers_are_bounded_and_one_that_leaves_frees_its_place() {
    let (_dir, store) = store().await;
    let mut watches: Vec<Watch> =
        (0..10_000).map(|number| store.watch(&format!("t{}", number % 9), Whose::Anybody).unwrap()).collect();
    assert!(store.watch("a", Whose::Anybody).is_err());
    watches.pop();
    let again = store.watch("a", Whose::Anybody).unwrap();
    assert!(store.watch("a", Whose::Anybody).is_err());
    drop((watches, again));
    assert!(
        store.watch("a", Whose::Anybody).is_ok() && !store.watches.is_watched("a"),
        "nothing is kept of what nobody watches"
    );
}
