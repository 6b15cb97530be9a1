//! How long the pure pieces take that every job passes through: `cargo bench`.
//!
//! What a whole service does in a second, `errand bench` tells. These are for whoever changes one of the pieces.

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use errand::{
    grpc::convert,
    model::{Expiry, Input, Job, JobId, JobSpec, Start, Step, Timestamp, create, job::Ready, step},
    queue::{Offer, Queue, Waiter, memory::MemoryQueue},
};
use errand_proto::v1;
use futures::FutureExt;
use tokio::sync::Notify;
use uuid::Uuid;

const NOW: Timestamp = Timestamp(1_700_000_000_000_000);
/// Jobs that are kept at hand of one channel, as the service does by default.
const WINDOW_MAX: usize = 10_000;
/// Jobs that one session takes at once at most.
const TAKE_MAX: usize = 256;

fn spec(payload_bytes: usize) -> JobSpec {
    JobSpec {
        func: "mails.send".into(),
        payload: payload(payload_bytes).into(),
        channel: "emails".into(),
        start: Start::Now,
        expiry: Expiry::Default,
        max_retries: 3,
        backoff_base: 2.0,
        backoff_max_seconds: 3_600,
        broadcast: false,
        max_exec_seconds: None,
        idempotency_key: None,
        priority: 0,
        traceparent: String::new(),
        fingerprint: [0; 16],
    }
}

/// A JSON object of about that size.
fn payload(bytes: usize) -> String {
    format!(r#"{{"text":"{}"}}"#, "x".repeat(bytes.saturating_sub(11)))
}

fn id(number: u64) -> JobId {
    JobId(Uuid::from_u128(number.into()))
}

fn created(number: u64) -> Step {
    create(id(number), spec(100), "ann".into(), NOW).expect("a job")
}

fn moved(job: &Job, input: Input) -> Step {
    step(job, input, NOW, 0).expect("a step")
}

/// From creation to completion.
fn life(runner_id: &Arc<str>) -> Step {
    let claimed = moved(&created(1).job, Input::Claim { runner_id: runner_id.clone() });
    moved(&claimed.job, Input::Complete { attempt: 1, result: "true".to_owned(), metadata: None })
}

fn state_machine(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("state machine");
    let runner_id: Arc<str> = "r1".into();
    let pending = created(1).job;
    group.bench_function("create", |bencher| {
        bencher.iter_batched(|| spec(100), |spec| create(id(1), spec, "ann".into(), NOW), BatchSize::SmallInput);
    });
    group.bench_function("claim", |bencher| {
        bencher.iter(|| moved(black_box(&pending), Input::Claim { runner_id: runner_id.clone() }));
    });
    group.bench_function("create, claim and complete", |bencher| bencher.iter(|| life(&runner_id)));
    group.finish();
}

fn offer(number: u64) -> Offer {
    let job = created(number).job;
    let ready = Ready { id: job.id, channel: job.channel.clone(), priority: job.priority, ready_at: job.ready_at };
    Offer { ready, job: Some(job) }
}

/// A queue in memory never waits, so its answers are there at once.
fn now<T>(answer: impl Future<Output = T>) -> T {
    answer.now_or_never().expect("an answer at once")
}

fn window(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("window");
    let channels: [Arc<str>; 1] = ["emails".into()];
    let waiter = Waiter { number: 1, notify: Arc::new(Notify::new()) };
    for lined_up in [0, WINDOW_MAX as u64 / 2] {
        let queue = MemoryQueue::new(WINDOW_MAX);
        now(queue.offer((0..lined_up).map(offer).collect()));
        // Behind all that is lined up, so that as many are left as before.
        let mut next = lined_up;
        let offers = |next: &mut u64| -> Vec<Offer> {
            *next += TAKE_MAX as u64;
            (*next - TAKE_MAX as u64..*next).map(offer).collect()
        };
        group.throughput(Throughput::Elements(TAKE_MAX as u64));
        group.bench_function(BenchmarkId::new("offer and take, lined up before", lined_up), |bencher| {
            bencher.iter_batched(
                || offers(&mut next),
                |offers| {
                    now(queue.offer(offers));
                    now(queue.take(&channels, TAKE_MAX, &waiter))
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn conversions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("conversions");
    for bytes in [100, 10_000] {
        let wire = v1::JobSpec {
            func: "mails.send".to_owned(),
            payload_json: payload(bytes),
            channel: "emails".to_owned(),
            ..Default::default()
        };
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new("specification from the wire, checked", bytes), |bencher| {
            bencher.iter_batched(
                || wire.clone(),
                |wire| convert::spec(Some(wire), String::new()).and_then(|spec| spec.check(1 << 20)),
                BatchSize::SmallInput,
            );
        });
        let job = create(id(1), spec(bytes), "ann".into(), NOW).expect("a job").job;
        group.bench_function(BenchmarkId::new("job to the wire", bytes), |bencher| {
            bencher.iter(|| convert::job_to_wire(black_box(&job)));
        });
    }
    group.finish();
}

criterion_group! {
    name = pieces;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    targets = state_machine, window, conversions
}
criterion_main!(pieces);
