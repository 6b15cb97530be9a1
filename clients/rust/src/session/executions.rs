//! The executions of a session: started once they are accepted, heard while they run, and seen to their end.

use std::{
    any::Any,
    mem,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
};

use errand_proto::v1::Assignment;
use futures::FutureExt;
use tokio::{
    sync::{Notify, watch},
    task::yield_now,
};

use super::{
    Executor, JobContext, Outcome, Reporter, Session, Stop,
    ledger::{Decision, LeaseKey},
};

/// An execution as its session sees it.
pub(super) struct Running {
    stop: watch::Sender<Stop>,
    reporter: Reporter,
}

/// An execution that is not started. Dropped, it ends as handed back.
pub(super) struct Launch {
    assignment: Assignment,
    context: JobContext,
    end: End,
}

impl Launch {
    async fn run<E: Executor>(self, executor: Arc<E>) {
        let Self { assignment, context, mut end } = self;
        let execution = AssertUnwindSafe(executor.execute(assignment, context)).catch_unwind();
        let outcome = execution.await;
        end.outcome = outcome.unwrap_or_else(|panic| Outcome::failed(format!("panicked: {}", said_in(&*panic))));
    }
}

/// How an execution ends: told when it is dropped, and so even where the runtime goes down.
struct End {
    key: LeaseKey,
    outcome: Outcome,
    ends: Arc<Ends>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.ends.push(self.key.clone(), mem::replace(&mut self.outcome, Outcome::Released));
    }
}

/// Executions that have ended, for the session to take all at once. No more than the runner holds.
#[derive(Debug, Default)]
pub(super) struct Ends {
    ended: Mutex<Vec<(LeaseKey, Outcome)>>,
    notify: Notify,
}

impl Ends {
    /// Waits until there are some. Cancel-safe: it takes none.
    pub(super) async fn some(&self) {
        while self.lock().is_empty() {
            self.notify.notified().await;
        }
    }

    fn take(&self) -> Vec<(LeaseKey, Outcome)> {
        mem::take(&mut *self.lock())
    }

    fn push(&self, key: LeaseKey, outcome: Outcome) {
        let mut ended = self.lock();
        ended.push((key, outcome));
        // Whoever takes takes all: only the first of them has to be told of.
        let is_first = ended.len() == 1;
        drop(ended);
        if is_first {
            self.notify.notify_one();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(LeaseKey, Outcome)>> {
        // Nothing panics while it holds the lock; what it guards is whole.
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E: Executor> Session<E> {
    pub(super) fn assign(&mut self, assignment: Assignment) {
        let Some(lease) = assignment.lease.as_ref() else {
            return;
        };
        if self.ledger.assign(lease) != Decision::Start {
            return;
        }
        let key = LeaseKey::from(lease);
        let (stop, stops) = watch::channel(Stop::Run);
        let reporter = Reporter::new(key.clone(), Arc::clone(&self.reports));
        let context = JobContext::new(stops, reporter.clone());
        let end = End { key: key.clone(), outcome: Outcome::Released, ends: Arc::clone(&self.ends) };
        self.running.insert(key, Running { stop, reporter });
        self.unaccepted.push(Launch { assignment, context, end });
    }

    pub(super) fn reported(&mut self, key: &LeaseKey) {
        if let Some(progress) = self.running.get(key).and_then(|running| running.reporter.take()) {
            self.ledger.progressed(progress);
        }
    }

    /// Takes in every execution that has ended so far: their results go out together.
    pub(super) fn take_ended(&mut self) {
        for (key, outcome) in self.ends.take() {
            self.ended(key, outcome);
        }
    }

    fn ended(&mut self, key: LeaseKey, outcome: Outcome) {
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
        let (launches, executor) = (mem::take(&mut self.unaccepted), Arc::clone(&self.executor));
        // One task over there starts them all: to wake another runtime costs more than many a job.
        self.runtime.spawn(async move {
            for launch in launches {
                tokio::spawn(launch.run(Arc::clone(&executor)));
            }
        });
    }

    pub(super) fn stop(&mut self, key: &LeaseKey, stop: Stop) {
        if stop > Stop::Cancel {
            self.unaccepted.retain(|launch| launch.end.key != *key);
        }
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
