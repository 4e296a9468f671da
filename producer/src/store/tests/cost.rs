//! What lists and counts cost the tasks that pass through.

use std::time::{Duration, Instant};

use sqlx::ConnectOptions;

use super::*;

const TASKS: usize = 10_000;

/// Stores tasks, publishes and ends them, a thousand a commit: the time of storing, and of the rest.
async fn lives(store: &Store) -> (Duration, Duration) {
    let (mut stored, mut ended) = (Duration::ZERO, Duration::ZERO);
    for group in 0..TASKS / 1_000 {
        let ids: Vec<String> = (0..1_000).map(|number| format!("t{group}-{number}")).collect();
        let tasks = ids.iter().map(|id| NewTask { task: format!("task{}", id.len() % 7), ..new_task(id) }).collect();
        let start = Instant::now();
        store.insert_batch(tasks, Atomicity::All).await.unwrap();
        stored += start.elapsed();
        let published = ids.iter().map(|id| Published(id.clone(), 1)).collect();
        let ends: Vec<Recorded> = ids.iter().map(|id| reply(id, success("1"), Some(0), None)).collect();
        let start = Instant::now();
        store.mark(published, HandedTo::Workers(NOW)).await.unwrap();
        record(store, ends.into()).await.unwrap();
        ended += start.elapsed();
    }
    (stored, ended)
}

/// Opens a new store without what lists and counts need.
async fn bare() -> (TempDir, Store) {
    let (dir, store) = store().await;
    drop(store);
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("errand.db"));
    let mut connection = options.connect().await.unwrap();
    let without = "DROP INDEX tasks_by_state; DROP INDEX tasks_by_task; DROP INDEX tasks_by_queue;
        DROP TRIGGER tasks_counted; DROP TRIGGER tasks_moved; DROP TRIGGER tasks_forgotten";
    sqlx::raw_sql(without).execute(&mut connection).await.unwrap();
    drop(connection);
    let store = open(&dir).await;
    (dir, store)
}

#[tokio::test]
async fn lists_and_counts_cost_a_task_little() {
    let (_with, with) = store().await;
    let (_without, without) = bare().await;
    // Turn about, and the best of each: the disk is shared.
    let mut best = [(Duration::MAX, Duration::MAX); 2];
    for _ in 0..3 {
        for (best, store) in best.iter_mut().zip([&with, &without]) {
            let (stored, ended) = lives(store).await;
            *best = (best.0.min(stored), best.1.min(ended));
            for _ in 0..2 {
                store.prune(NOW + 10).await.unwrap();
            }
        }
    }
    let each = |time: Duration| time / u32::try_from(TASKS).unwrap();
    let [with, without] = best;
    println!(
        "stored: {:?} a task, {:?} without; ended: {:?}, {:?}",
        each(with.0),
        each(without.0),
        each(with.1),
        each(without.1)
    );
    assert!(with.0 < without.0 * 3 && with.1 < without.1 * 3, "{with:?} {without:?}");
}
