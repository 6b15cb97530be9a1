//! The runner's side of the `Attach` protocol, for any [`Executor`].
//!
//! One task owns the [`Ledger`] and the stream and waits for whatever comes next. It has a thread of its own, and
//! executions are tasks of the caller's runtime: a heartbeat never waits for a job, not even for one that computes
//! and never gives way. Losing the stream stops nothing: the session dials again, names what it holds, and repeats
//! every result that has no receipt. A server that says GoAway or does not answer is left for the next one.
//! Deliberately absent: how jobs are executed, and anything about functions, commands and terminals.

mod backoff;
mod command;
mod connection;
mod executor;
mod ledger;
mod link;
mod report;

use std::{any::Any, collections::BTreeMap, io, panic::AssertUnwindSafe, sync::Arc, thread, time::Duration};

use errand_proto::v1::{
    Assignment, AttachRequest, AttachResponse, Interrupt, InterruptReason, Released, attach_response::Message, result,
};
use futures::{FutureExt, future::BoxFuture};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    task::{Id, JoinError, JoinSet},
    time::{Instant, Interval, sleep_until},
};

use self::{
    backoff::Backoff,
    command::Counters,
    ledger::{Decision, LeaseKey, Ledger},
    link::{Link, LinkError},
    report::Reports,
};
pub use self::{
    executor::{Executor, JobContext, Outcome, Stop},
    report::Reporter,
};
use crate::endpoint::Dialer;

/// How long a runner that has nothing left to run tries to hand in its results.
const FLUSH_MAX: Duration = Duration::from_secs(15);
/// The same for one that was told to leave at once.
const RELEASE_MAX: Duration = Duration::from_secs(5);

/// Who the runner is and where it connects.
#[derive(Clone, Debug)]
pub struct RunnerConfig {
    pub servers: Dialer,
    /// At most 64 of `A-Z a-z 0-9 . _ -`.
    pub runner_id: String,
    pub channels: Vec<String>,
    pub capacity: u32,
    pub hostname: String,
    /// Free text, e.g. `errand-cli/0.1.0`.
    pub client: String,
}

/// How far the runner should go in leaving. Only ever grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shutdown {
    #[default]
    Stay,
    /// Take nothing more, finish what runs, hand in the results, leave.
    Drain,
    /// Hand back what runs, leave.
    Release,
}

/// Why a runner could not start.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The service will not have this runner.
    #[error("{}", .0.message())]
    Refused(tonic::Status),
    #[error("runner id {runner_id} is taken by another live runner")]
    Taken { runner_id: String },
    /// The system gave no thread, or the session died.
    #[error("the runner's session has no thread: {0}")]
    Thread(io::Error),
}

/// Works until `shutdown`, or the service's SHUTDOWN, is carried out. Fails only where the service refuses the very
/// first stream; a service that cannot be reached is tried for ever. Executions run on the caller's runtime. Dropped
/// early, it hands back what runs.
pub async fn run<E: Executor>(
    config: RunnerConfig,
    executor: E,
    shutdown: watch::Receiver<Shutdown>,
) -> Result<(), SessionError> {
    let (owner, over) = oneshot::channel();
    let executions = Handle::current();
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let (outcome, owner) = match runtime {
            Ok(runtime) => runtime.block_on(Session::new(config, executor, shutdown, executions, owner).work()),
            Err(error) => (Err(SessionError::Thread(error)), owner),
        };
        // Whoever started it may have stopped waiting.
        let _ = owner.send(outcome);
    };
    thread::Builder::new().name("errand-session".to_owned()).spawn(work).map_err(SessionError::Thread)?;
    over.await.unwrap_or_else(|_| Err(SessionError::Thread(io::Error::other("it panicked"))))
}

/// Who waits for the end of the session.
type Owner = oneshot::Sender<Result<(), SessionError>>;

enum Line {
    Down(BoxFuture<'static, Result<Link, LinkError>>),
    Up(Box<Link>, Interval),
}

enum Event {
    Opened(Result<Box<Link>, LinkError>),
    Received(Result<Option<AttachResponse>, tonic::Status>),
    /// The stream takes another message.
    Room,
    HeartbeatDue,
    Reported(LeaseKey),
    Ended(Result<(Id, Outcome), JoinError>),
    Shutdown(Shutdown),
    OutOfTime,
}

struct Session<E> {
    config: RunnerConfig,
    executor: Arc<E>,
    ledger: Ledger,
    line: Line,
    backoff: Backoff,
    /// Which server is dialled next.
    server: usize,
    session_id: String,
    taken_tries: u32,
    executions: JoinSet<Outcome>,
    running: BTreeMap<LeaseKey, Running>,
    /// Which execution a spawned one is.
    keys: BTreeMap<Id, LeaseKey>,
    reports: Arc<Reports>,
    runtime: Handle,
    owner: Owner,
    shutdown: watch::Receiver<Shutdown>,
    leaving: Shutdown,
    leave_by: Option<Instant>,
    paused: bool,
    counters: Counters,
}

/// An execution as its session sees it.
struct Running {
    stop: watch::Sender<Stop>,
    reporter: Reporter,
}

impl<E: Executor> Session<E> {
    fn new(
        config: RunnerConfig,
        executor: E,
        mut shutdown: watch::Receiver<Shutdown>,
        runtime: Handle,
        owner: Owner,
    ) -> Self {
        // A signal that came before is news as well.
        shutdown.mark_changed();
        let ledger = Ledger::new(config.capacity);
        Self {
            config,
            executor: Arc::new(executor),
            ledger,
            line: Line::Down(futures::future::pending().boxed()),
            backoff: Backoff::default(),
            server: 0,
            session_id: String::new(),
            taken_tries: 0,
            executions: JoinSet::new(),
            running: BTreeMap::new(),
            keys: BTreeMap::new(),
            reports: Arc::default(),
            runtime,
            owner,
            shutdown,
            leaving: Shutdown::Stay,
            leave_by: None,
            paused: false,
            counters: Counters::default(),
        }
    }

    async fn work(mut self) -> (Result<(), SessionError>, Owner) {
        self.dial();
        while !self.is_over() {
            let event = self.next_event().await;
            if let Err(error) = self.handle(event) {
                return (Err(error), self.owner);
            }
        }
        if self.ledger.owed() > 0 {
            tracing::warn!(results = self.ledger.owed(), "left without a receipt for every result");
        }
        if let Line::Up(link, _) = self.line {
            link.close().await;
        }
        // Executions that outlived every patience are aborted with the set.
        (Ok(()), self.owner)
    }

    /// Whatever happens next. Every branch is cancel-safe: streams, channels and join sets lose nothing when a
    /// wait is dropped, the dialling future is kept in `line`, and a reserved place is only a sign of room.
    async fn next_event(&mut self) -> Event {
        let Self { line, ledger, executions, reports, shutdown, leave_by, owner, leaving, .. } = self;
        let line_event = async {
            match line {
                Line::Down(dialled) => Event::Opened(dialled.await.map(Box::new)),
                Line::Up(link, heartbeat) => tokio::select! {
                    biased;
                    _ = heartbeat.tick() => Event::HeartbeatDue,
                    _ = link.outbound.reserve(), if ledger.has_outgoing() => Event::Room,
                    received = link.inbound.message() => Event::Received(received),
                },
            }
        };
        tokio::select! {
            event = line_event => event,
            Some(ended) = executions.join_next_with_id() => Event::Ended(ended),
            key = reports.due(), if ledger.takes_progress() => Event::Reported(key),
            Ok(()) = shutdown.changed() => Event::Shutdown(*shutdown.borrow_and_update()),
            () = owner.closed(), if *leaving < Shutdown::Release => Event::Shutdown(Shutdown::Release),
            () = until(*leave_by) => Event::OutOfTime,
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), SessionError> {
        match event {
            Event::Opened(Ok(link)) => self.opened(link),
            Event::Opened(Err(error)) => return self.not_opened(error),
            Event::Received(Ok(Some(response))) => self.received(response),
            Event::Received(Ok(None)) => self.line_lost("the server closed the stream"),
            Event::Received(Err(status)) => self.line_lost(status.message()),
            Event::Room => self.send(),
            Event::HeartbeatDue => self.ledger.heartbeat_due(),
            Event::Reported(key) => self.reported(&key),
            Event::Ended(ended) => self.ended(ended),
            Event::Shutdown(shutdown) => self.shut_down(shutdown),
            Event::OutOfTime => {}
        }
        if self.leaving > Shutdown::Stay && self.executions.is_empty() && self.leave_by.is_none() {
            self.leave_by = Some(Instant::now() + FLUSH_MAX);
        }
        Ok(())
    }

    fn send(&mut self) {
        let Line::Up(link, _) = &self.line else {
            return;
        };
        let Some(message) = self.ledger.next_outgoing() else {
            return;
        };
        // Only this task sends, so the room that was seen is still there, or the stream is gone.
        if link.outbound.try_send(AttachRequest { message: Some(message) }).is_err() {
            self.line_lost("the stream is closed");
        }
    }

    fn received(&mut self, response: AttachResponse) {
        match response.message {
            Some(Message::Assignments(assignments)) => {
                for assignment in assignments.assignments {
                    self.assign(assignment);
                }
            }
            Some(Message::ResultsAccepted(accepted)) => self.ledger.receipted(&accepted.receipts),
            Some(Message::Interrupt(interrupt)) => self.interrupt(&interrupt),
            Some(Message::Command(command)) => self.obey(&command),
            Some(Message::GoAway(away)) => self.sent_away(&away.reason),
            // A second Welcome, or something of a later protocol.
            Some(Message::Welcome(_)) | None => {}
        }
    }

    fn assign(&mut self, assignment: Assignment) {
        let Some(lease) = assignment.lease.clone() else {
            return;
        };
        if self.ledger.assign(&lease) != Decision::Start {
            return;
        }
        let key = LeaseKey::from(&lease);
        let (stop, stops) = watch::channel(Stop::Run);
        let reporter = Reporter::new(&lease, Arc::clone(&self.reports));
        let context = JobContext::new(stops, reporter.clone());
        self.running.insert(key.clone(), Running { stop, reporter });
        let executor = Arc::clone(&self.executor);
        let execution = async move {
            let execution = AssertUnwindSafe(executor.execute(assignment, context)).catch_unwind();
            execution.await.unwrap_or_else(|panic| Outcome::failed(format!("panicked: {}", said_in(&*panic))))
        };
        let spawned = self.executions.spawn_on(execution, &self.runtime);
        self.keys.insert(spawned.id(), key);
    }

    fn reported(&mut self, key: &LeaseKey) {
        if let Some(progress) = self.running.get(key).and_then(|running| running.reporter.take()) {
            self.ledger.progressed(progress);
        }
    }

    fn ended(&mut self, ended: Result<(Id, Outcome), JoinError>) {
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

    fn interrupt(&mut self, interrupt: &Interrupt) {
        let Some(key) = interrupt.lease.as_ref().map(LeaseKey::from) else {
            return;
        };
        match interrupt.reason() {
            InterruptReason::Requested | InterruptReason::Unspecified => self.stop(&key, Stop::Cancel),
            InterruptReason::TimedOut if self.ledger.lose(&key) => self.stop(&key, Stop::Expire),
            InterruptReason::LeaseLost if self.ledger.lose(&key) => self.stop(&key, Stop::Kill),
            InterruptReason::TimedOut | InterruptReason::LeaseLost => {}
        }
    }

    fn stop(&self, key: &LeaseKey, stop: Stop) {
        if let Some(running) = self.running.get(key) {
            running.stop.send_if_modified(|current| {
                let grows = stop > *current;
                *current = stop.max(*current);
                grows
            });
        }
    }

    fn shut_down(&mut self, shutdown: Shutdown) {
        if shutdown <= self.leaving {
            return;
        }
        tracing::info!(?shutdown, running = self.ledger.running(), "leaving");
        self.leaving = shutdown;
        self.ledger.set_capacity(0);
        if shutdown == Shutdown::Release {
            self.leave_by = Some(Instant::now() + RELEASE_MAX);
            for key in self.ledger.release_all() {
                self.stop(&key, Stop::Kill);
            }
        }
    }

    fn is_over(&self) -> bool {
        let out_of_time = self.leave_by.is_some_and(|by| Instant::now() >= by);
        self.leaving > Shutdown::Stay && (out_of_time || self.executions.is_empty() && self.ledger.is_settled())
    }
}

/// What a panic said.
fn said_in(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => futures::future::pending().await,
    }
}

impl From<Outcome> for result::Outcome {
    fn from(outcome: Outcome) -> Self {
        use errand_proto::v1::{Canceled, Completed, Failed};
        match outcome {
            Outcome::Completed { result_json } => Self::Completed(Completed { result_json }),
            Outcome::Failed { error, stack_trace, permanent, retry_after } => {
                let retry_after = retry_after.and_then(|delay| delay.try_into().ok());
                Self::Failed(Failed { error, stack_trace, permanent, retry_after })
            }
            Outcome::Canceled => Self::Canceled(Canceled {}),
            Outcome::Released => Self::Released(Released {}),
        }
    }
}
