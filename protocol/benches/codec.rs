//! What a message costs to write and to read: a task and its result, by the size of what they carry.
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has nothing to say")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use protocol::reply::{Reply, Report};
use protocol::task::{Task, TaskMessage};
use protocol::timestamp::{from_unix_ms, now_ms};
use serde_json::value::{RawValue, to_raw_value};

const ID: &str = "01932b5c-7d6e-7f00-8000-0123456789ab";
const SIZES: [usize; 3] = [100, 1024, 64 * 1024];

/// A JSON array of one string that takes so many bytes.
fn array_of(bytes: usize) -> Box<RawValue> {
    to_raw_value(&["x".repeat(bytes - 4)]).unwrap()
}

fn task<'a>(args: &'a RawValue, kwargs: &'a RawValue) -> TaskMessage<'a> {
    TaskMessage {
        time_limit: Some(Duration::from_mins(1)),
        reply_to: Some("errand.results.0123456789ab"),
        publish: Some(1),
        since: Some(now_ms()),
        origin: "producer-1",
        ..TaskMessage::of(ID, "long_running_task", args, kwargs)
    }
}

fn reply(result: Box<RawValue>) -> Reply {
    Reply {
        retries: Some(0),
        seq: Some(1),
        since: Some(now_ms()),
        worker: Some("errand-1@host".to_owned()),
        started_at: from_unix_ms(now_ms()),
        date_done: from_unix_ms(now_ms()),
        ..Reply::of(ID, Report::Success(result))
    }
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    let kwargs = RawValue::from_string("{}".to_owned()).unwrap();
    for size in SIZES {
        let args = array_of(size);
        let (task, reply) = (task(&args, &kwargs), reply(args.clone()));
        let (tasks, replies) = (task.message(), reply.encode(ID, true));
        group.throughput(Throughput::Bytes(size as u64));
        let named = |what| BenchmarkId::new(what, size);
        group.bench_function(named("encode task"), |bench| bench.iter(|| black_box(&task).message()));
        group.bench_function(named("decode task"), |bench| bench.iter(|| Task::decode(black_box(&tasks)).unwrap()));
        group.bench_function(named("encode result"), |bench| bench.iter(|| black_box(&reply).encode(ID, true)));
        group
            .bench_function(named("decode result"), |bench| bench.iter(|| Reply::decode(black_box(&replies)).unwrap()));
    }
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
