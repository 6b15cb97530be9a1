//! Lines that job functions write while they run.

use std::sync::Arc;

use super::{JobId, Timestamp};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogKind {
    Debug,
    Info,
    Warn,
    Error,
}

/// One line. The store gives it its id.
#[derive(Debug, Clone, PartialEq)]
pub struct JobLog {
    /// Zero until stored.
    pub id: u64,
    pub job_id: JobId,
    pub channel: Arc<str>,
    pub created: Timestamp,
    pub kind: LogKind,
    pub message: String,
    /// A JSON object; empty: none.
    pub meta: String,
}
