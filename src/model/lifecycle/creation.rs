//! How a job begins: as a publisher wants it, as a part of a broadcast job, or refused.

use std::sync::Arc;

use super::{Change, Hint, Step, details_of};
use crate::model::{
    EventKind, Expiry, Invalid, Job, JobId, JobSpec, Start, Status, Timestamp, spec::EXPIRES_IN_DEFAULT,
};

/// Makes a job.
///
/// Fails where the expiry would come at or before the run time.
pub fn create(id: JobId, spec: JobSpec, owner: Arc<str>, now: Timestamp) -> Result<Step, Invalid> {
    let job = new_job(id, spec, owner, now);
    if job.expires_at <= job.ready_at {
        return Err(Invalid::new("expires_at", "must be after the run time"));
    }
    Ok(created(job, Hint::Offer, now))
}

/// Makes a job that cannot be taken as it was published, and ends it in the same breath, so that whoever has its id learns
/// why. It never waits for a runner, and it does not hold the idempotency key that it asked for.
pub fn create_refused(id: JobId, spec: JobSpec, owner: Arc<str>, now: Timestamp, error: String) -> [Step; 2] {
    let job = new_job(id, JobSpec { idempotency_key: None, ..spec }, owner, now);
    let made = created(job, Hint::None, now);
    let mut change = Change::of(&made.job, now);
    let details = details_of("error", &error);
    change.job.last_error = error;
    let ended = change.end(Status::Failed, details);
    [made, ended]
}

fn new_job(id: JobId, spec: JobSpec, owner: Arc<str>, now: Timestamp) -> Job {
    let created = creation(id, now);
    let run_at = match spec.start {
        Start::Now | Start::In(0) => None,
        Start::In(seconds) => Some(created.plus_seconds(seconds)),
        Start::At(at) => Some(at),
    };
    let ready_at = run_at.unwrap_or(now).max(now);
    let expires_at = match spec.expiry {
        Expiry::Default => ready_at.plus_seconds(EXPIRES_IN_DEFAULT),
        Expiry::In(seconds) => ready_at.plus_seconds(seconds),
        Expiry::At(at) => at,
    };
    Job {
        id,
        version: 1,
        channel: spec.channel,
        func: spec.func,
        payload: spec.payload,
        status: Status::Pending,
        run_at,
        ready_at,
        expires_at,
        expiry: spec.expiry,
        attempt: 0,
        releases: 0,
        max_retries: spec.max_retries,
        backoff_base: spec.backoff_base,
        backoff_max_seconds: spec.backoff_max_seconds,
        broadcast: spec.broadcast,
        cancel_requested: false,
        max_exec_seconds: spec.max_exec_seconds,
        runner_id: None,
        last_error: String::new(),
        stack_trace: String::new(),
        metadata: String::new(),
        result: String::new(),
        idempotency_key: spec.idempotency_key,
        fingerprint: spec.fingerprint,
        owner,
        priority: spec.priority,
        created,
        modified: now,
        started_at: None,
        finished_at: None,
        traceparent: spec.traceparent,
        parent_id: None,
        event_seq: 0,
    }
}

/// When a job was created, never before its id says: so the ids of what was created before some time are all below one.
/// Two ids that are made at once by two threads may have the time of the later one.
fn creation(id: JobId, now: Timestamp) -> Timestamp {
    now.max(id.made_at())
}

/// The step that stores a new job.
fn created(job: Job, hint: Hint, now: Timestamp) -> Step {
    let mut change = Change { job, now };
    let event = change.event(EventKind::Created, String::new());
    Step { expected: None, job: Arc::new(change.job), event: Some(event), hint, arrives: false }
}

/// Makes the part of a broadcast job that `runner_id` executes, on that runner's private channel.
pub fn create_part(id: JobId, parent: &Job, runner_id: &str, now: Timestamp) -> Step {
    let job = Job {
        id,
        version: 1,
        channel: private_channel(runner_id),
        status: Status::Pending,
        run_at: None,
        ready_at: now,
        attempt: 0,
        releases: 0,
        broadcast: false,
        runner_id: None,
        metadata: String::new(),
        idempotency_key: None,
        created: creation(id, now),
        started_at: None,
        parent_id: Some(parent.id),
        event_seq: 0,
        modified: now,
        ..parent.clone()
    };
    created(job, Hint::Offer, now)
}

/// The channel that only `runner_id` takes from. Publishers cannot name it: `@` is in no channel's name.
pub fn private_channel(runner_id: &str) -> Arc<str> {
    format!("@{runner_id}").into()
}
