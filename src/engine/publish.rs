//! Publishing: from a specification to a durable job.

use std::sync::Arc;

use super::{EngineError, Shared, error::JOB_NOT_FOUND, transition::spec_of};
use crate::{
    model::{Caller, Expiry, Invalid, Job, JobId, JobSpec, Start, Step, create},
    store::Outcome,
};

/// How often a batch is tried anew when other publishers use its keys at the same time.
const BATCH_TRIES_MAX: usize = 8;

/// A job that is durable.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    pub job: Arc<Job>,
    /// The idempotency key named a job that was there before; it is that one.
    pub deduplicated: bool,
}

/// What a publisher wants otherwise than the template has it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Overrides {
    pub func: Option<String>,
    pub payload: Option<String>,
    pub channel: Option<String>,
    pub start: Option<Start>,
    pub expiry: Option<Expiry>,
    pub max_retries: Option<u32>,
    pub backoff_base: Option<f64>,
    pub backoff_max_seconds: Option<u32>,
    pub broadcast: Option<bool>,
    pub max_exec_seconds: Option<u32>,
    pub idempotency_key: Option<String>,
    pub priority: Option<i32>,
    pub traceparent: String,
}

impl Overrides {
    /// The run time and the expiry start afresh, and the template's idempotency key stays the template's.
    fn apply(self, template: &Job) -> JobSpec {
        let base = spec_of(template);
        JobSpec {
            func: self.func.map_or(base.func, Arc::from),
            payload: self.payload.map_or(base.payload, Arc::from),
            channel: self.channel.map_or(base.channel, Arc::from),
            start: self.start.unwrap_or(Start::Now),
            expiry: self.expiry.unwrap_or(base.expiry),
            max_retries: self.max_retries.unwrap_or(base.max_retries),
            backoff_base: self.backoff_base.unwrap_or(base.backoff_base),
            backoff_max_seconds: self.backoff_max_seconds.unwrap_or(base.backoff_max_seconds),
            broadcast: self.broadcast.unwrap_or(base.broadcast),
            max_exec_seconds: self.max_exec_seconds.or(base.max_exec_seconds),
            idempotency_key: self.idempotency_key.map(Arc::from),
            priority: self.priority.unwrap_or(base.priority),
            traceparent: self.traceparent,
            fingerprint: [0; 16],
        }
    }
}

impl Shared {
    fn created(&self, spec: JobSpec, caller: &Caller) -> Result<Step, EngineError> {
        let spec = spec.check(self.settings.limits.payload_max_bytes)?;
        let now = self.now();
        Ok(create(self.dice.job_id(now), spec, caller.subject.clone(), now)?)
    }

    pub(super) async fn publish(&self, spec: JobSpec, caller: &Caller) -> Result<Published, EngineError> {
        let step = self.created(spec, caller)?;
        let job = step.job.clone();
        match self.committer.apply(step).await? {
            Outcome::Duplicate(earlier) => self.deduplicated(&job, earlier).await,
            Outcome::Applied | Outcome::Stale => Ok(Published { job, deduplicated: false }),
        }
    }

    /// The earlier job under the same key, if its content is the same.
    async fn deduplicated(&self, job: &Job, earlier: JobId) -> Result<Published, EngineError> {
        let earlier =
            self.load(earlier).await?.ok_or(EngineError::Busy("the key's job was just deleted; try again"))?;
        if earlier.fingerprint != job.fingerprint {
            let key = job.idempotency_key.as_deref().unwrap_or_default();
            return Err(EngineError::Conflict(format!(
                "Idempotency key \"{key}\" was used for a job with other content"
            )));
        }
        Ok(Published { job: Arc::new(earlier), deduplicated: true })
    }

    /// All of them, or none.
    pub(super) async fn publish_all(
        &self,
        specs: Vec<JobSpec>,
        caller: &Caller,
    ) -> Result<Vec<Published>, EngineError> {
        let batch_max = self.settings.limits.batch_max;
        if specs.len() > batch_max {
            return Err(Invalid::new("specs", format_args!("must be at most {batch_max} jobs")).into());
        }
        let mut steps = Vec::with_capacity(specs.len());
        for (index, spec) in specs.into_iter().enumerate() {
            let step = self.created(spec, caller).map_err(|error| match error {
                EngineError::Invalid(Invalid { field, too_large, message }) => {
                    let message = format!("specs[{index}]: {message}");
                    EngineError::Invalid(Invalid { field, too_large, message })
                }
                other => other,
            })?;
            steps.push(step);
        }
        if steps.iter().all(|step| step.job.idempotency_key.is_none()) {
            // Nothing can stand in the way of a job without a key, and a group's transaction is all or nothing.
            let jobs: Vec<Arc<Job>> = steps.iter().map(|step| step.job.clone()).collect();
            self.committer.apply_each(steps).await?;
            return Ok(jobs.into_iter().map(|job| Published { job, deduplicated: false }).collect());
        }
        self.publish_keyed(steps).await
    }

    /// Jobs that are there already are left out of the commit; a key with other content fails the batch.
    async fn publish_keyed(&self, steps: Vec<Step>) -> Result<Vec<Published>, EngineError> {
        let mut known: Vec<Option<JobId>> = vec![None; steps.len()];
        for _ in 0..BATCH_TRIES_MAX {
            let open: Vec<usize> = (0..steps.len()).filter(|index| known[*index].is_none()).collect();
            let outcomes = self.committer.apply_all(open.iter().map(|index| steps[*index].clone()).collect()).await?;
            let mut refused = false;
            for (index, outcome) in open.into_iter().zip(outcomes) {
                if let Outcome::Duplicate(earlier) = outcome {
                    known[index] = Some(earlier);
                    refused = true;
                }
            }
            if !refused {
                return self.receipts(&steps, &known).await;
            }
            self.check_conflicts(&steps, &known).await?;
        }
        Err(EngineError::Busy("other publishers use the same idempotency keys; try again"))
    }

    async fn check_conflicts(&self, steps: &[Step], known: &[Option<JobId>]) -> Result<(), EngineError> {
        for (step, earlier) in steps.iter().zip(known) {
            let Some(earlier) = earlier else { continue };
            // A twin within the batch itself is compared here; it is stored once the batch is.
            let twin = steps.iter().find(|other| other.job.id == *earlier);
            match twin {
                Some(twin) if twin.job.fingerprint == step.job.fingerprint => {}
                Some(_) => {
                    let key = step.job.idempotency_key.as_deref().unwrap_or_default();
                    return Err(EngineError::Conflict(format!(
                        "Idempotency key \"{key}\" was used for a job with other content"
                    )));
                }
                None => {
                    self.deduplicated(&step.job, *earlier).await?;
                }
            }
        }
        Ok(())
    }

    async fn receipts(&self, steps: &[Step], known: &[Option<JobId>]) -> Result<Vec<Published>, EngineError> {
        let mut published = Vec::with_capacity(steps.len());
        for (step, earlier) in steps.iter().zip(known) {
            published.push(match earlier {
                None => Published { job: step.job.clone(), deduplicated: false },
                Some(earlier) => self.deduplicated(&step.job, *earlier).await?,
            });
        }
        Ok(published)
    }

    pub(super) async fn clone_job(
        &self,
        template: &Job,
        overrides: Overrides,
        caller: &Caller,
    ) -> Result<Published, EngineError> {
        if template.parent_id.is_some() {
            return Err(JOB_NOT_FOUND);
        }
        self.publish(overrides.apply(template), caller).await
    }
}
