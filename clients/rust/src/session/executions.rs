//! The executions of a session: started once they are accepted, heard while they run, and seen to their end.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc};

use errand_proto::v1::Assignment;
use futures::FutureExt;
use tokio::{
    sync::{oneshot, watch},
    task::{Id, JoinError, yield_now},
};

use super::{
    Executor, JobContext, Outcome, Reporter, Session, Stop,
    ledger::{Decision, LeaseKey},
};

/// An execution as its session sees it.
pub(super) struct Running {
    /// Until it is started.
    start: Option<oneshot::Sender<()>>,
    stop: watch::Sender<Stop>,
    reporter: Reporter,
}

impl<E: Executor> Session<E> {
    pub(super) fn assign(&mut self, assignment: Assignment) {
        let Some(lease) = assignment.lease.clone() else {
            return;
        };
        if self.ledger.assign(&lease) != Decision::Start {
            return;
        }
        let key = LeaseKey::from(&lease);
        let (start, started) = oneshot::channel();
        let (stop, stops) = watch::channel(Stop::Run);
        let reporter = Reporter::new(&lease, Arc::clone(&self.reports));
        let mut context = JobContext::new(stops, reporter.clone());
        self.running.insert(key.clone(), Running { start: Some(start), stop, reporter });
        self.unaccepted.push(key.clone());
        let executor = Arc::clone(&self.executor);
        let execution = async move {
            tokio::select! {
                biased;
                _ = context.stop_beyond(Stop::Cancel) => return Outcome::Released,
                Ok(()) = started => {}
            }
            let execution = AssertUnwindSafe(executor.execute(assignment, context)).catch_unwind();
            execution.await.unwrap_or_else(|panic| Outcome::failed(format!("panicked: {}", said_in(&*panic))))
        };
        let spawned = self.executions.spawn_on(execution, &self.runtime);
        self.keys.insert(spawned.id(), key);
    }

    pub(super) fn reported(&mut self, key: &LeaseKey) {
        if let Some(progress) = self.running.get(key).and_then(|running| running.reporter.take()) {
            self.ledger.progressed(progress);
        }
    }

    pub(super) fn ended(&mut self, ended: Result<(Id, Outcome), JoinError>) {
        // Panics are caught inside, so an error says that the caller's runtime is going down.
        let (id, outcome) = ended.unwrap_or_else(|error| (error.id(), Outcome::Released));
        let Some(key) = self.keys.remove(&id) else { return };
        let mut metadata = None;
        if let Some(Running { reporter, .. }) = self.running.remove(&key) {
            // What it logged goes before its result.
            while let Some(progress) = reporter.take() {
                self.ledger.progressed(progress);
            }
            metadata = reporter.last_metadata();
        }
        self.counters.count(&outcome);
        self.ledger.finished(key, outcome.into(), metadata);
    }

    /// Starts what a heartbeat has just accepted. An attempt that was never accepted costs its job nothing; a function
    /// that brings its process down at once would be handed from runner to runner for ever, had it been started before
    /// the heartbeat was out. When this task has given way twice, the stream's tasks, which share its thread, have
    /// written what they had.
    pub(super) async fn start_accepted(&mut self) {
        for _ in 0..2 {
            yield_now().await;
        }
        for key in self.unaccepted.drain(..) {
            if let Some(start) = self.running.get_mut(&key).and_then(|running| running.start.take()) {
                // One that was stopped meanwhile does not listen any more.
                let _ = start.send(());
            }
        }
    }

    pub(super) fn stop(&self, key: &LeaseKey, stop: Stop) {
        if let Some(running) = self.running.get(key) {
            running.stop.send_if_modified(|current| {
                let grows = stop > *current;
                *current = stop.max(*current);
                grows
            });
        }
    }
}

/// What a panic said.
fn said_in(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}
