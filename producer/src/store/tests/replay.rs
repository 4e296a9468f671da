//! Dead letters and what leads out of them.

use std::time::{Duration, Instant};

use super::list::{assert_sums, connect};
use super::*;
use crate::store::dead_letters::LetterPlace;

/// A replay of that task.
pub(super) fn of(id: &str, route: Route) -> Replay {
    Replay { id: id.to_owned(), route, whose: Whose::Anybody, edit: None, now: NOW + 100 }
}

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap()
}

fn at_once(start: UnixMs) -> Pace {
    Pace { rate: None, cap: u64::MAX, start }
}

async fn fail(store: &Store, id: &str, retries: u32) {
    record(store, [reply(id, report_of(State::Failure), Some(retries), None)].into()).await.unwrap();
}

/// A task that was published once and failed.
async fn failed(store: &Store, task: NewTask) {
    let id = task.id.clone();
    store.insert(task).await.unwrap();
    publish(store, &id, 1).await;
    fail(store, &id, 0).await;
}

#[tokio::test]
async fn what_is_said_of_another_life_counts_for_nothing() {
    let (_dir, store) = store().await;
    failed(&store, new_task("a")).await;
    store.replay(of("a", Route::Task)).await.unwrap();
    let due = store.take_due("default", 10, usize::MAX).await.unwrap().tasks;
    publish(&store, "a", due[0].publish).await;
    let said = |since| {
        let Recorded { reply, at, .. } = reply("a", success("7"), Some(1), None);
        Recorded::now(Reply { since: Some(since), ..reply }, at)
    };
    // The run of the life before went on, failed, and was retried under the number that the replay has.
    assert_eq!(record(&store, [said(NOW)].into()).await.unwrap(), 0);
    assert_eq!(record(&store, [said(due[0].since)].into()).await.unwrap(), 1);
}

#[tokio::test]
async fn a_replayed_task_is_reached_by_nothing_of_its_life_before() {
    let (_dir, store) = store().await;
    failed(&store, new_task("a")).await;
    assert_eq!(store.replay(of("a", Route::Letter)).await.unwrap(), Replayed::Done);
    let again = row(&store, "a").await;
    assert_eq!((again.state, again.stage, again.retries, again.report_seq), (State::Pending, Stage::Waiting, 1, 0));
    assert!(again.error.is_none() && again.worker.is_none() && again.finished_at.is_none());
    assert_eq!((store.outstanding(), assert_sums(&store, 1).await.waiting), (1, 1));
    // The relay may have published it without having marked it yet.
    publish(&store, "a", 2).await;
    assert_eq!(row(&store, "a").await.stage, Stage::Waiting, "a mark of a publish before is not for it");
    assert_eq!(store.put_back(vec![lost(Some(2)), lost(Some(1))], NOW).await.unwrap(), 0);
    for state in [State::Started, State::Retry, State::Success, State::Failure, State::Revoked] {
        let late = [reply("a", report_of(state), Some(0), Some(9))];
        assert_eq!(record(&store, late.into()).await.unwrap(), 0, "{state}");
    }
    assert_eq!(store.prune(NOW + 1_000_000).await.unwrap(), 0, "it has not ended");
    let due = store.take_due("default", 10, usize::MAX).await.unwrap().tasks;
    assert_eq!((due[0].retries, due[0].publish, due[0].since), (1, 3, NOW + 100));
    publish(&store, "a", 3).await;
    record(&store, [reply("a", success("7"), Some(1), None)].into()).await.unwrap();
    let ended = row(&store, "a").await;
    assert_eq!((ended.state, ended.retries, store.outstanding()), (State::Success, 1, 0));
    assert_eq!(assert_sums(&store, 1).await.success, 1);
}

#[tokio::test]
async fn of_many_replays_at_once_one_is_made_and_each_state_has_its_answer() {
    let (_dir, store) = store().await;
    failed(&store, new_task("a")).await;
    let all = futures_util::future::join_all((0..20).map(|_| store.replay(of("a", Route::Letter)))).await;
    let done = all.iter().filter(|replayed| matches!(replayed, Ok(Replayed::Done))).count();
    let already = all.iter().filter(|replayed| matches!(replayed, Ok(Replayed::Already))).count();
    assert_eq!((done, already, row(&store, "a").await.retries), (1, 19, 1));
    let edit = Some(Edit { args: Some(raw("[]")), kwargs: None });
    for route in [Route::Task, Route::Letter] {
        let late = Replay { edit: edit.clone(), ..of("a", route) };
        assert_eq!(store.replay(late).await.unwrap(), Replayed::Open, "an edit is made or refused");
    }
    for id in ["open", "revoked", "done", "dismissed"] {
        store.insert(new_task(id)).await.unwrap();
    }
    store.revoke("revoked", &Whose::Anybody, NOW).await.unwrap();
    record(&store, [reply("done", success("1"), Some(0), None)].into()).await.unwrap();
    fail(&store, "dismissed", 0).await;
    assert!(store.dismiss("dismissed", &Whose::Anybody, NOW).await.unwrap());
    assert!(
        !store.dismiss("dismissed", &Whose::Anybody, NOW).await.unwrap()
            && !store.dismiss("open", &Whose::Anybody, NOW).await.unwrap()
    );
    let cases = [
        ("ghost", Replayed::Unknown, Replayed::Unknown),
        ("open", Replayed::Unknown, Replayed::Open),
        ("done", Replayed::Unknown, Replayed::Succeeded),
        ("revoked", Replayed::Unknown, Replayed::Done),
        ("dismissed", Replayed::Unknown, Replayed::Done),
    ];
    for (id, as_letter, as_task) in cases {
        assert_eq!(store.replay(of(id, Route::Letter)).await.unwrap(), as_letter, "{id}");
        assert_eq!(store.replay(of(id, Route::Task)).await.unwrap(), as_task, "{id}");
    }
    fail(&store, "dismissed", 1).await;
    assert!(store.letter("dismissed", &Whose::Anybody).await.unwrap().is_some(), "it was given up anew");
    assert_sums(&store, 5).await;
}

#[tokio::test]
async fn what_was_revoked_is_alive_since_later_and_is_told_no_more() {
    let (_dir, store) = store().await;
    store.insert(new_task("a")).await.unwrap();
    publish(&store, "a", 1).await;
    // The clock was set back meanwhile.
    store.revoke("a", &Whose::Anybody, NOW + 5_000).await.unwrap();
    record(&store, [reply("a", report_of(State::Revoked), Some(0), None)].into()).await.unwrap();
    assert_eq!(store.replay(of("a", Route::Task)).await.unwrap(), Replayed::Done);
    assert_eq!(store.take_due("default", 10, usize::MAX).await.unwrap().tasks[0].since, NOW + 5_001);
    assert_eq!((store.revoked_before(i64::MAX).await.unwrap().len(), row(&store, "a").await.revoked_at), (0, None));
}

#[tokio::test]
async fn a_revocation_between_two_attempts_ends_the_next_so_that_a_replay_is_another() {
    let (_dir, store) = store().await;
    store.insert(new_task("a")).await.unwrap();
    publish(&store, "a", 1).await;
    record(&store, [reply("a", report_of(State::Retry), Some(0), Some(0))].into()).await.unwrap();
    let notice = LostNotice { retries: 1, ..lost(Some(1)) };
    assert_eq!(store.put_back(vec![notice], NOW).await.unwrap(), 1);
    store.revoke("a", &Whose::Anybody, NOW).await.unwrap();
    assert_eq!((row(&store, "a").await.state, row(&store, "a").await.retries), (State::Revoked, 1));
    store.replay(of("a", Route::Task)).await.unwrap();
    record(&store, [reply("a", report_of(State::Revoked), Some(1), None)].into()).await.unwrap();
    assert_eq!((row(&store, "a").await.state, row(&store, "a").await.retries), (State::Pending, 2));
}

#[tokio::test]
async fn the_attempts_say_what_was_replayed_and_how_it_was_called_before() {
    let (_dir, store) = store().await;
    failed(&store, new_task("a")).await;
    let edit = Some(Edit { args: Some(raw("[3, 4]")), kwargs: None });
    store.replay(Replay { edit, ..of("a", Route::Letter) }).await.unwrap();
    let told = async |store: &Store| {
        let all = store.attempts("a", &Whose::Anybody).await.unwrap().unwrap();
        let brief = |attempt: &Attempt| (attempt.number, attempt.state, attempt.provenance.as_ref().map(|p| p.route));
        all.iter().map(brief).collect::<Vec<_>>()
    };
    let first = (0, Some(State::Failure), None);
    assert_eq!(told(&store).await, [first, (1, Some(State::Pending), Some(Route::Letter))]);
    let all = store.attempts("a", &Whose::Anybody).await.unwrap().unwrap();
    assert!(all[0].error.as_ref().is_some_and(|error| error.get().contains("no")) && all[0].ended_at.is_some());
    let before = all[1].provenance.as_ref().and_then(|provenance| provenance.before.as_ref()).unwrap();
    assert_eq!((before.0.get(), before.1.get()), ("[1,2]", "{}"));
    let row = row(&store, "a").await;
    assert_eq!((row.accepted.args.get(), row.accepted.kwargs.get()), ("[3, 4]", "{}"));
    fail(&store, "a", 1).await;
    store.replay(of("a", Route::Task)).await.unwrap();
    let last = (2, Some(State::Pending), Some(Route::Task));
    assert_eq!(told(&store).await, [first, (1, Some(State::Failure), Some(Route::Letter)), last]);
    assert!(
        store.attempts("a", &Whose::Anybody).await.unwrap().unwrap()[2].provenance.as_ref().unwrap().before.is_none()
    );
    fail(&store, "a", 2).await;
    store.forget("a", &Whose::Anybody).await.unwrap();
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM replays").fetch_one(&store.readers).await.unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn an_expiry_that_has_passed_is_lifted_and_another_stays() {
    let (_dir, store) = store().await;
    for (id, expires) in [("past", NOW + 50), ("later", NOW + 5_000)] {
        failed(&store, NewTask { expires: Some(expires), ..new_task(id) }).await;
        store.replay(of(id, Route::Task)).await.unwrap();
    }
    store.tick(NOW + 200).await.unwrap();
    let rows = [row(&store, "past").await, row(&store, "later").await];
    assert_eq!(rows.each_ref().map(|row| row.accepted.expires), [None, Some(NOW + 5_000)]);
    assert!(rows.iter().all(|row| row.state == State::Pending));
}

#[tokio::test]
async fn a_rate_is_kept_by_the_store_and_what_is_not_due_was_never_published() {
    let dir = TempDir::new().unwrap();
    let first = open(&dir).await;
    for number in 0..10 {
        failed(&first, new_task(&number.to_string())).await;
    }
    let pace = Pace { rate: Some(4.0), ..at_once(NOW + 1_000) };
    assert_eq!(
        first.replay_letters(&LetterFilter::default(), pace).await.unwrap(),
        Bulk { letters: 10, more: false, beyond: None }
    );
    assert_eq!(first.replay_letters(&LetterFilter::default(), pace).await.unwrap(), Bulk::default());
    drop(first);
    let store = open(&dir).await;
    assert_eq!((store.outstanding(), assert_sums(&store, 10).await.scheduled), (1, 9));
    // A stock worker's reply names no attempt.
    assert_eq!(record(&store, [reply("9", success("1"), None, None)].into()).await.unwrap(), 0);
    for (after, due) in [(0, 1), (250, 2), (1_000, 5), (2_249, 9), (2_250, 10)] {
        store.tick(NOW + 1_000 + after).await.unwrap();
        let ids = store.due("default", 20, usize::MAX).await.unwrap();
        assert_eq!((ids.len(), store.outstanding()), (due, due as u64), "after {after} ms");
    }
}

#[tokio::test]
async fn a_cap_and_a_count_are_kept() {
    let (_dir, store) = store().await;
    for number in 0..10 {
        failed(&store, new_task(&number.to_string())).await;
    }
    let all = LetterFilter::default();
    let ten = Bulk { letters: 10, more: false, beyond: None };
    assert_eq!(store.count_letters(&all, NOW + 5).await.unwrap(), ten);
    let full = Pace { cap: 9, ..at_once(NOW + 5) };
    assert_eq!(store.replay_letters(&all, full).await.unwrap(), Bulk { letters: 9, more: true, beyond: None });
    assert_eq!(store.replay_letters(&all, full).await.unwrap(), Bulk { letters: 0, more: true, beyond: None });
    assert_eq!((store.outstanding(), store.letters(&all, None, 50).await.unwrap().rows.len()), (9, 1));
    assert_eq!(row(&store, "9").await.state, State::Failure, "the oldest go first");
    let last = store.replay_letters(&all, Pace { cap: 10, ..full }).await.unwrap();
    assert_eq!(last, Bulk { letters: 1, more: false, beyond: None });
}

const FAILURES: i64 = 400_000;

/// Of each thousand one has the rare name, queue and error, which meet in one of a million.
async fn fill(store: &Store, dir: &TempDir, count: i64) {
    let fill = "INSERT INTO tasks (id, task, queue, priority, args, kwargs, retry, created_at, stage, due_at, state,
            finished_at, error)
        WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?1)
        SELECT 't' || i, iif(i % 1000 = 1, 'rare', 'add'), iif(i % 1000 = 2, 'mail', 'default'), 0, '[1, 2]', '{}', '{}',
            ?2, 'done', ?2, 'FAILURE', ?2 + i / 2,
            json_object('type', iif(i % 1000 = 3, 'Rare', 'Usual'), 'message', 'no', 'traceback', NULL) FROM n";
    sqlx::query(fill).bind(count).bind(NOW).execute(&mut connect(dir).await).await.unwrap();
    assert_sums(store, u64::try_from(count).unwrap()).await;
}

fn filter(task: Option<&str>, queue: Option<&str>, error_type: Option<&str>) -> LetterFilter {
    let [task, queue, error_type] = [task, queue, error_type].map(|text| text.map(str::to_owned));
    LetterFilter { task, queue, error_type, ..LetterFilter::default() }
}

/// The ids of all pages, and how many pages there were.
async fn all(store: &Store, filter: &LetterFilter, limit: usize) -> (Vec<String>, usize) {
    let (mut ids, mut after, mut pages) = (Vec::new(), None::<LetterPlace>, 0);
    loop {
        let page = store.letters(filter, after, limit).await.unwrap();
        assert!(page.rows.len() <= limit);
        pages += 1;
        ids.extend(page.rows.into_iter().map(|row| row.accepted.id));
        match page.next {
            Some(next) => after = Some(next),
            None => return (ids, pages),
        }
    }
}

#[tokio::test]
async fn every_filter_lists_its_letters_latest_first() {
    let (dir, store) = store().await;
    fill(&store, &dir, 5_000).await;
    for id in ["t4999", "t3002"] {
        store.dismiss(id, &Whose::Anybody, NOW).await.unwrap();
    }
    let expected = |matches: &dyn Fn(&i64) -> bool| -> Vec<String> {
        let kept = (0..5_000).rev().filter(|i| ![4_999, 3_002].contains(i) && matches(i));
        kept.map(|i| format!("t{i}")).collect()
    };
    let between = LetterFilter { since: Some(NOW + 10), until: Some(NOW + 19), ..LetterFilter::default() };
    let cases: [(LetterFilter, Vec<String>); 7] = [
        (LetterFilter::default(), expected(&|_| true)),
        (filter(Some("rare"), None, None), expected(&|i| i % 1000 == 1)),
        (filter(None, Some("mail"), None), expected(&|i| i % 1000 == 2)),
        (filter(None, Some("default"), None), expected(&|i| i % 1000 != 2)),
        (filter(Some("add"), Some("default"), Some("Rare")), expected(&|i| i % 1000 == 3)),
        (filter(Some("rare"), None, Some("Usual")), expected(&|i| i % 1000 == 1)),
        (between, expected(&|i| (20..40).contains(i))),
    ];
    for (filter, expected) in cases {
        for limit in [7, 1_000] {
            assert_eq!(all(&store, &filter, limit).await.0, expected, "{filter:?}");
        }
        let count = store.count_letters(&filter, NOW + 10_000).await.unwrap();
        assert_eq!(count, Bulk { letters: expected.len() as u64, more: false, beyond: None }, "{filter:?}");
    }
    let never = filter(Some("rare"), None, Some("Rare"));
    assert_eq!(all(&store, &never, 50).await, (vec![], 1));
}

#[tokio::test]
async fn letters_cost_little_among_very_many_and_are_replayed_in_bounded_commits() {
    let (dir, store) = store().await;
    fill(&store, &dir, FAILURES).await;
    let late = LetterPlace { finished_at: NOW + FAILURES / 4, seq: FAILURES / 2 };
    for (filter, after) in [
        (LetterFilter::default(), None),
        (LetterFilter::default(), Some(late)),
        (filter(Some("rare"), None, None), None),
        (filter(None, Some("mail"), None), Some(late)),
        (filter(None, None, Some("Rare")), None),
        (filter(None, Some("mail"), Some("Usual")), None),
        (LetterFilter { until: Some(NOW + 9), ..LetterFilter::default() }, None),
        (LetterFilter { since: Some(NOW + FAILURES / 2 - 9), ..LetterFilter::default() }, None),
    ] {
        let mut times = Vec::new();
        for _ in 0..5 {
            let start = Instant::now();
            store.letters(&filter, after, 50).await.unwrap();
            times.push(start.elapsed());
        }
        times.sort();
        println!("{:>12?}: {filter:?} after {}", times[2], after.is_some());
        assert!(times[2] < Duration::from_millis(60), "{filter:?}: {times:?}");
    }
    let start = Instant::now();
    let everything = store.count_letters(&LetterFilter::default(), NOW + FAILURES).await.unwrap();
    println!("counted in {:?}", start.elapsed());
    assert_eq!(everything, Bulk { letters: 100_000, more: true, beyond: None });
    let start = Instant::now();
    let mail = filter(None, Some("mail"), Some("Usual"));
    let pace = Pace { rate: Some(100.0), ..at_once(NOW + FAILURES) };
    let replayed = store.replay_letters(&mail, pace).await.unwrap();
    println!("400 of 400,000 replayed in {:?}", start.elapsed());
    assert_eq!(replayed, Bulk { letters: 400, more: false, beyond: None });
    assert_eq!(assert_sums(&store, 400_000).await.scheduled, 399);
}
