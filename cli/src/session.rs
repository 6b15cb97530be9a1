//! The runner's side of the `Attach` protocol, for any [`Executor`].
//!
//! One task owns the [`Ledger`] and the stream and waits for whatever comes next; executions are tasks of
//! their own, so a heartbeat never waits for a job. Losing the stream stops nothing: the session dials again,
//! the next server first, names what it holds, and repeats every result that has no receipt.
//! Deliberately absent: how jobs are executed, and anything about commands and terminals.

mod backoff;
mod command;
mod executor;
mod ledger;
mod link;

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use errand_proto::v1::{
    Assignment, AttachRequest, AttachResponse, Hello, Interrupt, InterruptReason, Progress, Released,
    attach_response::Message, result,
};
use futures::{FutureExt, future::BoxFuture};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
    time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, sleep_until},
};

pub use self::executor::{Executor, JobContext, Outcome, Reporter, Stop};
use self::{
    backoff::{Backoff, chance},
    command::Counters,
    ledger::{Decision, LeaseKey, Ledger},
    link::{Link, LinkError},
};
use crate::endpoint::Servers;

/// Progress between executions and the session; executions drop lines rather than wait.
const PROGRESS_MAX: usize = 64;
/// Tries for a runner id that is taken: an own session of before lapses within the resume window of 2 s, and
/// the first eight delays add up to more.
const TAKEN_TRIES_MAX: u32 = 9;
/// A stream that lived this long proves its server; a shorter one counts as a failed attempt.
const STABLE: Duration = Duration::from_secs(1);
/// How long a runner that has nothing left to run tries to hand in its results.
const FLUSH_MAX: Duration = Duration::from_secs(15);
/// The same for one that was told to leave at once.
const RELEASE_MAX: Duration = Duration::from_secs(5);
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(5);

/// Who the runner is and where it connects.
#[derive(Clone, Debug)]
pub struct RunnerConfig {
    pub servers: Servers,
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
}

/// A runner that has not been started.
#[derive(Debug)]
pub struct Runner<E> {
    config: RunnerConfig,
    executor: Arc<E>,
}

impl<E: Executor> Runner<E> {
    pub fn new(config: RunnerConfig, executor: E) -> Self {
        Self { config, executor: Arc::new(executor) }
    }

    /// Works until `shutdown`, or the service's SHUTDOWN, is carried out. Fails only where the service refuses
    /// the very first stream; a service that cannot be reached is tried for ever.
    pub async fn run(self, shutdown: watch::Receiver<Shutdown>) -> Result<(), SessionError> {
        let mut session = Session::new(self.config, self.executor, shutdown);
        while !session.is_over() {
            let event = session.next_event().await;
            session.handle(event)?;
        }
        session.leave().await;
        Ok(())
    }
}

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
    Progressed(Progress),
    Ended(Result<(LeaseKey, Outcome), JoinError>),
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
    executions: JoinSet<(LeaseKey, Outcome)>,
    stops: BTreeMap<LeaseKey, watch::Sender<Stop>>,
    progress: (mpsc::Sender<Progress>, mpsc::Receiver<Progress>),
    shutdown: watch::Receiver<Shutdown>,
    leaving: Shutdown,
    leave_by: Option<Instant>,
    paused: bool,
    counters: Counters,
}

impl<E: Executor> Session<E> {
    fn new(config: RunnerConfig, executor: Arc<E>, mut shutdown: watch::Receiver<Shutdown>) -> Self {
        // A signal that came before is news as well.
        shutdown.mark_changed();
        let ledger = Ledger::new(config.capacity);
        let mut session = Self {
            config,
            executor,
            ledger,
            line: Line::Down(futures::future::pending().boxed()),
            backoff: Backoff::default(),
            server: 0,
            session_id: String::new(),
            taken_tries: 0,
            executions: JoinSet::new(),
            stops: BTreeMap::new(),
            progress: mpsc::channel(PROGRESS_MAX),
            shutdown,
            leaving: Shutdown::Stay,
            leave_by: None,
            paused: false,
            counters: Counters::default(),
        };
        session.dial();
        session
    }

    /// Begins to open a stream, after the backoff. What is held is named as it stands: while no stream is open
    /// no receipt can come, so nothing that Hello names stops being held.
    fn dial(&mut self) {
        let hello = Hello {
            runner_id: self.config.runner_id.clone(),
            channels: self.config.channels.clone(),
            capacity: self.config.capacity,
            hostname: self.config.hostname.clone(),
            client: self.config.client.clone(),
            session_id: self.session_id.clone(),
            leases: self.ledger.leases(),
        };
        let (delay, servers, index) = (self.backoff.next_delay(chance()), self.config.servers.clone(), self.server);
        self.server = self.server.wrapping_add(1);
        let dialled = async move {
            sleep(delay).await;
            Link::open(&servers, index, hello).await
        };
        self.line = Line::Down(dialled.boxed());
    }

    /// Whatever happens next. Every branch is cancel-safe: streams, channels and join sets lose nothing when a
    /// wait is dropped, the dialling future is kept in `line`, and a reserved place is only a sign of room.
    async fn next_event(&mut self) -> Event {
        let Self { line, ledger, executions, progress, shutdown, leave_by, .. } = self;
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
            Some(ended) = executions.join_next() => Event::Ended(ended),
            Some(progress) = progress.1.recv(), if ledger.takes_progress() => Event::Progressed(progress),
            Ok(()) = shutdown.changed() => Event::Shutdown(*shutdown.borrow_and_update()),
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
            Event::Progressed(progress) => self.ledger.progressed(progress),
            Event::Ended(ended) => self.ended(ended),
            Event::Shutdown(shutdown) => self.shut_down(shutdown),
            Event::OutOfTime => {}
        }
        if self.leaving > Shutdown::Stay && self.executions.is_empty() && self.leave_by.is_none() {
            self.leave_by = Some(Instant::now() + FLUSH_MAX);
        }
        Ok(())
    }

    fn opened(&mut self, mut link: Box<Link>) {
        let welcome = std::mem::take(&mut link.welcome);
        tracing::info!(node = welcome.node_id, session = welcome.session_id, "connected");
        self.session_id = welcome.session_id;
        for key in self.ledger.welcomed(self.config.capacity, &welcome.lost) {
            self.stop(&key, Stop::Kill);
        }
        let period = welcome.heartbeat_interval.and_then(|interval| interval.try_into().ok());
        let period = period.filter(|period: &Duration| !period.is_zero()).unwrap_or(HEARTBEAT_DEFAULT);
        let mut heartbeat = interval_at(Instant::now() + period, period);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.line = Line::Up(link, heartbeat);
    }

    fn not_opened(&mut self, error: LinkError) -> Result<(), SessionError> {
        let is_first = self.session_id.is_empty();
        match error {
            LinkError::Refused(status) if is_first => return Err(SessionError::Refused(status)),
            LinkError::Taken(_) if is_first && self.taken_tries >= TAKEN_TRIES_MAX => {
                return Err(SessionError::Taken { runner_id: self.config.runner_id.clone() });
            }
            LinkError::Taken(_) => self.taken_tries += 1,
            error => tracing::warn!(%error, "not connected, trying again"),
        }
        self.dial();
        Ok(())
    }

    fn line_lost(&mut self, reason: &str) {
        if let Line::Up(link, _) = &self.line
            && link.since.elapsed() >= STABLE
        {
            self.backoff.reset();
        }
        tracing::warn!(reason, "connection lost, connecting again");
        self.dial();
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
            Some(Message::GoAway(away)) => self.line_lost(&format!("the server goes away: {}", away.reason)),
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
        self.stops.insert(key.clone(), stop);
        let context = JobContext::new(lease, stops, self.progress.0.clone());
        let executor = Arc::clone(&self.executor);
        self.executions.spawn(async move {
            let execution = AssertUnwindSafe(executor.execute(assignment, context)).catch_unwind();
            let outcome = execution.await.unwrap_or_else(|_| Outcome::failed("the executor panicked"));
            (key, outcome)
        });
    }

    fn ended(&mut self, ended: Result<(LeaseKey, Outcome), JoinError>) {
        // Panics are caught inside and nothing aborts executions, so an error cannot be.
        let Ok((key, outcome)) = ended else { return };
        self.stops.remove(&key);
        // What it logged goes before its result.
        while let Ok(progress) = self.progress.1.try_recv() {
            self.ledger.progressed(progress);
        }
        self.counters.count(&outcome);
        self.ledger.finished(key, outcome.into());
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
        if let Some(sender) = self.stops.get(key) {
            sender.send_if_modified(|current| {
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

    /// Closes the stream; executions that outlived every patience are aborted.
    async fn leave(self) {
        if self.ledger.owed() > 0 {
            tracing::warn!(results = self.ledger.owed(), "left without a receipt for every result");
        }
        if let Line::Up(link, _) = self.line {
            link.close().await;
        }
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
