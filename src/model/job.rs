//! The job: what a publisher stores, what a runner executes, what an operator reads.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{JobId, Timestamp};

/// Where a job stands. The four last are terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    Pending,
    Running,
    Completed,
    Failed,
    Canceled,
    Expired,
}

impl Status {
    pub const ALL: [Status; 6] =
        [Status::Pending, Status::Running, Status::Completed, Status::Failed, Status::Canceled, Status::Expired];

    pub fn is_terminal(self) -> bool {
        !matches!(self, Status::Pending | Status::Running)
    }

    /// The name that REST, messages and the database use.
    pub fn name(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Running => "running",
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::Canceled => "canceled",
            Status::Expired => "expired",
        }
    }
}

/// How the publisher chose the expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// Nothing said: 900 s from the run time, and anew with each retry.
    Default,
    /// So many seconds from the first run time.
    In(u32),
    /// At this time.
    At(Timestamp),
}

/// How the parts of a broadcast job stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts {
    pub total: u32,
    pub completed: u32,
    pub failed: u32,
    pub canceled: u32,
    pub expired: u32,
}

impl Parts {
    /// Parts that have come to their end.
    pub fn ended(&self) -> u32 {
        self.completed + self.failed + self.canceled + self.expired
    }
}

/// The right to report on one attempt of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lease {
    pub job_id: JobId,
    pub attempt: u32,
}

/// A job as the store keeps it. Texts that runners and publishers give in JSON stay text, spelt as they came.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    pub id: JobId,
    /// Grows by one with each stored change; the store refuses a step that expected another.
    pub version: u32,
    pub channel: Arc<str>,
    pub func: Arc<str>,
    /// A JSON object.
    pub payload: Arc<str>,
    pub status: Status,
    /// Set for a delayed job and for one that waits for its next retry.
    pub run_at: Option<Timestamp>,
    /// When it may start: `run_at`, or when it was created.
    pub ready_at: Timestamp,
    pub expires_at: Timestamp,
    pub expiry: Expiry,
    /// Claims so far. It names the current lease, so it never returns to an earlier value.
    pub attempt: u32,
    /// Claims that were handed back unexecuted.
    pub releases: u32,
    pub max_retries: u32,
    pub backoff_base: f64,
    pub backoff_max_seconds: u32,
    pub broadcast: bool,
    pub cancel_requested: bool,
    pub max_exec_seconds: Option<u32>,
    pub runner_id: Option<Arc<str>>,
    pub last_error: String,
    pub stack_trace: String,
    /// A JSON object; empty: none reported.
    pub metadata: String,
    /// A JSON value; empty until completed with one.
    pub result: String,
    pub idempotency_key: Option<Arc<str>>,
    /// Tells whether a second publish under the same key has the same content; zeros without a key.
    pub fingerprint: [u8; 16],
    pub owner: Arc<str>,
    pub priority: i32,
    pub created: Timestamp,
    pub modified: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub traceparent: String,
    pub parent_id: Option<JobId>,
    /// Of the last event; the next one has this plus one.
    pub event_seq: u32,
}

impl Job {
    /// Executions started, claims that were handed back not counted.
    pub fn executions(&self) -> u32 {
        self.attempt - self.releases
    }

    /// Whether a failure now would still leave a retry.
    pub fn has_retries_left(&self) -> bool {
        self.executions() <= self.max_retries
    }

    /// The lease of the current attempt.
    pub fn lease(&self) -> Lease {
        Lease { job_id: self.id, attempt: self.attempt }
    }

    /// When the running execution must be over; none without a limit or while it is not running.
    pub fn overrun_at(&self) -> Option<Timestamp> {
        match (self.status, self.started_at, self.max_exec_seconds) {
            (Status::Running, Some(started), Some(limit)) => Some(started.plus_seconds(limit)),
            _ => None,
        }
    }
}

/// Enough of a pending job to line it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    pub id: JobId,
    pub channel: Arc<str>,
    pub priority: i32,
    pub ready_at: Timestamp,
}
