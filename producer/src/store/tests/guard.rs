//! The SQL guard and the pure rule agree, whatever comes in whatever order and however it is batched. A failing case is
//! kept in `proptest-regressions` beside `src` and run first from then on.

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use protocol::state::{Claim, Standing};
use tokio::runtime::Runtime;

use super::*;

fn any_claim() -> impl Strategy<Value = Claim> {
    (1..State::ALL.len(), prop::option::of(0..3_u32), prop::option::of(0..3_u32), any::<bool>())
        .prop_map(|(state, retries, seq, redelivered)| Claim { state: State::ALL[state], retries, seq, redelivered })
}

fn claimed(id: &str, Claim { state, retries, seq, redelivered }: Claim) -> Recorded {
    Recorded { redelivered, ..reply(id, report_of(state), retries, seq) }
}

/// Keeps failing cases, as the macro would.
fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config { cases, ..Config::with_source_file(file!()) })
}

fn ruled(claims: &[Claim]) -> Standing {
    claims.iter().fold(Standing::ACCEPTED, |at, claim| at.after(*claim).unwrap_or(at))
}

#[test]
fn the_guard_is_the_rule() {
    // A replay now and then, which is no claim.
    let step = prop::option::weighted(0.8, any_claim());
    let runtime = Runtime::new().unwrap();
    let (_dir, store) = runtime.block_on(store());
    let next = std::sync::atomic::AtomicU32::new(0);
    let claims = prop::collection::vec((step, any::<bool>()), 1..16);
    let outcome = runner(256).run(&claims, |claims| {
        let id = format!("t{}", next.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let after = |at: Standing, (step, _): &(Option<Claim>, bool)| match step {
            Some(claim) => at.after(*claim).unwrap_or(at),
            None => at.replayed().unwrap_or(at),
        };
        let expected = claims.iter().fold(Standing::ACCEPTED, after);
        let got = runtime.block_on(async {
            store.insert(new_task(&id)).await.unwrap();
            let mut batch = Vec::new();
            for (step, flush) in &claims {
                batch.extend(step.map(|claim| claimed(&id, claim)));
                if *flush || step.is_none() {
                    record(&store, std::mem::take(&mut batch).into()).await.unwrap();
                }
                if step.is_none() {
                    store.replay(replay::of(&id, Route::Task)).await.unwrap();
                }
            }
            record(&store, batch.into()).await.unwrap();
            row(&store, &id).await
        });
        prop_assert_eq!((got.state, got.retries), (expected.state, expected.retries));
        Ok(())
    });
    outcome.unwrap();
}

/// The order of that number among the `n!` of the claims.
fn in_order(mut number: usize, claims: &[Claim]) -> Vec<Claim> {
    let mut left = claims.to_vec();
    let mut take = |among: usize| {
        let place = number % among;
        number /= among;
        left.remove(place)
    };
    (1..=claims.len()).rev().map(&mut take).collect()
}

/// Each order is told of a task of its own, the first report of each in one batch, then the second.
async fn told_in_every_order(store: &Store, claims: &[Claim]) -> Vec<(Vec<Claim>, TaskRow)> {
    let orders: Vec<_> = (0..(1..=claims.len()).product()).map(|number| in_order(number, claims)).collect();
    let ids: Vec<String> = orders.iter().map(|_| uuid::Uuid::now_v7().to_string()).collect();
    let stored = ids.iter().map(|id| store.insert(new_task(id)));
    assert!(futures_util::future::join_all(stored).await.iter().all(Result::is_ok));
    for place in 0..claims.len() {
        let batch: Vec<_> = ids.iter().zip(&orders).map(|(id, order)| claimed(id, order[place])).collect();
        record(store, batch.into()).await.unwrap();
    }
    let rows = futures_util::future::join_all(ids.iter().map(|id| row(store, id))).await;
    orders.into_iter().zip(rows).collect()
}

#[test]
fn every_order_of_the_same_reports_ends_in_the_store_as_the_rule_says() {
    let runtime = Runtime::new().unwrap();
    let (_dir, store) = runtime.block_on(store());
    let claims = (prop::collection::vec(any_claim(), 1..4), any::<Index>());
    let outcome = runner(64).run(&claims, |(mut claims, again)| {
        claims.push(claims[again.index(claims.len())]);
        let before = store.outstanding();
        let told = runtime.block_on(told_in_every_order(&store, &claims));
        let open = told.iter().filter(|(_, row)| row.finished_at.is_none()).count();
        prop_assert_eq!(store.outstanding() - before, open as u64);
        for (order, row) in told {
            let end = ruled(&order);
            prop_assert_eq!((row.state, row.retries), (end.state, end.retries), "{:?}", order);
            prop_assert_eq!(row.finished_at.is_some(), end.state.is_terminal(), "{:?}", order);
            prop_assert_eq!(row.result.is_some(), end.state == State::Success, "{:?}", order);
        }
        Ok(())
    });
    outcome.unwrap();
}
