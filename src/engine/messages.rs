//! What runners and the engine say to each other, free of any wire format.

use std::{sync::Arc, time::Duration};

pub use crate::model::runner::{Command, CommandKind, InterruptReason, Presence, Reply};
use crate::model::{Job, Lease, Timestamp, lifecycle::Failure, log::LogKind};

/// A runner presents itself.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hello {
    pub runner_id: String,
    pub channels: Vec<String>,
    pub capacity: u32,
    pub hostname: String,
    pub client: String,
    /// To resume; empty for a new session.
    pub session_id: String,
    pub leases: Vec<Lease>,
}

/// From a runner, after its Hello.
#[derive(Debug, Clone, PartialEq)]
pub enum FromRunner {
    Heartbeat(Vec<Lease>),
    Results(Vec<Report>),
    Progress { lease: Lease, metadata: Option<String>, logs: Vec<Line> },
    CommandReply { command_id: String, data: String, error: String },
    SetCapacity(u32),
}

/// The end of one execution.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    pub lease: Lease,
    pub end: End,
    pub metadata: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// A JSON value, or empty.
    Completed(String),
    Failed(Failure),
    Canceled,
    Released,
}

/// One log line of a job function.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// `None`: when it arrived.
    pub at: Option<Timestamp>,
    pub kind: LogKind,
    pub message: String,
    pub meta: String,
}

/// To a runner.
#[derive(Debug, Clone, PartialEq)]
pub enum ToRunner {
    Welcome(Welcome),
    Assignments(Vec<Arc<Job>>),
    ResultsAccepted(Vec<Receipt>),
    Interrupt { lease: Lease, reason: InterruptReason },
    Command(Command),
    GoAway { reason: String },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Welcome {
    pub session_id: String,
    pub node_id: Arc<str>,
    pub timings: Timings,
    pub lost: Vec<Lease>,
}

/// What Welcome tells runners of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    pub heartbeat_interval: Duration,
    pub accept_timeout: Duration,
    pub lease_ttl: Duration,
    pub resume_window: Duration,
}

impl Timings {
    /// A runner that was not heard of for longer is not alive.
    pub fn silent_after(&self) -> Duration {
        self.heartbeat_interval * 2
    }
}

impl Default for Timings {
    fn default() -> Timings {
        Timings {
            heartbeat_interval: Duration::from_secs(5),
            accept_timeout: Duration::from_secs(5),
            lease_ttl: Duration::from_secs(15),
            resume_window: Duration::from_secs(2),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    pub lease: Lease,
    pub accepted: bool,
}
