//! What the statements of a task's life cost in CPU time of the process, user and system: each group is one commit. On an
//! empty store and on one with a backlog, for what grows with the table would show there only.
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has nothing to say")]

use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Bencher, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nix::time::{ClockId, clock_gettime};
use producer::store::{Atomicity, HandedTo, NewTask, Published, Recorded, Store, UnixMs};
use protocol::reply::{Reply, Report};
use protocol::retry::RetryOptions;
use serde_json::value::RawValue;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::task::TaskTracker;

const NOW: UnixMs = 1_800_000_000_000;
/// Rows that wait, and as many that have ended.
const BACKLOG: usize = 100_000;

/// The time of all threads: that of the disk would drown what the statements cost.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap().into()
    }

    fn end(&self, start: Duration) -> Duration {
        self.start().saturating_sub(start)
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, time: &Duration) -> f64 {
        WallTime.to_f64(time)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

/// A store and who runs it.
struct Bench {
    runtime: Runtime,
    store: Store,
    _dir: TempDir,
}

impl Bench {
    fn new(backlog: usize) -> Self {
        let (dir, runtime) = (TempDir::new().unwrap(), Runtime::new().unwrap());
        let url = format!("sqlite:{}", dir.path().join("errand.db").display());
        let store = runtime.block_on(Store::open(&url, &TaskTracker::new())).unwrap();
        let bench = Self { runtime, store, _dir: dir };
        for _ in 0..backlog.div_ceil(1_000) {
            bench.record(&bench.marked(1_000));
            bench.stored(1_000);
        }
        bench
    }

    fn insert(&self, tasks: Vec<NewTask>) {
        self.runtime.block_on(self.store.insert_batch(tasks, Atomicity::Each)).unwrap();
    }

    fn mark(&self, ids: &[String]) {
        let published = ids.iter().map(|id| Published(id.clone(), 1)).collect();
        self.runtime.block_on(self.store.mark(published, HandedTo::Workers(NOW))).unwrap();
    }

    fn record(&self, ids: &[String]) {
        let counted = self.runtime.block_on(self.store.record([].into(), ids.iter().map(report).collect())).unwrap();
        assert_eq!(counted.reports, ids.len() as u64);
    }

    fn stored(&self, count: usize) -> Vec<String> {
        let tasks = tasks(count);
        let ids = tasks.iter().map(|task| task.id.clone()).collect();
        self.insert(tasks);
        ids
    }

    fn marked(&self, count: usize) -> Vec<String> {
        let ids = self.stored(count);
        self.mark(&ids);
        ids
    }

    fn due(&self, count: usize) {
        let limit = u32::try_from(count).unwrap();
        let due = self.runtime.block_on(self.store.due("default", limit, usize::MAX)).unwrap();
        assert_eq!(due.len(), count);
    }
}

fn tasks(count: usize) -> Vec<NewTask> {
    let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap();
    let task = || NewTask {
        id: uuid::Uuid::now_v7().to_string(),
        task: "long_running_task".to_owned(),
        queue: "default".to_owned(),
        priority: 0,
        args: raw(&format!("[\"{}\"]", "x".repeat(96))),
        kwargs: raw("{}"),
        retry: RetryOptions::default(),
        time_limit: None,
        soft_time_limit: None,
        created_at: NOW,
        eta: None,
        expires: None,
        parent: None,
        callback: None,
        owner: None,
    };
    std::iter::repeat_with(task).take(count).collect()
}

fn report(id: &String) -> Recorded {
    let result = RawValue::from_string(format!("\"{}\"", "x".repeat(98))).unwrap();
    let worker = Some("errand-1@host".to_owned());
    let reply =
        Reply { retries: Some(0), seq: Some(0), since: Some(NOW), worker, ..Reply::of(id, Report::Success(result)) };
    Recorded { reply, at: NOW + 1, redelivered: false }
}

/// Times the work on what was made ready for it, which is not timed.
fn timed<T>(bencher: &mut Bencher<'_, CpuTime>, ready: impl Fn() -> T, work: impl Fn(T)) {
    bencher.iter_custom(|rounds| {
        let round = || {
            let ready = ready();
            let start = CpuTime.start();
            work(ready);
            CpuTime.end(start)
        };
        (0..rounds).map(|_| round()).sum()
    });
}

fn store(criterion: &mut Criterion<CpuTime>) {
    for (name, backlog) in [("empty", 0), ("backlog", BACKLOG)] {
        let bench = Bench::new(backlog);
        let mut group = criterion.benchmark_group(format!("store/{name}"));
        for count in [1, 32, 256, 1024] {
            group.throughput(Throughput::Elements(count as u64));
            let named = |what| BenchmarkId::new(what, count);
            group.bench_function(named("insert"), |b| timed(b, || tasks(count), |tasks| bench.insert(tasks)));
            group.bench_function(named("due"), |b| timed(b, || (), |()| bench.due(count)));
            group.bench_function(named("mark"), |b| timed(b, || bench.stored(count), |ids| bench.mark(&ids)));
            group.bench_function(named("record"), |b| timed(b, || bench.marked(count), |ids| bench.record(&ids)));
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime).measurement_time(Duration::from_secs(2));
    targets = store
}
criterion_main!(benches);
