//! What runs the jobs: the seam between the protocol and whatever executes.

use std::time::Duration;

use errand_proto::v1::{Assignment, Lease, LogLine, Progress};
use tokio::sync::{mpsc, watch};

/// Executes one attempt of one job at a time per call; calls run at the same time, up to the capacity.
#[async_trait::async_trait]
pub trait Executor: Send + Sync + 'static {
    /// Runs the job to its end. Must return soon after `context` says [`Stop::Kill`].
    async fn execute(&self, assignment: Assignment, context: JobContext) -> Outcome;

    /// Reads its configuration again; answers the RELOAD command.
    fn reload(&self) -> Result<(), String> {
        Ok(())
    }
}

/// How urgently an execution should stop. Only ever grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    #[default]
    Run,
    /// Somebody asked: return early, cooperatively.
    Cancel,
    /// The time limit is over; the attempt has been failed already.
    Expire,
    /// The lease is lost, or the runner leaves at once: end without ado.
    Kill,
}

/// How an execution ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// `result_json` is a JSON value; empty means null.
    Completed {
        result_json: String,
    },
    Failed {
        error: String,
        stack_trace: String,
        permanent: bool,
        retry_after: Option<Duration>,
    },
    /// Stopped early after [`Stop::Cancel`].
    Canceled,
    /// Handed back, at no cost to the job's attempts.
    Released,
}

impl Outcome {
    /// A failure that the retry rules of the job decide about.
    pub fn failed(error: impl Into<String>) -> Self {
        Self::Failed { error: error.into(), stack_trace: String::new(), permanent: false, retry_after: None }
    }
}

/// What an execution may say and hear while it runs.
#[derive(Debug)]
pub struct JobContext {
    lease: Lease,
    stop: watch::Receiver<Stop>,
    progress: mpsc::Sender<Progress>,
}

impl JobContext {
    pub(super) fn new(lease: Lease, stop: watch::Receiver<Stop>, progress: mpsc::Sender<Progress>) -> Self {
        Self { lease, stop, progress }
    }

    /// Waits until the execution should stop more urgently than `level`, and says how. Cancel-safe.
    pub async fn stop_beyond(&mut self, level: Stop) -> Stop {
        // The guard is given up before any further wait: it must not be held across one.
        let stopped = self.stop.wait_for(|stop| *stop > level).await.map(|stop| *stop);
        match stopped {
            Ok(stop) => stop,
            // The session is gone, and with it whoever would take a result.
            Err(_) if level < Stop::Kill => Stop::Kill,
            Err(_) => std::future::pending().await,
        }
    }

    /// Where the execution's progress goes.
    pub fn reporter(&self) -> Reporter {
        Reporter { lease: self.lease.clone(), progress: self.progress.clone() }
    }
}

/// Sends logs and metadata of one execution; may be handed to a task beside it.
#[derive(Clone, Debug)]
pub struct Reporter {
    lease: Lease,
    progress: mpsc::Sender<Progress>,
}

impl Reporter {
    /// Hands the lines over, or hands them back where the queue is full, e.g. while there is no connection.
    pub fn try_log(&self, logs: Vec<LogLine>) -> Result<(), Vec<LogLine>> {
        let progress = Progress { lease: Some(self.lease.clone()), metadata_json: None, logs };
        self.progress.try_send(progress).map_err(|refused| refused.into_inner().logs)
    }

    /// Replaces the job's metadata, a JSON object; false where the queue is full.
    pub fn try_metadata(&self, metadata_json: String) -> bool {
        let progress =
            Progress { lease: Some(self.lease.clone()), metadata_json: Some(metadata_json), logs: Vec::new() };
        self.progress.try_send(progress).is_ok()
    }
}
