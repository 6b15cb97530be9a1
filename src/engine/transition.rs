//! load, step, commit, and again if somebody was faster: written once.

use std::sync::Arc;

use super::{EngineError, Shared, error::JOB_NOT_FOUND, messages::InterruptReason};
use crate::{
    model::{Input, Job, JobId, JobSpec, Refusal, Start, Status, create, step},
    store::Outcome,
};

/// How often somebody else may be faster.
const TRIES_MAX: usize = 16;
/// Unfinished parts of a broadcast job that a cancel reaches.
const PARTS_MAX: u32 = 100_000;

/// Why a transition did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Stuck {
    #[error("the job is gone")]
    Gone,
    #[error(transparent)]
    Refused(Refusal),
    #[error(transparent)]
    Failed(#[from] EngineError),
}

impl From<Stuck> for EngineError {
    fn from(stuck: Stuck) -> EngineError {
        match stuck {
            Stuck::Gone => JOB_NOT_FOUND,
            Stuck::Refused(refusal) => EngineError::Refused(refusal.to_string()),
            Stuck::Failed(error) => error,
        }
    }
}

/// What became of a cancel.
#[derive(Debug, Clone, PartialEq)]
pub struct Cancellation {
    pub job: Job,
    /// The job was running on a runner that is gone, and was canceled without it.
    pub forced: bool,
}

/// A job that was published anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retried {
    pub new_id: JobId,
    pub delayed: bool,
}

impl Shared {
    /// Moves a job; `input` may depend on how it stands. Answers the job before and after.
    pub(super) async fn transition(&self, id: JobId, input: impl Fn(&Job) -> Input) -> Result<(Job, Arc<Job>), Stuck> {
        for _ in 0..TRIES_MAX {
            let job = self.load(id).await?.ok_or(Stuck::Gone)?;
            let step = step(&job, input(&job), self.now(), self.dice.roll()).map_err(Stuck::Refused)?;
            let after = step.job.clone();
            if self.committer.apply(step).await? == Outcome::Applied {
                return Ok((job, after));
            }
        }
        Err(Stuck::Failed(EngineError::Busy("the job changes too fast; try again")))
    }

    pub(super) async fn load(&self, id: JobId) -> Result<Option<Job>, EngineError> {
        Ok(self.store.load(&[id]).await?.pop().flatten())
    }

    /// Cancels a job that the caller may cancel, as it was seen a moment ago.
    pub(super) async fn cancel(&self, seen: &Job) -> Result<Cancellation, EngineError> {
        let id = seen.id;
        let alive = match &seen.runner_id {
            // Where nobody can be asked, it may well live.
            Some(runner_id) => match self.registry.find(runner_id, self.now()).await {
                Ok(runner) => runner.is_some_and(|runner| runner.alive),
                Err(_) => true,
            },
            None => false,
        };
        // Another runner may have taken it meanwhile, and that one lives.
        let gone =
            |job: &Job| job.status == Status::Running && !job.broadcast && !alive && job.runner_id == seen.runner_id;
        let moved = self.transition(id, |job| if gone(job) { Input::ForceCancel } else { Input::Cancel }).await;
        let (before, after) = match moved {
            Ok(moved) => moved,
            Err(Stuck::Refused(Refusal::Unchanged)) => {
                let job = self.load(id).await?.ok_or(JOB_NOT_FOUND)?;
                return Ok(Cancellation { job, forced: false });
            }
            Err(Stuck::Refused(_)) => {
                let job = self.load(id).await?.ok_or(JOB_NOT_FOUND)?;
                return Err(EngineError::Refused(format!("Cannot cancel job in {} state", job.status.name())));
            }
            Err(stuck) => return Err(stuck.into()),
        };
        let forced = before.status == Status::Running && after.status == Status::Canceled;
        if forced {
            self.queue.release(&[before.lease()]).await;
        }
        if before.status == Status::Running && !before.broadcast {
            if let Some(runner_id) = &before.runner_id {
                self.interrupt(runner_id, before.lease(), InterruptReason::Requested).await;
            }
        } else if before.broadcast && before.status == Status::Running {
            for part in self.store.unfinished_parts(id, PARTS_MAX).await? {
                Box::pin(self.cancel(&part)).await.ok();
            }
        }
        Ok(Cancellation { job: Arc::unwrap_or_clone(after), forced })
    }

    /// Publishes an ended job anew, and notes so in the old one's history.
    pub(super) async fn retry(&self, old: &Job, delay_seconds: u32) -> Result<Retried, EngineError> {
        if !matches!(old.status, Status::Failed | Status::Canceled | Status::Expired) {
            return Err(EngineError::Refused(format!("Cannot retry job in {} state", old.status.name())));
        }
        let now = self.now();
        let new_id = self.dice.job_id(now);
        // The key stays with the job that was published under it: the retry is a second execution on purpose.
        let spec = JobSpec { start: Start::In(delay_seconds), idempotency_key: None, ..spec_of(old) };
        let spec = spec.check(self.settings.limits.payload_max_bytes)?;
        let created = create(new_id, spec, old.owner.clone(), now)?;
        self.committer.apply(created).await?;
        if let Err(error) = self.transition(old.id, |_| Input::Retried { new_id }).await {
            tracing::warn!(job = %old.id, new_job = %new_id, %error, "a retry is not in the old job's history");
        }
        Ok(Retried { new_id, delayed: delay_seconds > 0 })
    }
}

/// What a publisher would say to get this job again. An absolute expiry is in the past by then, so the default takes
/// its place.
pub fn spec_of(job: &Job) -> JobSpec {
    let expiry = match job.expiry {
        crate::model::Expiry::At(_) => crate::model::Expiry::Default,
        other => other,
    };
    JobSpec {
        func: job.func.clone(),
        payload: job.payload.clone(),
        channel: job.channel.clone(),
        start: Start::Now,
        expiry,
        max_retries: job.max_retries,
        backoff_base: job.backoff_base,
        backoff_max_seconds: job.backoff_max_seconds,
        broadcast: job.broadcast,
        max_exec_seconds: job.max_exec_seconds,
        idempotency_key: job.idempotency_key.clone(),
        priority: job.priority,
        traceparent: job.traceparent.clone(),
        fingerprint: [0; 16],
    }
}
