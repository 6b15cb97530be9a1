//! What is known of a runner, and what may be asked of it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// A runner as operators see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Presence {
    pub runner_id: Arc<str>,
    /// Without its private one.
    pub channels: Vec<Arc<str>>,
    pub jobs_processed: u64,
    pub jobs_failed: u64,
    pub started: Timestamp,
    pub last_heartbeat: Timestamp,
    pub alive: bool,
    pub paused: bool,
    pub hostname: String,
    pub client: String,
    pub capacity: u32,
    pub running: u32,
    /// Where its stream is, or was last.
    pub node_id: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandKind {
    Ping,
    Status,
    Pause,
    Resume,
    Reload,
    Shutdown,
    Sysinfo,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    pub command_id: String,
    pub kind: CommandKind,
    /// A JSON object, or empty.
    pub data: String,
    /// With [`CommandKind::Shutdown`]: finish what runs first.
    pub graceful: bool,
}

/// What one runner answered to a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    pub runner_id: Arc<str>,
    /// A JSON object.
    pub data: String,
    /// Not empty where the command failed.
    pub error: String,
}

/// Why an execution must stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InterruptReason {
    Requested,
    TimedOut,
    LeaseLost,
}
