//! Removes jobs that have ended and whose time is over. The node that leads does, step by step.
//!
//! A walk goes over the old jobs once, in order of id. Between its steps it pauses for longer than a step took, so that jobs
//! are taken, run and settled as if it were not there; a store that is busy makes steps longer, and with them the pauses. A
//! walk ends at once where the node no longer leads, or drains: whatever it has not done, the next one does.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::Shared;
use crate::{
    fleet::Removals,
    model::{Timestamp, limits::Retention},
    store::{Outdated, StoreError, Tally},
};

/// How often jobs are looked for whose time is over, at most; who keeps jobs for less looks as often as that.
const INTERVAL: Duration = Duration::from_secs(60);
/// How often where their number is bounded: more come in a minute than the bound may allow for.
const INTERVAL_OF_COUNT: Duration = Duration::from_secs(10);
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// The longest rest after a walk, which is as long as the walk took: old jobs that must stay are walked over anew each time.
const REST_MAX: Duration = Duration::from_secs(600);
/// Jobs that one step looks at: few, for on a machine with few processors a start may have to wait for a whole step.
const STEP_JOBS: u32 = 100;
/// How many times as long as a step the pause after it is: a walk works for a quarter of its time.
const PAUSE_STEPS: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Reached by steps of a third of a second, which only a store in distress takes: starts come before removals then.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Who keeps jobs for two days or longer keeps some for a day longer where they then go by the day: the day itself, an hour
/// for slow clocks, and another in which it must succeed.
const LEISURE: Duration = Duration::from_secs(26 * 3_600);
const LEISURE_FROM: Duration = Duration::from_secs(2 * 24 * 3_600);
/// Jobs that ended this moment are not counted off: the next look will find them, and more with them.
const SETTLED_FOR: Duration = Duration::from_secs(1);

/// What this node removed since it started.
#[derive(Default)]
pub struct Book(Mutex<Removals>);

impl Book {
    pub fn report(&self) -> Removals {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, jobs: u64, now: Timestamp) {
        if jobs > 0 {
            let mut removals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            removals.jobs += jobs;
            removals.last = Some(now);
        }
    }
}

/// What is kept, and what was removed.
#[derive(Debug, Clone, PartialEq)]
pub struct RetentionStats {
    pub bounds: Retention,
    /// Jobs that have ended and are kept.
    pub finished: u64,
    /// When the oldest of them was created, where that is known.
    pub oldest_created: Option<Timestamp>,
    /// By the nodes that are there, since they started.
    pub removals: Removals,
}

impl RetentionStats {
    pub(super) fn of(bounds: Retention, tally: &Tally, removals: &[Removals]) -> RetentionStats {
        RetentionStats {
            bounds,
            finished: tally.ended(),
            oldest_created: tally.oldest_ended,
            removals: Removals {
                jobs: removals.iter().map(|removals| removals.jobs).sum(),
                last: removals.iter().filter_map(|removals| removals.last).max(),
            },
        }
    }
}

/// Looks for jobs whose time is over until the loops must stop.
pub async fn run(shared: Arc<Shared>) {
    let stopped = shared.stopped();
    let retention = shared.settings.retention;
    if retention.keep_for.is_none() && retention.keep_max.is_none() {
        return;
    }
    let mut leadership = shared.membership.leadership();
    let look = async {
        // The sender lives as long as the engine does.
        while leadership.wait_for(|leads| *leads).await.is_ok() {
            // Both branches bear being dropped: a step of the store is done or not done.
            tokio::select! {
                () = walks(&shared, retention) => {}
                _ = leadership.wait_for(|leads| !*leads) => {}
            }
        }
    };
    tokio::select! {
        () = look => {}
        () = stopped.cancelled() => {}
    }
}

/// One walk after the other.
async fn walks(shared: &Shared, retention: Retention) {
    loop {
        let started = Instant::now();
        match walk(shared, retention).await {
            Ok(0) => {}
            Ok(jobs) => tracing::debug!(jobs, took = ?started.elapsed(), "jobs whose time is over were removed"),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "jobs whose time is over could not be removed"
                );
            }
        }
        tokio::time::sleep(started.elapsed().max(interval(retention)).min(REST_MAX)).await;
    }
}

fn interval(retention: Retention) -> Duration {
    let longest = if retention.keep_max.is_some() { INTERVAL_OF_COUNT } else { INTERVAL };
    retention.keep_for.unwrap_or(longest).clamp(INTERVAL_MIN, longest)
}

/// Removes what is too old, and then what is too many; tells how many jobs.
async fn walk(shared: &Shared, retention: Retention) -> Result<u64, StoreError> {
    let mut jobs = 0;
    let now = shared.now();
    if let Some(keep_for) = retention.keep_for {
        let leisure = if keep_for >= LEISURE_FROM { LEISURE } else { Duration::ZERO };
        let outdated = Outdated { finished_before: now.minus(keep_for), leisure, jobs_max: u64::MAX };
        jobs += remove(shared, outdated).await?;
    }
    if let Some(keep_max) = retention.keep_max {
        let surplus = shared.store.tally(now).await?.ended().saturating_sub(keep_max);
        let finished_before = now.minus(SETTLED_FOR);
        jobs += remove(shared, Outdated { finished_before, leisure: Duration::ZERO, jobs_max: surplus }).await?;
    }
    Ok(jobs)
}

async fn remove(shared: &Shared, outdated: Outdated) -> Result<u64, StoreError> {
    let (mut jobs, mut after) = (0, None);
    while jobs < outdated.jobs_max {
        let started = Instant::now();
        let rest = Outdated { jobs_max: outdated.jobs_max - jobs, ..outdated };
        let forgotten = shared.store.forget(rest, after, STEP_JOBS).await?;
        shared.removals.note(forgotten.jobs, shared.now());
        jobs += forgotten.jobs;
        after = forgotten.next;
        if after.is_none() {
            break;
        }
        tokio::time::sleep((started.elapsed() * PAUSE_STEPS).clamp(PAUSE_MIN, PAUSE_MAX)).await;
    }
    Ok(jobs)
}

#[cfg(test)]
mod tests;
