//! The whole engine on paused time, from a seed: runners crash and stall, commits are lost, the node restarts.
//!
//! `ERRAND_SEED=N cargo test --test simulation` replays one seed. The order in which the runtime polls the branches of a
//! `select!`, and that of hash maps, is not seeded, so a rare failure may need several replays.

#[path = "simulation/faults.rs"]
mod faults;
#[path = "simulation/runner.rs"]
mod runner;
#[path = "simulation/world.rs"]
mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use errand::{
    clock::{Clock, Dice, SeededDice, SystemClock},
    engine::{EngineError, messages::Timings},
    model::{Expiry, JobId, JobSpec, Start, Status, Timestamp, limits::Retention},
    store::{Lanes, Store, memory::MemoryStore},
};
use faults::{Book, FaultyStore};
use runner::Runner;
use tokio::time::{Instant, sleep};
use world::{Chance, World};

/// Seeds that run where none is named.
const SEEDS: u64 = 1_000;
const THREADS: usize = 2;
const JOBS: u64 = 20;
/// Virtual time that a job may take to end once nothing goes wrong any more.
const LIMIT: Duration = Duration::from_secs(2 * 3_600);
/// How long a job that has ended is kept where that is short: long enough for a publisher that had no answer to find it.
const KEEP_FOR: Duration = Duration::from_secs(10);

#[test]
fn every_acknowledged_job_ends_once() {
    let one = std::env::var("ERRAND_SEED").ok().map(|text| text.parse::<u64>().expect("ERRAND_SEED is a number"));
    let (first, end) = one.map_or((0, SEEDS), |seed| (seed, seed + 1));
    let next = AtomicU64::new(first);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let ran = catch_unwind(AssertUnwindSafe(|| run(seed)));
                    let fault = ran.unwrap_or_else(|_| Err("a panic".to_owned()));
                    if let Err(fault) = fault {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push((seed, fault));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((seed, fault)) = failed.first() {
        let count = failed.len();
        panic!("seed {seed}: {fault} ({count} seeds failed); ERRAND_SEED={seed} cargo test --test simulation");
    }
}

fn run(seed: u64) -> Result<(), String> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().map_err(|error| error.to_string())?;
    runtime.block_on(simulate(seed))
}

async fn simulate(seed: u64) -> Result<(), String> {
    let dice = Arc::new(SeededDice::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995));
    let chance = Chance { dice, faulty: Arc::new(AtomicBool::new(true)) };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::starting_at(Timestamp(1_700_000_000_000_000)));
    let book = Mutex::new(Book::default());
    let lanes = if seed.is_multiple_of(2) { Lanes::ONE } else { Lanes { max: 2, steps_min: 1 } };
    let store = Arc::new(FaultyStore { inner: MemoryStore::new(), book, chance: chance.split(), lanes });
    let timings = Timings {
        heartbeat_interval: Duration::from_secs(1),
        accept_timeout: Duration::from_secs(1),
        lease_ttl: Duration::from_secs(3),
        resume_window: Duration::from_secs(1),
    };
    // In one world of four, jobs that have ended are soon removed.
    let keep_for = if seed.is_multiple_of(4) { KEEP_FOR } else { LIMIT };
    let retention = Retention { keep_for: Some(keep_for), keep_max: None };
    let world = Arc::new(World::new(store, clock, chance.clone(), timings, retention));
    let runners = 3 + chance.dice.roll() % 2;
    for number in 0..runners {
        tokio::spawn(Runner::new(world.clone(), format!("runner-{number}")).run());
    }
    let publisher = tokio::spawn(publish(world.clone(), chance.split()));
    for _ in 0..1 + chance.dice.roll() % 2 {
        sleep(Duration::from_millis(3_000 + chance.dice.roll() % 12_000)).await;
        world.restart().await;
    }
    sleep(Duration::from_millis(chance.dice.roll() % 8_000)).await;
    chance.faulty.store(false, Ordering::Relaxed);
    publisher.await.map_err(|error| error.to_string())??;
    let healed = Instant::now();
    loop {
        let open = unfinished(&world).await?;
        if open.is_empty() {
            break;
        }
        if healed.elapsed() > LIMIT {
            return Err(format!("jobs that never ended: {open:?}"));
        }
        sleep(Duration::from_millis(500)).await;
    }
    // Late reports must change nothing.
    sleep(timings.lease_ttl * 3).await;
    let outcome = check(&world).await;
    if outcome.is_ok() && keep_for == KEEP_FOR {
        forgotten(&world).await?;
    }
    world.engine().stop().await;
    outcome
}

/// Waits until every job is gone: all of them have ended.
async fn forgotten(world: &World) -> Result<(), String> {
    let ids: Vec<JobId> = world.seen().acknowledged.iter().copied().collect();
    let started = Instant::now();
    while world.store.load(&ids).await.map_err(|error| error.to_string())?.iter().any(Option::is_some) {
        if started.elapsed() > KEEP_FOR * 3 {
            return Err("a job that ended long ago is still there".to_owned());
        }
        sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

async fn unfinished(world: &World) -> Result<Vec<(JobId, Status)>, String> {
    let ids: Vec<JobId> = world.seen().acknowledged.iter().copied().collect();
    let jobs = world.store.load(&ids).await.map_err(|error| error.to_string())?;
    let book = world.store.book.lock().unwrap_or_else(PoisonError::into_inner);
    for (id, _) in ids.iter().zip(&jobs).filter(|(_, job)| job.is_none()) {
        let ended_at = book.ended_at.get(id).ok_or(format!("job {id} is gone, and had not ended"))?;
        if world.clock.now() < ended_at.plus(world.retention.keep_for.unwrap_or(Duration::MAX)) {
            return Err(format!("job {id} is gone too early"));
        }
    }
    Ok(jobs.into_iter().flatten().filter(|job| !job.status.is_terminal()).map(|job| (job.id, job.status)).collect())
}

async fn publish(world: Arc<World>, chance: Chance) -> Result<(), String> {
    for number in 0..JOBS {
        let roll = chance.dice.roll();
        let spec = JobSpec {
            func: "work".into(),
            payload: "{}".into(),
            channel: "default".into(),
            start: if roll.is_multiple_of(4) { Start::In((roll >> 8) as u32 % 20) } else { Start::Now },
            expiry: Expiry::Default,
            max_retries: (roll >> 16) as u32 % 4,
            backoff_base: 1.5,
            backoff_max_seconds: 5,
            broadcast: false,
            max_exec_seconds: None,
            idempotency_key: Some(format!("key-{number}").into()),
            priority: (roll >> 24) as i32 % 3,
            traceparent: String::new(),
            fingerprint: [0; 16],
        };
        let id = loop {
            match world.door().publish(spec.clone()).await {
                Ok(published) => break published.job.id,
                Err(EngineError::Unavailable(_) | EngineError::Draining | EngineError::Busy(_)) => {
                    sleep(Duration::from_millis(200)).await;
                }
                Err(error) => return Err(format!("publishing failed: {error}")),
            }
        };
        if !world.seen().acknowledged.insert(id) {
            return Err(format!("two keys were answered with job {id}"));
        }
        sleep(Duration::from_millis(chance.dice.roll() % 600)).await;
        if chance.dice.roll().is_multiple_of(10) {
            // It may have ended already, or not be taken just now.
            let _ = world.door().cancel(id).await;
        }
    }
    Ok(())
}

/// What must hold of everything that happened.
async fn check(world: &World) -> Result<(), String> {
    let ids: Vec<JobId> = world.seen().acknowledged.iter().copied().collect();
    let jobs = world.store.load(&ids).await.map_err(|error| error.to_string())?;
    let book = world.store.book.lock().unwrap_or_else(PoisonError::into_inner);
    let seen = world.seen();
    for id in &ids {
        let ends = book.ends.get(id).copied().unwrap_or_default();
        if ends != 1 {
            return Err(format!("job {id} ended {ends} times"));
        }
    }
    for job in jobs.into_iter().flatten() {
        let id = job.id;
        if job.executions() > 1 + job.max_retries {
            return Err(format!("job {id} ran {} times with {} retries", job.executions(), job.max_retries));
        }
        let accepted = |completed: &bool| *completed;
        let of_job = seen.accepted.iter().filter(|(lease, _)| lease.job_id == id);
        let completions: usize = of_job.clone().map(|(_, ends)| ends.iter().filter(|end| accepted(end)).count()).sum();
        if completions > 1 || (completions == 1 && job.status != Status::Completed) {
            return Err(format!("job {id} is {:?} with {completions} accepted completions", job.status));
        }
        let lease = job.lease();
        let excused = book.ambiguous.contains(&lease) || seen.unanswered.contains(&lease);
        if job.status == Status::Completed && completions == 0 && !excused {
            return Err(format!("job {id} is completed, and no runner heard so"));
        }
    }
    if let Some((lease, runners)) = book.claims.iter().find(|(_, runners)| runners.len() != 1) {
        return Err(format!("{lease:?} was claimed by {runners:?}"));
    }
    if let Some((lease, sessions)) = seen.assigned.iter().find(|(_, sessions)| sessions.len() != 1) {
        return Err(format!("{lease:?} was assigned to {sessions:?}"));
    }
    if let Some((lease, ends)) = seen.accepted.iter().find(|(_, ends)| ends.len() != 1) {
        return Err(format!("{lease:?} has {} accepted results", ends.len()));
    }
    Ok(())
}
