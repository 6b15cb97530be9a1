//! THE state machine. One pure function moves jobs; nothing else in the house decides where a job may go.
//!
//! It promises:
//! - a terminal job absorbs every input;
//! - `attempt` grows only on a claim, by one, so an attempt names one lease for ever;
//! - an input that names another attempt than the current one never yields a step;
//! - at most `1 + max_retries` executions, claims that were handed back unexecuted not counted;
//! - a job whose cancellation was asked for never returns to pending.
//!
//! It decides and performs nothing: a [`Step`] tells the store what to write and the queue what to hear.

mod creation;

use std::{sync::Arc, time::Duration};

pub use creation::{create, create_part, create_refused, private_channel};

use super::{
    EventKind, Expiry, Job, JobEvent, JobId, Parts, Status, Timestamp, retry::backoff, spec::EXPIRES_IN_DEFAULT,
};

/// Something that happened to a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A runner takes it.
    Claim { runner_id: Arc<str> },
    /// The function returned. `result` is a JSON value, empty for none.
    Complete { attempt: u32, result: String, metadata: Option<String> },
    /// The function failed.
    Fail { attempt: u32, failure: Failure, metadata: Option<String> },
    /// Handed back unexecuted.
    Release { attempt: u32 },
    /// Its runner died or fell silent.
    LoseLease { attempt: u32 },
    /// `max_exec_seconds` is over.
    Overrun { attempt: u32 },
    /// Somebody asks for its cancellation.
    Cancel,
    /// Somebody asks for its cancellation, and its runner is gone.
    ForceCancel,
    /// The function returned early.
    Canceled { attempt: u32, metadata: Option<String> },
    /// New metadata while it runs.
    Progress { attempt: u32, metadata: String },
    /// Its expiry has passed.
    Expire,
    /// A broadcast job is handed to every runner there is.
    Fanout { parts: u32 },
    /// Parts of a broadcast job have come to their end.
    Settle { parts: Parts },
    /// Somebody published it anew.
    Retried { new_id: JobId },
}

/// How a function failed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Failure {
    pub error: String,
    pub stack_trace: String,
    /// No retry, whatever is left.
    pub permanent: bool,
    /// When to retry, in place of the backoff.
    pub retry_after: Option<Duration>,
}

/// What the queue should hear once a step is stored. A hint may be lost: it costs latency, never a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    None,
    /// It can be taken, at once or from its run time on.
    Offer,
    /// It can be taken no longer.
    Forget,
}

/// One change of one job, ready to be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The stored version this step starts from; `None`: the job is new.
    pub expected: Option<u32>,
    pub job: Arc<Job>,
    /// Absent for changes that are no part of the history, such as progress.
    pub event: Option<JobEvent>,
    pub hint: Hint,
    /// The new job waits in the store as an arrival: it is stored if the arrival is still there, which goes with it.
    pub arrives: bool,
}

/// Why an input changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The job is not in a state for it.
    #[error("the job is {}", .0.name())]
    Status(Status),
    /// It names an attempt that is not the current one.
    #[error("the attempt is over")]
    StaleAttempt,
    /// Its run time has not come.
    #[error("its run time has not come")]
    NotDue,
    /// Its expiry has passed, or for [`Input::Expire`], has not.
    #[error("its expiry does not allow it")]
    Expiry,
    /// Its time limit is not over.
    #[error("its time limit is not over")]
    WithinLimit,
    /// It already is as the input would have it.
    #[error("it is so already")]
    Unchanged,
}

/// Moves a job, or tells why not.
///
/// `roll` is 64 random bits for the jitter of a backoff.
pub fn step(job: &Job, input: Input, now: Timestamp, roll: u64) -> Result<Step, Refusal> {
    if let Input::Retried { new_id } = input {
        return retried(job, new_id, now);
    }
    if job.status.is_terminal() {
        return Err(Refusal::Status(job.status));
    }
    let change = Change::of(job, now);
    match input {
        Input::Claim { runner_id } => claim(change, runner_id),
        Input::Cancel if job.status == Status::Pending => Ok(change.end(Status::Canceled, String::new())),
        Input::Cancel if job.cancel_requested => Err(Refusal::Unchanged),
        Input::Cancel => Ok(change.request_cancel()),
        Input::ForceCancel => Ok(change.end(Status::Canceled, details_of("forced", "the runner is gone"))),
        Input::Expire => expire(change),
        Input::Fanout { parts } => fanout(change, parts),
        Input::Settle { parts } => settle(change, parts),
        Input::Retried { .. } => Err(Refusal::Unchanged),
        Input::Complete { attempt, .. }
        | Input::Fail { attempt, .. }
        | Input::Release { attempt }
        | Input::LoseLease { attempt }
        | Input::Overrun { attempt }
        | Input::Canceled { attempt, .. }
        | Input::Progress { attempt, .. } => report(change, attempt, input, roll),
    }
}

/// The inputs that concern one running attempt.
fn report(mut change: Change, attempt: u32, input: Input, roll: u64) -> Result<Step, Refusal> {
    if change.job.status != Status::Running {
        return Err(Refusal::Status(change.job.status));
    }
    if change.job.attempt != attempt || change.job.broadcast {
        return Err(Refusal::StaleAttempt);
    }
    match input {
        Input::Complete { result, metadata, .. } => {
            change.report_metadata(metadata);
            change.job.result = result;
            change.job.last_error.clear();
            change.job.stack_trace.clear();
            Ok(change.end(Status::Completed, String::new()))
        }
        Input::Fail { failure, metadata, .. } => {
            change.report_metadata(metadata);
            Ok(change.fail(failure, Waiting::Backoff { roll }))
        }
        // Nobody is left to return early.
        Input::LoseLease { .. } if change.job.cancel_requested => Ok(change.end(Status::Canceled, String::new())),
        Input::LoseLease { .. } => {
            let runner = change.job.runner_id.as_deref().unwrap_or("its runner").to_owned();
            let failure = Failure { error: format!("runner {runner} was lost"), ..Failure::default() };
            Ok(change.fail(failure, Waiting::None))
        }
        Input::Overrun { .. } => overrun(change, roll),
        Input::Canceled { metadata, .. } => {
            change.report_metadata(metadata);
            Ok(change.end(Status::Canceled, String::new()))
        }
        Input::Release { .. } if change.job.cancel_requested => Ok(change.end(Status::Canceled, String::new())),
        Input::Release { .. } => Ok(change.release()),
        Input::Progress { metadata, .. } => {
            change.report_metadata(Some(metadata));
            Ok(change.done(None, Hint::None))
        }
        _ => Err(Refusal::Unchanged),
    }
}

fn claim(mut change: Change, runner_id: Arc<str>) -> Result<Step, Refusal> {
    let (job, now) = (&mut change.job, change.now);
    if job.status != Status::Pending {
        return Err(Refusal::Status(job.status));
    }
    if job.expires_at <= now {
        return Err(Refusal::Expiry);
    }
    if job.ready_at > now || job.broadcast {
        return Err(Refusal::NotDue);
    }
    job.status = Status::Running;
    job.attempt += 1;
    job.runner_id = Some(runner_id);
    job.started_at = Some(now);
    job.finished_at = None;
    let event = change.event(EventKind::Running, String::new());
    Ok(change.done(Some(event), Hint::Forget))
}

fn expire(change: Change) -> Result<Step, Refusal> {
    if change.job.status != Status::Pending {
        return Err(Refusal::Status(change.job.status));
    }
    if change.job.expires_at > change.now {
        return Err(Refusal::Expiry);
    }
    Ok(change.end(Status::Expired, String::new()))
}

fn overrun(change: Change, roll: u64) -> Result<Step, Refusal> {
    match (change.job.overrun_at(), change.job.max_exec_seconds) {
        (Some(at), Some(limit)) if at <= change.now => {
            let failure = Failure { error: format!("exceeded max_exec_seconds of {limit} s"), ..Failure::default() };
            Ok(change.fail(failure, Waiting::Backoff { roll }))
        }
        _ => Err(Refusal::WithinLimit),
    }
}

fn fanout(mut change: Change, parts: u32) -> Result<Step, Refusal> {
    let (job, now) = (&mut change.job, change.now);
    if job.status != Status::Pending || !job.broadcast {
        return Err(Refusal::Status(job.status));
    }
    if job.expires_at <= now {
        return Err(Refusal::Expiry);
    }
    if job.ready_at > now {
        return Err(Refusal::NotDue);
    }
    job.status = Status::Running;
    job.attempt += 1;
    job.started_at = Some(now);
    job.metadata = parts_json(&Parts { total: parts, ..Parts::default() });
    let event = change.event(EventKind::Running, format!(r#"{{"runners":{parts}}}"#));
    Ok(change.done(Some(event), Hint::None))
}

fn settle(mut change: Change, parts: Parts) -> Result<Step, Refusal> {
    if change.job.status != Status::Running || !change.job.broadcast {
        return Err(Refusal::Status(change.job.status));
    }
    let metadata = parts_json(&parts);
    if parts.ended() < parts.total {
        if change.job.metadata == metadata {
            return Err(Refusal::Unchanged);
        }
        change.job.metadata = metadata;
        return Ok(change.done(None, Hint::None));
    }
    change.job.metadata = metadata;
    let failed = parts.failed + parts.expired;
    if failed > 0 {
        change.job.last_error = format!("{failed} of {} runners failed", parts.total);
        Ok(change.end(Status::Failed, String::new()))
    } else if parts.canceled > 0 {
        Ok(change.end(Status::Canceled, String::new()))
    } else {
        Ok(change.end(Status::Completed, String::new()))
    }
}

/// A line in the history of a job that was published anew; the job itself stays as it is.
fn retried(job: &Job, new_id: JobId, now: Timestamp) -> Result<Step, Refusal> {
    if !matches!(job.status, Status::Failed | Status::Canceled | Status::Expired) {
        return Err(Refusal::Status(job.status));
    }
    let modified = job.modified;
    let mut change = Change::of(job, now);
    let event = change.event(EventKind::Retry, format!(r#"{{"new_job_id":"{new_id}"}}"#));
    let mut step = change.done(Some(event), Hint::None);
    Arc::make_mut(&mut step.job).modified = modified;
    Ok(step)
}

/// What a broadcast job's metadata tells: how many runners did what.
fn parts_json(parts: &Parts) -> String {
    format!(
        r#"{{"runners":{},"completed":{},"failed":{},"canceled":{},"expired":{}}}"#,
        parts.total, parts.completed, parts.failed, parts.canceled, parts.expired
    )
}

/// A JSON object with one text in it.
fn details_of(key: &str, text: &str) -> String {
    serde_json::json!({ key: text }).to_string()
}

/// How long a failed attempt waits for the next.
enum Waiting {
    /// Not at all: the failure was its runner's, not its own.
    None,
    Backoff {
        roll: u64,
    },
}

/// A job on its way to the next version.
struct Change {
    job: Job,
    now: Timestamp,
}

impl Change {
    fn of(job: &Job, now: Timestamp) -> Change {
        Change { job: job.clone(), now }
    }

    fn event(&mut self, kind: EventKind, details: String) -> JobEvent {
        self.job.event_seq += 1;
        JobEvent {
            seq: self.job.event_seq,
            job_id: self.job.id,
            channel: self.job.channel.clone(),
            kind,
            at: self.now,
            runner_id: self.job.runner_id.clone(),
            attempt: self.job.executions(),
            details,
        }
    }

    fn done(mut self, event: Option<JobEvent>, hint: Hint) -> Step {
        let expected = self.job.version;
        self.job.version += 1;
        self.job.modified = self.now;
        Step { expected: Some(expected), job: Arc::new(self.job), event, hint, arrives: false }
    }

    fn end(mut self, status: Status, details: String) -> Step {
        let kind = match status {
            Status::Completed => EventKind::Completed,
            Status::Canceled => EventKind::Canceled,
            Status::Expired => EventKind::Expired,
            Status::Pending | Status::Running | Status::Failed => EventKind::Failed,
        };
        self.job.status = status;
        self.job.finished_at = Some(self.now);
        let event = self.event(kind, details);
        self.done(Some(event), Hint::Forget)
    }

    fn report_metadata(&mut self, metadata: Option<String>) {
        if let Some(metadata) = metadata {
            self.job.metadata = metadata;
        }
    }

    fn request_cancel(mut self) -> Step {
        self.job.cancel_requested = true;
        self.done(None, Hint::None)
    }

    /// Ends the attempt: pending again where a retry is left and may start in time, failed otherwise.
    fn fail(mut self, failure: Failure, waiting: Waiting) -> Step {
        let details = details_of("error", &failure.error);
        self.job.last_error = failure.error;
        self.job.stack_trace = failure.stack_trace;
        let (wait, waits) = match (failure.retry_after, waiting) {
            (Some(wait), _) => (wait, true),
            (None, Waiting::None) => (Duration::ZERO, false),
            (None, Waiting::Backoff { roll }) => {
                let k = self.job.executions().max(1);
                (backoff(self.job.backoff_base, self.job.backoff_max_seconds, k, roll), true)
            }
        };
        let retry_at = self.now.plus(wait);
        let in_time = self.job.expiry == Expiry::Default || retry_at < self.job.expires_at;
        if failure.permanent || self.job.cancel_requested || !self.job.has_retries_left() || !in_time {
            return self.end(Status::Failed, details);
        }
        if self.job.expiry == Expiry::Default {
            self.job.expires_at = retry_at.plus_seconds(EXPIRES_IN_DEFAULT);
        }
        let event = self.event(EventKind::Retry, details);
        self.job.status = Status::Pending;
        self.job.ready_at = retry_at;
        self.job.run_at = waits.then_some(retry_at);
        self.job.runner_id = None;
        self.done(Some(event), Hint::Offer)
    }

    fn release(mut self) -> Step {
        let event = self.event(EventKind::Released, String::new());
        self.job.status = Status::Pending;
        self.job.releases += 1;
        self.job.started_at = None;
        self.job.runner_id = None;
        self.done(Some(event), Hint::Offer)
    }
}

#[cfg(test)]
mod tests;
