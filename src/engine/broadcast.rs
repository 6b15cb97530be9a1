//! Broadcast jobs: one part for each live runner of the channel; the parent settles when the last part has.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{EngineError, Shared};
use crate::{
    model::{Hint, Input, Job, JobId, Step, lifecycle::create_part, step},
    store::{Due, Outcome},
};

/// How often all running broadcast jobs are settled anew: a note of an ended part may have been lost.
const SETTLE_INTERVAL: Duration = Duration::from_secs(2);
/// How long it waits after an error of the store.
const AFTER_ERROR: Duration = Duration::from_millis(200);
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
        self.put_back(parents.into_iter().collect());
    }

    fn put_back(&self, parents: BTreeSet<JobId>) {
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
    let alarms = shared.alarms.clone();
    let mut settled = Instant::now();
    loop {
        // Each branch only waits: dropping one loses nothing.
        tokio::select! {
            () = alarms.broadcast.ring(&*shared.clock) => {}
            () = alarms.parent.ring(&*shared.clock) => {}
            () = shared.parents.changed.notified() => {}
            () = shared.attached.notified() => {}
            () = stopped.cancelled() => return,
        }
        let now = shared.now();
        let parents = shared.parents.take();
        let due = alarms.broadcast.take_due(now);
        let all = alarms.parent.take_due(now).is_some() && settled.elapsed() >= SETTLE_INTERVAL;
        if all {
            settled = Instant::now();
        }
        if let Err(error) = turn(&shared, &parents, all).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "broadcast jobs could not be moved");
            shared.parents.put_back(parents);
            due.into_iter().for_each(|at| alarms.broadcast.set(at));
            tokio::time::sleep(AFTER_ERROR).await;
        }
    }
}

async fn turn(shared: &Shared, parents: &BTreeSet<JobId>, all: bool) -> Result<(), EngineError> {
    for parent in parents {
        settle(shared, *parent).await?;
    }
    if all {
        for job in shared.store.due(Due::Parent, shared.now(), MOVE_MAX).await? {
            settle(shared, job.id).await?;
        }
    }
    for job in shared.store.due(Due::Broadcast, shared.now(), MOVE_MAX).await? {
        fan_out(shared, &job).await?;
    }
    Ok(())
}

/// Makes a part for each live runner; where there is none, the job waits.
async fn fan_out(shared: &Shared, job: &Job) -> Result<(), EngineError> {
    let now = shared.now();
    let roster = shared.registry.roster(now).await;
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
        shared.parents.put_back(BTreeSet::from([parent]));
    }
    Ok(())
}
