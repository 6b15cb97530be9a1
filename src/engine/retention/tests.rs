//! Retention on paused time, over a store in memory.

use super::*;
use crate::{
    clock::{Clock, Dice, SeededDice, SystemClock},
    drain::Drain,
    engine::{Engine, Parts, Settings, messages::Timings},
    fleet::{Fleet, memory::Hub},
    model::{Caller, Expiry, Input, JobId, JobSpec, access::Permission, create, limits::Limits, step},
    queue::memory::MemoryQueue,
    store::{ListQuery, Store, contract::everything, memory::MemoryStore},
};

const WHILE: Duration = Duration::from_secs(600);

/// A store on which engines come and go, on one clock.
struct Bench {
    store: Arc<MemoryStore>,
    clock: Arc<SystemClock>,
    dice: Arc<SeededDice>,
    hub: Hub,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            store: Arc::new(MemoryStore::new()),
            clock: Arc::new(SystemClock::starting_at(Timestamp(1_700_000_000_000_000))),
            dice: Arc::new(SeededDice::new(1)),
            hub: Hub::new(Timings::default().silent_after()),
        }
    }

    fn node(&self, node_id: &str, retention: Retention) -> Engine {
        let settings =
            Settings { limits: Limits::default(), timings: Timings::default(), retention, node_id: node_id.into() };
        let parts = Parts {
            store: self.store.clone(),
            queue: Arc::new(MemoryQueue::new(10)),
            fleet: Arc::new(self.hub.join(node_id.into())),
            clock: self.clock.clone(),
            dice: self.dice.clone(),
        };
        Engine::start(settings, parts, Drain::new())
    }

    /// Jobs that are canceled at this moment.
    async fn end(&self, jobs: u32) {
        let now = self.clock.now();
        for _ in 0..jobs {
            let created = create(self.dice.job_id(now), spec(), "ann".into(), now).expect("a job");
            let canceled = step(&created.job, Input::Cancel, now, 0).expect("an end");
            self.store.commit(&[created, canceled]).await.expect("a commit");
        }
    }

    async fn kept(&self) -> Vec<JobId> {
        let query = ListQuery { limit: 10_000, ..everything() };
        self.store.list(&query).await.expect("a page").jobs.iter().map(|job| job.id).collect()
    }
}

fn spec() -> JobSpec {
    JobSpec { expiry: Expiry::At(Timestamp::MAX), ..JobSpec::sample() }
}

fn keeping(keep_for: Duration) -> Retention {
    Retention { keep_for: Some(keep_for), keep_max: None }
}

async fn stats(engine: &Engine) -> RetentionStats {
    let caller = Caller { subject: "ann".into(), permissions: vec![Permission::ViewJobs], channels: None };
    engine.on_behalf(caller).stats().await.expect("stats").retention
}

#[tokio::test(start_paused = true)]
async fn jobs_go_once_their_time_is_over() {
    let bench = Bench::new();
    bench.end(2 * STEP_JOBS + 1).await;
    let engine = bench.node("a", keeping(WHILE));
    tokio::time::sleep(WHILE / 2).await;
    bench.end(1).await;
    let pending = create(bench.dice.job_id(bench.clock.now()), spec(), "ann".into(), bench.clock.now()).expect("a job");
    bench.store.commit(std::slice::from_ref(&pending)).await.expect("a commit");
    assert_eq!(bench.kept().await.len(), 2 * STEP_JOBS as usize + 3);
    assert_eq!(stats(&engine).await.removals, Removals::default());

    tokio::time::sleep(WHILE / 2 + 2 * INTERVAL).await;
    assert_eq!(bench.kept().await.len(), 2);
    let told = stats(&engine).await;
    assert_eq!((told.finished, told.removals.jobs), (1, 2 * u64::from(STEP_JOBS) + 1));
    assert!(told.oldest_created > Some(Timestamp(1_700_000_000_000_000)) && told.removals.last.is_some());
    assert_eq!(told.bounds, keeping(WHILE));

    tokio::time::sleep(WHILE).await;
    assert_eq!(bench.kept().await, [pending.job.id]);
    assert_eq!(stats(&engine).await.oldest_created, None);
    engine.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_too_old_at_the_start_goes_at_once() {
    let bench = Bench::new();
    bench.end(5).await;
    tokio::time::sleep(2 * WHILE).await;
    let engine = bench.node("a", keeping(WHILE));
    tokio::time::sleep(INTERVAL_MIN).await;
    assert_eq!(bench.kept().await, []);
    engine.stop().await;
}

#[tokio::test(start_paused = true)]
async fn beyond_their_number_the_oldest_go() {
    let bench = Bench::new();
    let engine = bench.node("a", Retention { keep_for: None, keep_max: Some(3) });
    for _ in 0..5 {
        bench.end(1).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let all = bench.kept().await;
    tokio::time::sleep(2 * INTERVAL_OF_COUNT).await;
    assert_eq!(bench.kept().await, all[2..]);
    tokio::time::sleep(WHILE).await;
    assert_eq!(bench.kept().await.len(), 3);
    engine.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_keeps_all_removes_nothing() {
    let bench = Bench::new();
    bench.end(3).await;
    let engine = bench.node("a", Retention { keep_for: None, keep_max: None });
    tokio::time::sleep(10 * WHILE).await;
    assert_eq!(bench.kept().await.len(), 3);
    engine.stop().await;
}

#[tokio::test(start_paused = true)]
async fn only_the_node_that_leads_removes() {
    let bench = Bench::new();
    let other = bench.hub.join("other".into());
    let ttl = Duration::from_secs(60 * 3_600);
    assert!(other.lead(ttl).await);
    bench.end(3).await;
    let engine = bench.node("a", keeping(WHILE));
    tokio::time::sleep(2 * WHILE).await;
    assert_eq!(bench.kept().await.len(), 3);
    other.leave().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(bench.kept().await, []);
    assert_eq!(stats(&engine).await.removals.jobs, 3);
    engine.stop().await;
}

#[test]
fn short_times_are_looked_after_often() {
    assert_eq!(interval(keeping(7 * 24 * WHILE)), INTERVAL);
    assert_eq!(interval(keeping(Duration::from_secs(5))), Duration::from_secs(5));
    assert_eq!(interval(keeping(Duration::from_millis(5))), INTERVAL_MIN);
    assert_eq!(interval(Retention { keep_max: Some(1), ..keeping(WHILE) }), INTERVAL_OF_COUNT);
}
