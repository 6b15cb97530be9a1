//! What runs the jobs: the seam between the protocol and whatever executes.

use std::{sync::Arc, time::Duration};

use errand_proto::v1::{Assignment, Lease};
use tokio::sync::watch;

use super::report::Reporter;

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
    stop: watch::Receiver<Stop>,
    reporter: Reporter,
}

impl JobContext {
    pub(super) fn new(stop: watch::Receiver<Stop>, reporter: Reporter) -> Self {
        Self { stop, reporter }
    }

    /// A context without a session, and the end by which to stop it and to see what it reported.
    pub(crate) fn detached(lease: &Lease) -> (Self, watch::Sender<Stop>, Reporter) {
        let (stop, stops) = watch::channel(Stop::Run);
        let reporter = Reporter::new(lease.into(), Arc::default());
        (Self::new(stops, reporter.clone()), stop, reporter)
    }

    /// How urgently it should stop at this moment.
    pub fn stop(&self) -> Stop {
        *self.stop.borrow()
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
        self.reporter.clone()
    }

    /// Another ear for the same stops.
    pub(crate) fn ear(&self) -> Self {
        Self { stop: self.stop.clone(), reporter: self.reporter.clone() }
    }
}
