//! Broadcast jobs: one part for each live runner of the channel; the parent settles when the last part has.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::{EngineError, Shared};
use crate::{
    model::{Hint, Input, Job, JobId, Step, lifecycle::create_part, step},
    store::{Due, Outcome},
};

/// How often due broadcast jobs are looked for.
const INTERVAL: Duration = Duration::from_millis(100);
/// Every so many turns, all running broadcast jobs are settled anew: a note of an ended part may have been lost.
const SETTLE_TURNS: u32 = 20;
/// Broadcast jobs moved at once.
const MOVE_MAX: u32 = 100;

/// Parents of parts that ended since the last look.
#[derive(Default)]
pub struct Parents {
    waiting: Mutex<BTreeSet<JobId>>,
    changed: Notify,
}

impl Parents {
    /// Takes note of the parts that came to their end with these steps.
    pub fn hear(&self, steps: &[Step]) {
        let ended = steps.iter().filter(|step| step.hint == Hint::Forget && step.job.status.is_terminal());
        let parents: Vec<JobId> = ended.filter_map(|step| step.job.parent_id).collect();
        if !parents.is_empty() {
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).extend(parents);
            self.changed.notify_one();
        }
    }

    fn take(&self) -> BTreeSet<JobId> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub async fn run(shared: Arc<Shared>) {
    let stopped = shared.stopped();
    let mut turn = 0u32;
    loop {
        let mut parents = shared.parents.take();
        let moved = async {
            if turn.is_multiple_of(SETTLE_TURNS) {
                parents.extend(shared.store.due(Due::Parent, shared.now(), MOVE_MAX).await?.iter().map(|job| job.id));
            }
            for parent in parents {
                settle(&shared, parent).await?;
            }
            for job in shared.store.due(Due::Broadcast, shared.now(), MOVE_MAX).await? {
                fan_out(&shared, &job).await?;
            }
            Ok::<(), EngineError>(())
        };
        if let Err(error) = moved.await {
            tracing::warn!(error = &error as &dyn std::error::Error, "broadcast jobs could not be moved");
        }
        turn = turn.wrapping_add(1);
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = shared.parents.changed.notified() => {}
            () = shared.attached.notified() => {}
            () = stopped.cancelled() => return,
        }
    }
}

/// Makes a part for each live runner; where there is none, the job waits.
async fn fan_out(shared: &Shared, job: &Job) -> Result<(), EngineError> {
    let now = shared.now();
    let roster = shared.registry.roster(now);
    let takers: Vec<_> =
        roster.iter().filter(|runner| runner.alive && runner.channels.contains(&job.channel)).collect();
    if takers.is_empty() {
        return Ok(());
    }
    let parts = u32::try_from(takers.len()).unwrap_or(u32::MAX);
    let Ok(parent) = step(job, Input::Fanout { parts }, now, 0) else { return Ok(()) };
    let mut steps = vec![parent];
    for runner in takers {
        steps.push(create_part(shared.dice.job_id(now), job, &runner.runner_id, now));
    }
    // Somebody else may have canceled it meanwhile; then none of this happened.
    shared.committer.apply_all(steps).await?;
    Ok(())
}

async fn settle(shared: &Shared, parent: JobId) -> Result<(), EngineError> {
    let Some(job) = shared.load(parent).await? else { return Ok(()) };
    let parts = shared.store.parts(parent).await?;
    let Ok(step) = step(&job, Input::Settle { parts }, shared.now(), 0) else { return Ok(()) };
    if shared.committer.apply(step).await? == Outcome::Stale {
        shared.parents.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(parent);
        shared.parents.changed.notify_one();
    }
    Ok(())
}
