//! Does to jobs what time does to them: expiry, and the hard limit of an execution.

use std::{sync::Arc, time::Duration};

use super::{EngineError, Shared, agenda, messages::InterruptReason};
use crate::{
    model::{Input, step},
    store::{Due, Outcome},
};

/// How long it waits after an error of the store.
const AFTER_ERROR: Duration = Duration::from_millis(200);
/// Jobs moved at once.
const MOVE_MAX: u32 = 500;

/// What one janitor sees to.
#[derive(Debug, Clone, Copy)]
pub enum Duty {
    /// Jobs that nobody began in time.
    Expiry,
    /// Executions that are over their limit.
    TimeLimit,
}

/// Moves what is due whenever the alarm rings, and sets it anew.
pub async fn run(shared: Arc<Shared>, duty: Duty) {
    let stopped = shared.stopped();
    let alarm = match duty {
        Duty::Expiry => &shared.alarms.expiry,
        Duty::TimeLimit => &shared.alarms.overrun,
    };
    loop {
        tokio::select! {
            () = alarm.ring(&*shared.clock) => {}
            () = stopped.cancelled() => return,
        }
        let Some(at) = alarm.take_due(shared.now()) else { continue };
        if let Err(error) = turn(&shared, duty).await {
            tracing::warn!(error = &error as &dyn std::error::Error, ?duty, "a janitor could not move jobs");
            alarm.set(at);
            tokio::time::sleep(AFTER_ERROR).await;
        }
    }
}

async fn turn(shared: &Shared, duty: Duty) -> Result<(), EngineError> {
    match duty {
        Duty::Expiry => expiries(shared).await?,
        Duty::TimeLimit => overruns(shared).await?,
    }
    Ok(agenda::look(shared).await?)
}

async fn expiries(shared: &Shared) -> Result<(), EngineError> {
    loop {
        let now = shared.now();
        let jobs = shared.store.due(Due::Expiry, now, MOVE_MAX).await?;
        let full = jobs.len() == MOVE_MAX as usize;
        let steps: Vec<_> = jobs.iter().filter_map(|job| step(job, Input::Expire, now, 0).ok()).collect();
        let none = steps.is_empty();
        shared.committer.apply_each(steps).await?;
        if !full || none {
            return Ok(());
        }
    }
}

/// At most [`MOVE_MAX`]; the agenda rings again for the rest.
async fn overruns(shared: &Shared) -> Result<(), EngineError> {
    let now = shared.now();
    for job in shared.store.due(Due::Overrun, now, MOVE_MAX).await? {
        let lease = job.lease();
        let Ok(step) = step(&job, Input::Overrun { attempt: job.attempt }, now, shared.dice.roll()) else { continue };
        if shared.committer.apply(step).await? == Outcome::Applied {
            shared.queue.release(&[lease]).await;
            if let Some(runner_id) = &job.runner_id {
                shared.interrupt(runner_id, lease, InterruptReason::TimedOut).await;
            }
        }
    }
    Ok(())
}
