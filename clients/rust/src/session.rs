//! The runner's side of the `Attach` protocol, for any [`Executor`].
//!
//! One task owns the ledger and the stream and waits for whatever comes next. It has a thread of its own, and
//! executions are tasks of the caller's runtime: a heartbeat never waits for a job, not even for one that computes
//! and never gives way. Losing the stream stops nothing: the session dials again, names what it holds, and repeats
//! every result that has no receipt. A server that says GoAway or does not answer is left for the next one.
//! Deliberately absent: how jobs are executed, and anything about functions, commands and terminals.

mod backoff;
mod command;
mod connection;
mod executions;
mod executor;
mod ledger;
mod link;
mod report;

use std::{collections::BTreeMap, io, mem, sync::Arc, thread, time::Duration};

use errand_proto::v1::{
    AttachRequest, AttachResponse, Interrupt, InterruptReason, Released, attach_request::Message as Said,
    attach_response::Message, result,
};
use futures::{FutureExt as _, future::BoxFuture};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    time::{Instant, Interval, sleep_until},
};

use self::{
    backoff::Backoff,
    command::Counters,
    executions::{Ends, Launch, Running},
    ledger::{LeaseKey, Ledger},
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
    /// Some executions have.
    Ended,
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
    /// Every execution that has not ended, started or not.
    running: BTreeMap<LeaseKey, Running>,
    ends: Arc<Ends>,
    /// Assigned, and not to be started before a heartbeat has named them.
    unaccepted: Vec<Launch>,
    /// A heartbeat that names them is on its way out.
    accepts: bool,
    reports: Arc<Reports>,
    runtime: Handle,
    owner: Owner,
    shutdown: watch::Receiver<Shutdown>,
    leaving: Shutdown,
    leave_by: Option<Instant>,
    paused: bool,
    counters: Counters,
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
            running: BTreeMap::new(),
            ends: Arc::default(),
            unaccepted: Vec::new(),
            accepts: false,
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
            if mem::take(&mut self.accepts) {
                self.start_accepted().await;
            }
        }
        if self.ledger.owed() > 0 {
            tracing::warn!(results = self.ledger.owed(), "left without a receipt for every result");
        }
        if let Line::Up(link, _) = self.line {
            link.close().await;
        }
        // Executions that outlived every patience hear of it: whoever could stop them is gone.
        (Ok(()), self.owner)
    }

    /// Whatever happens next. Every branch is cancel-safe: streams and channels lose nothing when a wait is
    /// dropped, the dialling future is kept in `line`, and a reserved place is only a sign of room.
    async fn next_event(&mut self) -> Event {
        let Self { line, ledger, ends, reports, shutdown, leave_by, owner, leaving, .. } = self;
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
            () = ends.some() => Event::Ended,
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
            Event::Ended => self.take_ended(),
            Event::Shutdown(shutdown) => self.shut_down(shutdown),
            Event::OutOfTime => {}
        }
        if self.leaving > Shutdown::Stay && self.running.is_empty() && self.leave_by.is_none() {
            self.leave_by = Some(Instant::now() + FLUSH_MAX);
        }
        Ok(())
    }

    fn send(&mut self) {
        // What has ended by now goes along.
        self.take_ended();
        let Line::Up(link, _) = &self.line else {
            return;
        };
        let Some(message) = self.ledger.next_outgoing() else {
            return;
        };
        self.accepts = matches!(message, Said::Heartbeat(_)) && !self.unaccepted.is_empty();
        // Only this task sends, so the room that was seen is still there, or the stream is gone.
        if link.outbound.try_send(AttachRequest { message: Some(message) }).is_err() {
            self.accepts = false;
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
        self.leaving > Shutdown::Stay && (out_of_time || self.running.is_empty() && self.ledger.is_settled())
    }
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
