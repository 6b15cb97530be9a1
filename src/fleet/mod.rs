//! The fleet: a rumour. Losing it costs a heartbeat, never a job.
//!
//! It tells the nodes of each other and of the runners attached to them, carries letters between nodes, and lets one node
//! at a time lead. What it says of a runner may be a second old; what it carries may be lost. Whatever must not be lost
//! is in the store.
//!
//! A runner *lives* while a stream of it is attached, it was heard of within `silent_after`, and the node that has the
//! stream was heard of within [`NODE_SILENT_AFTER`]. Ages are measured by the adapter's own clock, never by comparing the
//! clocks of nodes.

#[cfg(test)]
mod contract;
mod inbox;
pub mod memory;
pub mod redis;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::model::{
    JobEvent, Lease, Timestamp,
    runner::{Command, InterruptReason, Presence, Reply},
};

/// A node that was not heard of for longer is gone.
pub const NODE_SILENT_AFTER: Duration = Duration::from_secs(3);
/// How long a runner that is gone stays listed.
pub const REMEMBER: Duration = Duration::from_secs(600);
/// Letters that may wait for a node to read them; further ones are lost.
pub const LETTERS_MAX: usize = 65_536;

/// A stream of a runner asks to be let in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    pub presence: Presence,
    pub session_id: Arc<str>,
    /// Whether the runner itself named `session_id`, to go on with it.
    pub resumes: bool,
    /// Tells the streams of one session from each other.
    pub stream: u64,
}

/// What a new stream found of its runner's earlier ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Admission {
    /// Nothing that matters.
    Fresh,
    /// The session it names; its leases and counts go on.
    Resumed { earlier: Stream, jobs_processed: u64, jobs_failed: u64, started: Timestamp },
    /// A session it does not name, which is over.
    Replaced { earlier: Stream, session_id: Arc<str> },
    /// A living session of another incarnation: it is not let in.
    Taken,
}

/// Where a stream is, or was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    pub node_id: Arc<str>,
    pub stream: u64,
    /// Whether it has not closed, as far as anybody has said.
    pub attached: bool,
}

/// How a runner is, said by the node that has its stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Beat {
    pub presence: Presence,
    pub session_id: Arc<str>,
    pub stream: u64,
    /// Since the runner itself was last heard of.
    pub heard_ago: Duration,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    pub node_id: Arc<str>,
    /// Whether somebody follows events on this node.
    pub watches: bool,
    /// How the executions of each channel went there, for whoever sums up.
    pub channels: Vec<ChannelReport>,
    /// What retention removed there.
    #[serde(default)]
    pub removals: Removals,
}

/// What retention removed on one node since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Removals {
    pub jobs: u64,
    /// The last time that it removed any.
    pub last: Option<Timestamp>,
}

/// The executions of a channel on one node, over the window that its metrics look back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChannelReport {
    pub channel: Arc<str>,
    pub ended: u64,
    pub succeeded: u64,
    pub duration_ms: u64,
}

/// An order to a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Order {
    /// The reply goes to the node that asked.
    Command {
        command: Command,
        reply_to: Arc<str>,
    },
    Interrupt {
        lease: Lease,
        reason: InterruptReason,
    },
    /// The reaper took this lease away.
    Lost(Lease),
    /// The runner came back over another stream; this one is over.
    Supersede {
        stream: u64,
    },
}

/// From node to node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Letter {
    Order {
        runner_id: Arc<str>,
        order: Order,
    },
    Reply {
        command_id: String,
        reply: Reply,
    },
    /// Somebody follows events on this node from now on.
    Watching {
        node_id: Arc<str>,
    },
    /// Events that were stored by another node, for those who follow them.
    Events(Vec<JobEvent>),
}

/// Nobody could be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the fleet cannot be reached")]
pub struct Unreachable;

/// One node's view of the fleet.
///
/// Where the adapter cannot reach the others, streams are let in, letters are not delivered, and nobody leads; only who asks
/// for one runner is told, for not to find it means that it is gone.
#[async_trait]
pub trait Fleet: Send + Sync {
    /// Registers a stream, unless another incarnation of its runner lives. An earlier stream of the runner is no longer the
    /// runner's from then on; whoever lets the new one in tells it so.
    async fn admit(&self, arrival: Arrival) -> Admission;

    /// Says how this node is, and how the runners are whose streams it has. A node is there while it reports itself often
    /// enough; without a report, what it said last stands. A beat of a stream that was replaced changes nothing; one of a
    /// runner that is not known makes it known.
    async fn announce(&self, report: Option<NodeReport>, beats: Vec<Beat>);

    /// This stream has closed. False where another one has taken its place.
    async fn depart(&self, last: Beat) -> bool;

    /// Every runner by id, living or not; those gone for longer than [`REMEMBER`] are forgotten.
    async fn roster(&self) -> Vec<Presence>;

    /// One runner, and whether it lives.
    async fn find(&self, runner_id: &str) -> Result<Option<Presence>, Unreachable>;

    /// The nodes that are there, in order of id, as they last announced themselves.
    async fn nodes(&self) -> Vec<NodeReport>;

    /// Sends letters to a node, in order. False where it is not there or takes no more.
    async fn send(&self, node_id: &str, letters: Vec<Letter>) -> bool;

    /// Letters for this node; waits for the first. Cancel-safe: dropping the wait loses nothing.
    async fn receive(&self) -> Vec<Letter>;

    /// Asks to lead, or to go on leading, for `ttl`. At most one node does at any time.
    async fn lead(&self, ttl: Duration) -> bool;

    /// The node that leads.
    async fn leader(&self) -> Option<Arc<str>>;

    /// This node goes: it leads no longer, and is no longer there.
    async fn leave(&self);
}
