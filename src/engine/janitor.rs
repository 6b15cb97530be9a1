//! Does to jobs what time does to them: expiry, and the hard limit of an execution.

use std::{sync::Arc, time::Duration};

use super::{EngineError, Shared, messages::InterruptReason};
use crate::{
    model::{Input, step},
    store::{Due, Outcome},
};

/// How often the store is asked. A time limit is kept to within this.
const INTERVAL: Duration = Duration::from_millis(100);
/// Every so many turns, expiries are looked for too: within a second.
const EXPIRY_TURNS: u32 = 5;
/// Jobs moved at once.
const MOVE_MAX: u32 = 500;

pub async fn run(shared: Arc<Shared>) {
    let stopped = shared.stopped();
    let mut turn = 0u32;
    loop {
        let mut moved = overruns(&shared).await;
        if turn.is_multiple_of(EXPIRY_TURNS) {
            moved = moved.and(expiries(&shared).await);
        }
        turn = turn.wrapping_add(1);
        if let Err(error) = moved {
            tracing::warn!(error = &error as &dyn std::error::Error, "the janitor could not move jobs");
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stopped.cancelled() => return,
        }
    }
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

async fn overruns(shared: &Shared) -> Result<(), EngineError> {
    let now = shared.now();
    for job in shared.store.due(Due::Overrun, now, MOVE_MAX).await? {
        let lease = job.lease();
        let Ok(step) = step(&job, Input::Overrun { attempt: job.attempt }, now, shared.dice.roll()) else { continue };
        if shared.committer.apply(step).await? == Outcome::Applied {
            shared.queue.release(&[lease]).await;
            if let Some(runner_id) = &job.runner_id {
                shared.interrupt(runner_id, lease, InterruptReason::TimedOut);
            }
        }
    }
    Ok(())
}
