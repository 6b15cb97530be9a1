//! A job's append-only history.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{JobId, Timestamp};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EventKind {
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
    Released,
}

/// One line of the history. Grows within one job: the job and `seq` name it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobEvent {
    pub seq: u32,
    pub job_id: JobId,
    pub channel: Arc<str>,
    pub kind: EventKind,
    pub at: Timestamp,
    pub runner_id: Option<Arc<str>>,
    pub attempt: u32,
    /// A JSON object; empty: none.
    pub details: String,
}
