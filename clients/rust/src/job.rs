//! Jobs and their history as a publisher sees them: typed, with times and JSON ready to use.

use std::time::{Duration, SystemTime};

use errand_proto::v1;
use serde::de::DeserializeOwned;

use crate::Error;

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobStatus {
    /// Waiting for its run time or for a free runner.
    Pending,
    Running,
    Completed,
    Failed,
    Canceled,
    /// Not started in time.
    Expired,
}

impl JobStatus {
    /// True for the last four: nothing happens to such a job any more.
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }
}

impl From<v1::JobStatus> for JobStatus {
    fn from(status: v1::JobStatus) -> Self {
        match status {
            // No service of this contract says "unspecified".
            v1::JobStatus::Unspecified | v1::JobStatus::Pending => Self::Pending,
            v1::JobStatus::Running => Self::Running,
            v1::JobStatus::Completed => Self::Completed,
            v1::JobStatus::Failed => Self::Failed,
            v1::JobStatus::Canceled => Self::Canceled,
            v1::JobStatus::Expired => Self::Expired,
        }
    }
}

impl From<JobStatus> for v1::JobStatus {
    fn from(status: JobStatus) -> Self {
        match status {
            JobStatus::Pending => Self::Pending,
            JobStatus::Running => Self::Running,
            JobStatus::Completed => Self::Completed,
            JobStatus::Failed => Self::Failed,
            JobStatus::Canceled => Self::Canceled,
            JobStatus::Expired => Self::Expired,
        }
    }
}

/// How much a log line matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogKind {
    Debug,
    #[default]
    Info,
    Warn,
    Error,
}

impl From<LogKind> for v1::LogKind {
    fn from(kind: LogKind) -> Self {
        match kind {
            LogKind::Debug => Self::Debug,
            LogKind::Info => Self::Info,
            LogKind::Warn => Self::Warn,
            LogKind::Error => Self::Error,
        }
    }
}

impl From<v1::LogKind> for LogKind {
    fn from(kind: v1::LogKind) -> Self {
        match kind {
            v1::LogKind::Debug => Self::Debug,
            v1::LogKind::Unspecified | v1::LogKind::Info => Self::Info,
            v1::LogKind::Warn => Self::Warn,
            v1::LogKind::Error => Self::Error,
        }
    }
}

/// A job.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// 32 hex digits; ids sort by creation time.
    pub id: String,
    pub channel: String,
    pub func: String,
    /// As the publisher spelt it.
    pub payload_json: String,
    pub status: JobStatus,
    /// Set for a delayed job and for one that waits for its next retry.
    pub run_at: Option<SystemTime>,
    pub expires_at: Option<SystemTime>,
    /// Executions started so far.
    pub attempt: u32,
    pub max_retries: u32,
    pub backoff_base: f64,
    pub backoff_max: Duration,
    pub broadcast: bool,
    pub cancel_requested: bool,
    /// The hard limit of one execution.
    pub max_exec: Option<Duration>,
    pub runner_id: Option<String>,
    pub last_error: Option<String>,
    pub stack_trace: Option<String>,
    /// What the function reported, a JSON object.
    pub metadata_json: String,
    /// What the function returned, a JSON value; `None` until the job is completed.
    pub result_json: Option<String>,
    pub idempotency_key: Option<String>,
    /// The subject of the token that published it.
    pub owner: String,
    pub priority: i32,
    pub created: Option<SystemTime>,
    pub modified: Option<SystemTime>,
    pub started_at: Option<SystemTime>,
    pub finished_at: Option<SystemTime>,
    pub traceparent: Option<String>,
    /// The broadcast job that this one runs a part of.
    pub parent_id: Option<String>,
}

impl Job {
    /// The payload as `T`.
    pub fn payload<T: DeserializeOwned>(&self) -> Result<T, Error> {
        read("payload", &self.id, &self.payload_json)
    }

    /// The metadata as `T`.
    pub fn metadata<T: DeserializeOwned>(&self) -> Result<T, Error> {
        read("metadata", &self.id, &self.metadata_json)
    }

    /// The result as `T`; a job that ended in another way says how.
    pub fn result<T: DeserializeOwned>(&self) -> Result<T, Error> {
        match (self.status, &self.last_error) {
            (JobStatus::Completed, _) => read("result", &self.id, self.result_json.as_deref().unwrap_or("null")),
            (status, error) => {
                Err(Error::NotCompleted { job_id: self.id.clone(), status, error: error.clone().unwrap_or_default() })
            }
        }
    }
}

fn read<T: DeserializeOwned>(what: &'static str, job_id: &str, json: &str) -> Result<T, Error> {
    serde_json::from_str(json).map_err(|source| Error::Json { what, job_id: job_id.to_owned(), source })
}

impl From<v1::Job> for Job {
    fn from(job: v1::Job) -> Self {
        let status = JobStatus::from(job.status());
        // A completed job without a result returned nothing.
        let result = some(job.result_json).or_else(|| (status == JobStatus::Completed).then(|| "null".to_owned()));
        Self {
            status,
            result_json: result,
            id: job.id,
            channel: job.channel,
            func: job.func,
            payload_json: job.payload_json,
            run_at: time(job.run_at),
            expires_at: time(job.expires_at),
            attempt: job.attempt,
            max_retries: job.max_retries,
            backoff_base: job.backoff_base,
            backoff_max: Duration::from_secs(u64::from(job.backoff_max_seconds)),
            broadcast: job.broadcast,
            cancel_requested: job.cancel_requested,
            max_exec: job.max_exec_seconds.map(|seconds| Duration::from_secs(u64::from(seconds))),
            runner_id: some(job.runner_id),
            last_error: some(job.last_error),
            stack_trace: some(job.stack_trace),
            metadata_json: job.metadata_json,
            idempotency_key: some(job.idempotency_key),
            owner: job.owner,
            priority: job.priority,
            created: time(job.created),
            modified: time(job.modified),
            started_at: time(job.started_at),
            finished_at: time(job.finished_at),
            traceparent: some(job.traceparent),
            parent_id: some(job.parent_id),
        }
    }
}

/// A job with its latest events and its place in the queue.
#[derive(Clone, Debug, PartialEq)]
pub struct JobState {
    pub job: Job,
    /// The latest ten, oldest first.
    pub recent_events: Vec<JobEvent>,
    /// 1 is next; `None` unless pending.
    pub queue_position: Option<u64>,
}

/// What happened to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JobEventKind {
    Created,
    Queued,
    Scheduled,
    Claimed,
    Running,
    Completed,
    Failed,
    Retry,
    Canceled,
    Expired,
    /// Handed back unexecuted; it cost no attempt.
    Released,
    /// Something that this version of the client has no name for.
    Other,
}

impl From<v1::JobEventKind> for JobEventKind {
    fn from(kind: v1::JobEventKind) -> Self {
        match kind {
            v1::JobEventKind::Unspecified => Self::Other,
            v1::JobEventKind::Created => Self::Created,
            v1::JobEventKind::Queued => Self::Queued,
            v1::JobEventKind::Scheduled => Self::Scheduled,
            v1::JobEventKind::Claimed => Self::Claimed,
            v1::JobEventKind::Running => Self::Running,
            v1::JobEventKind::Completed => Self::Completed,
            v1::JobEventKind::Failed => Self::Failed,
            v1::JobEventKind::Retry => Self::Retry,
            v1::JobEventKind::Canceled => Self::Canceled,
            v1::JobEventKind::Expired => Self::Expired,
            v1::JobEventKind::Released => Self::Released,
        }
    }
}

/// One line of a job's history.
#[derive(Clone, Debug, PartialEq)]
pub struct JobEvent {
    /// Grows within one job.
    pub seq: u32,
    pub job_id: String,
    pub channel: String,
    pub kind: JobEventKind,
    pub at: Option<SystemTime>,
    pub runner_id: Option<String>,
    pub attempt: u32,
    /// A JSON object.
    pub details_json: String,
}

impl From<v1::JobEvent> for JobEvent {
    fn from(event: v1::JobEvent) -> Self {
        Self {
            kind: event.kind().into(),
            seq: event.seq,
            job_id: event.job_id,
            channel: event.channel,
            at: time(event.at),
            runner_id: some(event.runner_id),
            attempt: event.attempt,
            details_json: event.details_json,
        }
    }
}

/// A line that a function wrote while it ran.
#[derive(Clone, Debug, PartialEq)]
pub struct JobLog {
    pub at: Option<SystemTime>,
    pub kind: LogKind,
    pub message: String,
    /// A JSON object, or nothing.
    pub meta_json: String,
}

impl From<v1::JobLog> for JobLog {
    fn from(log: v1::JobLog) -> Self {
        Self { kind: log.kind().into(), at: time(log.created), message: log.message, meta_json: log.meta_json }
    }
}

fn time(wire: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    wire?.try_into().ok()
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}
