//! Lists and counts: right, and at no cost that grows with the table.

use std::time::{Duration, Instant};

use sqlx::{ConnectOptions, SqliteConnection};

use super::*;

const MANY: i64 = 1_000_000;
const FEW: i64 = 10_000;

pub(super) async fn connect(dir: &TempDir) -> SqliteConnection {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("errand.db"));
    options.pragma("synchronous", "off").connect().await.unwrap()
}

/// Ended tasks number `from` to `to` and the last of them open: of each thousand one is a failure, of each hundred one is
/// in `mail`.
async fn fill(connection: &mut SqliteConnection, from: i64, to: i64) {
    let fill = "INSERT INTO tasks (id, task, queue, priority, args, kwargs, retry, created_at, stage, due_at, state, finished_at)
        WITH RECURSIVE n (i) AS (SELECT ?1 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?2)
        SELECT 't' || i, 'task' || (i % 10), iif(i % 100 = 0, 'mail', 'default'), 0, '[1, 2]', '{}', '{}', ?3 + i,
            iif(i + 10 < ?2, 'done', 'queued'), ?3, iif(i + 10 >= ?2, 'STARTED', iif(i % 1000 = 7, 'FAILURE', 'SUCCESS')),
            iif(i + 10 < ?2, ?3 + i, NULL)
        FROM n";
    sqlx::query(fill).bind(from).bind(to).bind(NOW).execute(connection).await.unwrap();
}

fn filter(states: &[State], task: Option<&str>, queue: Option<&str>, since: Option<UnixMs>) -> Filter {
    Filter {
        states: states.to_vec(),
        task: task.map(str::to_owned),
        queue: queue.map(str::to_owned),
        since,
        whose: Whose::Anybody,
    }
}

/// The ids of all pages, and how many pages there were.
async fn all(store: &Store, filter: &Filter, limit: usize) -> (Vec<String>, usize) {
    let (mut ids, mut before, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = store.list(filter, before, limit).await.unwrap();
        assert!(page.rows.len() <= limit);
        pages += 1;
        ids.extend(page.rows.into_iter().map(|row| row.accepted.id));
        match page.next {
            Some(next) => before = Some(next),
            None => return (ids, pages),
        }
    }
}

#[tokio::test]
async fn every_filter_lists_what_matches_newest_first() {
    let (dir, store) = store().await;
    let mut connection = connect(&dir).await;
    fill(&mut connection, 0, 12_000).await;
    let ended = |i: &i64| *i < 11_990;
    let expected = |matches: &dyn Fn(&i64) -> bool| -> Vec<String> {
        (0..12_000).rev().filter(|i| matches(i)).map(|i| format!("t{i}")).collect()
    };
    let failed = |i: &i64| ended(i) && i % 1000 == 7;
    let cases: [(Filter, Vec<String>); 9] = [
        (Filter::default(), expected(&|_| true)),
        (filter(&[State::Failure], None, None, None), expected(&failed)),
        (filter(&[State::Failure, State::Started], None, None, None), expected(&|i| failed(i) || !ended(i))),
        (filter(&[State::Success], None, Some("mail"), None), expected(&|i| ended(i) && !failed(i) && i % 100 == 0)),
        (filter(&[], Some("task3"), None, None), expected(&|i| i % 10 == 3)),
        (filter(&[], None, Some("default"), None), expected(&|i| i % 100 != 0)),
        (
            filter(&[State::Failure], Some("task7"), Some("default"), Some(NOW + 5_000)),
            expected(&|i| failed(i) && *i >= 5_000),
        ),
        (filter(&[], None, None, Some(NOW + 11_000)), expected(&|i| *i >= 11_000)),
        (filter(&[State::Revoked], None, None, None), vec![]),
    ];
    for (filter, expected) in cases {
        for limit in [7, 1_000] {
            assert_eq!(all(&store, &filter, limit).await.0, expected, "{filter:?}");
        }
    }
    let nothing = filter(&[State::Success], Some("never"), Some("default"), None);
    assert_eq!(all(&store, &nothing, 50).await, (vec![], 1), "no row has the name");
    let since = |since| filter(&[State::Revoked, State::Success], None, Some("default"), Some(since));
    assert_eq!(all(&store, &since(NOW + 12_000), 50).await, (vec![], 7), "2,000 rows a page");
    assert_eq!(all(&store, &since(NOW + 4_000_000), 50).await, (vec![], 1), "none can be so new");
}

#[tokio::test]
async fn a_list_is_cut_where_its_bytes_end() {
    let (_dir, store) = store().await;
    for id in ["a", "b", "c"] {
        let args = RawValue::from_string(format!("[\"{}\"]", "x".repeat(5_000_000))).unwrap();
        store.insert(NewTask { args, ..new_task(id) }).await.unwrap();
    }
    let (ids, pages) = all(&store, &Filter::default(), 50).await;
    assert_eq!((ids, pages), (vec!["c".to_owned(), "b".to_owned(), "a".to_owned()], 3));
}

/// The median of some runs of every kind of page, and of the counts.
async fn measure(store: &Store, rows: i64) -> Vec<(String, Duration)> {
    let recent = NOW + rows - 100;
    let wishes = [
        (Filter::default(), None),
        (Filter::default(), Some(rows / 2)),
        (filter(&[State::Failure], None, None, None), None),
        (filter(&[State::Failure, State::Started, State::Revoked], Some("task7"), None, None), None),
        (filter(&[State::Revoked], None, None, None), None),
        (filter(&[], Some("task3"), None, None), None),
        (filter(&[State::Success], Some("never"), None, None), None),
        (filter(&[State::Success], Some("task3"), Some("mail"), None), None),
        (filter(&[], None, Some("mail"), None), None),
        (filter(&[], None, None, Some(recent)), None),
    ];
    let mut figures = Vec::new();
    for (filter, before) in wishes {
        let mut times = Vec::new();
        for _ in 0..9 {
            let start = Instant::now();
            store.list(&filter, before, 50).await.unwrap();
            times.push(start.elapsed());
        }
        times.sort();
        figures.push((format!("{filter:?} before {}", before.is_some()), times[4]));
    }
    let start = Instant::now();
    store.counts().await.unwrap();
    figures.push(("counts".to_owned(), start.elapsed()));
    figures
}

#[tokio::test]
async fn a_page_and_the_counts_cost_at_a_million_rows_what_they_cost_at_ten_thousand() {
    let (dir, store) = store().await;
    let mut connection = connect(&dir).await;
    fill(&mut connection, 0, FEW).await;
    let few = measure(&store, FEW).await;
    let start = Instant::now();
    fill(&mut connection, FEW, MANY).await;
    println!("filled in {:?}", start.elapsed());
    let many = measure(&store, MANY).await;
    for ((what, few), (_, many)) in few.into_iter().zip(many) {
        println!("{few:>12?} at {FEW}, {many:>12?} at {MANY}: {what}");
        // A scan would cost a hundred times as much.
        assert!(many < few * 10 + Duration::from_millis(150), "{what}: {few:?} and {many:?}");
    }
    let counts = store.counts().await.unwrap();
    assert_eq!((counts.accepted, counts.running), (1_000_000, 20));
    assert_eq!(counts.success + counts.failure, 999_980);
}

/// The sum is what was accepted, and every count is that of the rows.
pub(super) async fn assert_sums(store: &Store, accepted: u64) -> Counts {
    let counts = store.counts().await.unwrap();
    let open = counts.scheduled + counts.waiting + counts.queued + counts.running + counts.retrying;
    let ended = counts.success + counts.failure + counts.revoked;
    assert_eq!((counts.accepted, open + ended), (accepted, accepted), "{counts:?}");
    let count = "SELECT count(*) FILTER (WHERE stage = 'scheduled'), count(*) FILTER (WHERE stage = 'waiting'),
        count(*) FILTER (WHERE stage = 'queued'), count(*) FILTER (WHERE stage = 'retrying'),
        count(*) FILTER (WHERE stage = 'done') FROM tasks";
    let rows: (u64, u64, u64, u64, u64) = sqlx::query_as(count).fetch_one(&store.readers).await.unwrap();
    let counted = (counts.scheduled, counts.waiting, counts.queued + counts.running, counts.retrying);
    assert_eq!((rows.0, rows.1, rows.2, rows.3), counted);
    assert_eq!(rows.4, ended - counts.forgotten);
    counts
}

#[tokio::test]
async fn what_was_accepted_is_the_sum_at_every_step() {
    let (_dir, store) = store().await;
    for id in ["a", "b", "c", "d"] {
        store.insert(new_task(id)).await.unwrap();
    }
    store.insert(NewTask { expires: Some(NOW + 1), eta: Some(NOW + 9), ..new_task("e") }).await.unwrap();
    assert_eq!(assert_sums(&store, 5).await.scheduled, 1);
    for id in ["a", "b", "c"] {
        publish(&store, id, 1).await;
    }
    assert_eq!(assert_sums(&store, 5).await.queued, 3);
    record(&store, [reply("a", Report::Started, Some(0), Some(0))].into()).await.unwrap();
    assert_eq!(assert_sums(&store, 5).await.running, 1);
    record(&store, [reply("a", report_of(State::Retry), Some(0), Some(1))].into()).await.unwrap();
    assert_eq!(assert_sums(&store, 5).await.retrying, 1);
    let ends = [reply("a", success("1"), Some(1), None), reply("b", report_of(State::Failure), Some(0), None)];
    record(&store, ends.into()).await.unwrap();
    store.put_back(vec![LostNotice { task_id: "c".to_owned(), ..lost(Some(1)) }], NOW).await.unwrap();
    store.tick(NOW + 5).await.unwrap();
    let counts = assert_sums(&store, 5).await;
    assert_eq!((counts.success, counts.failure, counts.revoked), (1, 1, 1));
    store.forget("a", &Whose::Anybody).await.unwrap();
    assert_eq!(assert_sums(&store, 5).await.forgotten, 1);
    store.prune(NOW + 60_000).await.unwrap();
    let counts = assert_sums(&store, 5).await;
    assert_eq!((counts.forgotten, counts.success, counts.waiting + counts.scheduled), (3, 1, 2));
}
