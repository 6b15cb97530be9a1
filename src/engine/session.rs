//! One attached runner: hands it jobs, takes its results, and keeps its leases.
//!
//! A session works in turns. A turn takes whatever messages are waiting, turns them into steps, claims jobs for the
//! slots that are free, and stores all of that in one commit; only then do receipts and assignments leave. So a job
//! is running in the store before its runner hears of it, and a result is durable before its receipt.

mod attach;
mod settle;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

pub use attach::attach;

use super::{
    Shared,
    messages::{Command, CommandKind, FromRunner, InterruptReason, Line, Reply, Report, ToRunner},
    registry::Place,
};
use crate::{
    fleet::Order,
    model::{Input, Job, JobId, Lease, Status, log::JobLog},
    queue::Waiter,
};

/// Messages of a runner that may wait for its session.
const INBOX_MAX: usize = 256;
/// Messages that may wait for a runner to read them.
const OUTBOX_MAX: usize = 64;
/// Messages taken in one turn.
const TURN_MAX: usize = 256;
/// Jobs claimed in one turn.
const CLAIM_MAX: usize = 256;
/// How long a runner that let a lease lapse stands back, so that the job goes to another where there is one.
const STAND_BACK: Duration = Duration::from_millis(100);
/// Commands whose reply is awaited; the oldest is forgotten first.
const ASKED_MAX: usize = 1_024;
/// Results that may wait for a store that ails: as many as a runner of the largest capacity can hold.
const OWED_MAX: usize = crate::model::limits::RUNNER_CAPACITY_MAX as usize;
/// How soon they are tried again.
const OWED_RETRY: Duration = Duration::from_millis(200);
/// How long a farewell waits for jobs that are being stored for its runner: longer than a commit takes.
const PROMISES_PATIENCE: Duration = Duration::from_millis(500);
/// How long the end of a stream is awaited once its runner has gone.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Payload in one Assignments message, in bytes, unless a single job is larger: common clients take 4 MiB.
const ASSIGNMENT_BYTES: usize = 1 << 20;

/// The two ends of a session. Dropping `inbox` says that the stream has closed; the end of `outbox` closes it.
pub struct Attachment {
    pub inbox: mpsc::Sender<FromRunner>,
    pub outbox: mpsc::Receiver<ToRunner>,
}

struct Session {
    shared: Arc<Shared>,
    id: Arc<str>,
    place: Place,
    /// With its private one.
    channels: Vec<Arc<str>>,
    capacity: usize,
    /// By an operator's command; a capacity of 0 pauses too.
    paused: bool,
    held: HashMap<JobId, Arc<Job>>,
    /// Slots whose jobs are being stored.
    promised: usize,
    /// Whether its runner was told to go elsewhere.
    said_goodbye: bool,
    /// Takes nothing until then.
    stands_back_until: Option<Instant>,
    /// Results that the store did not take, and when they are tried again.
    owed: Vec<Report>,
    owes_until: Option<Instant>,
    waiter: Waiter,
    outbox: mpsc::Sender<ToRunner>,
    /// Commands whose reply is awaited, and the node that asked.
    asked: VecDeque<(String, Arc<str>)>,
}

/// Whether the session goes on.
#[derive(PartialEq, Eq)]
enum Going {
    On,
    Over,
}

impl Session {
    async fn run(
        mut self,
        named: Vec<Lease>,
        mut inbox: mpsc::Receiver<FromRunner>,
        mut orders: mpsc::Receiver<Order>,
    ) {
        if self.welcome(named).await == Going::On {
            self.shared.attached.notify_one();
            self.serve(&mut inbox, &mut orders).await;
        }
        self.shared.queue.leave(&self.channels, &self.waiter).await;
        self.shared.vacancies.leave(self.waiter.number, &self.channels);
        if self.shared.registry.detach(&self.place, self.shared.now()).await {
            let window = self.shared.settings.timings.resume_window;
            self.shared.queue.shorten(&self.id, window).await;
        }
        tracing::debug!(runner = %self.place.runner_id, session = %self.id, "a session ended");
    }

    async fn serve(&mut self, inbox: &mut mpsc::Receiver<FromRunner>, orders: &mut mpsc::Receiver<Order>) {
        let leaving = self.shared.leaving.clone();
        let stopped = self.shared.stopped();
        let mut leaves_by: Option<Instant> = None;
        let mut going = self.turn(Vec::new()).await;
        while going == Going::On {
            // Each branch only receives or waits: dropping one loses nothing.
            going = tokio::select! {
                message = inbox.recv() => match message {
                    Some(first) => {
                        let mut messages = vec![first];
                        while messages.len() < TURN_MAX && let Ok(more) = inbox.try_recv() {
                            messages.push(more);
                        }
                        self.turn(messages).await
                    }
                    None => Going::Over,
                },
                Some(order) = orders.recv() => {
                    let going = self.obey(order).await;
                    self.offer_vacancy();
                    going
                }
                () = self.waiter.notify.notified() => {
                    let going = self.turn(Vec::new()).await;
                    if self.free() == 0 {
                        // What it was woken for may be another's to take.
                        self.shared.queue.leave(&self.channels, &self.waiter).await;
                    }
                    going
                }
                () = tokio::time::sleep_until(self.stands_back_until.unwrap_or_else(Instant::now)),
                    if self.stands_back_until.is_some() =>
                {
                    self.stands_back_until = None;
                    self.turn(Vec::new()).await
                }
                () = tokio::time::sleep_until(self.owes_until.unwrap_or_else(Instant::now)), if self.owes_until.is_some() => {
                    self.turn(Vec::new()).await
                }
                () = leaving.cancelled(), if leaves_by.is_none() => {
                    leaves_by = Some(Instant::now() + PROMISES_PATIENCE);
                    self.step_aside().await;
                    self.take_promised().await
                }
                () = self.farewell(leaves_by), if leaves_by.is_some() && !self.said_goodbye => {
                    self.said_goodbye = true;
                    self.send(ToRunner::GoAway { reason: "this node is shutting down".to_owned() }).await
                }
                () = self.outbox.closed() => Going::Over,
                () = stopped.cancelled() => Going::Over,
            };
        }
        if !stopped.is_cancelled() {
            self.hear_last_words(inbox).await;
        }
    }

    /// When its runner may be told to go elsewhere: once it has what is being stored for it, and by then in any case.
    async fn farewell(&self, by: Option<Instant>) {
        if self.promised > 0
            && let Some(by) = by
        {
            tokio::time::sleep_until(by).await;
        }
    }

    /// What a runner said before its stream broke counts: it may never come back to say it again.
    async fn hear_last_words(&mut self, inbox: &mut mpsc::Receiver<FromRunner>) {
        self.paused = true;
        let mut messages = Vec::new();
        let listening = async {
            while messages.len() < TURN_MAX
                && let Some(message) = inbox.recv().await
            {
                messages.push(message);
            }
        };
        // The end of the stream is near, and a stream that does not end says nothing any more.
        let _ = tokio::time::timeout(LAST_WORDS, listening).await;
        if !messages.is_empty() {
            self.turn(messages).await;
        }
    }

    /// Slots for more executions.
    fn free(&self) -> usize {
        self.room_after(0)
    }

    async fn send(&self, message: ToRunner) -> Going {
        // A runner that reads nothing for a whole lease has lost everything it holds anyway.
        let patience = self.shared.settings.timings.lease_ttl;
        match tokio::time::timeout(patience, self.outbox.send(message)).await {
            Ok(Ok(())) => Going::On,
            Ok(Err(_)) | Err(_) => Going::Over,
        }
    }

    /// Takes in messages, claims what there is room for, stores all of it at once, and answers.
    async fn turn(&mut self, messages: Vec<FromRunner>) -> Going {
        let told = self.take_promised().await;
        let mut reports: Vec<Report> = Vec::new();
        // The last word on each job's progress counts; earlier ones would be overwritten at once.
        let mut progress: BTreeMap<Lease, String> = BTreeMap::new();
        let mut logs = Vec::new();
        if !messages.is_empty() {
            let now = self.shared.now();
            self.shared.registry.heard(&self.place, now);
        }
        for message in messages {
            match message {
                FromRunner::Heartbeat(leases) => self.heartbeat(&leases).await,
                FromRunner::Results(more) => reports.extend(more),
                FromRunner::Progress { lease, metadata, logs: lines } => {
                    if self.holds(lease) {
                        logs.extend(self.log_lines(lease, lines));
                        if let Some(metadata) = metadata {
                            progress.insert(lease, metadata);
                        }
                    }
                }
                FromRunner::CommandReply { command_id, data, error } => {
                    self.pass_on_reply(command_id, data, error).await;
                }
                FromRunner::SetCapacity(capacity) => self.set_capacity(capacity).await,
            }
        }
        if !logs.is_empty()
            && let Err(error) = self.shared.store.append_logs(&logs).await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, lines = logs.len(), "log lines were lost");
        }
        for (lease, metadata) in progress {
            self.keep_progress(lease, metadata).await;
        }
        let going = self.settle_and_claim(reports).await;
        self.offer_vacancy();
        if told == Going::Over { told } else { going }
    }

    /// Waits for nothing: it has no room, for whatever reason.
    async fn step_aside(&self) {
        self.shared.queue.leave(&self.channels, &self.waiter).await;
        self.offer_vacancy();
    }

    fn holds(&self, lease: Lease) -> bool {
        self.held.get(&lease.job_id).is_some_and(|job| job.attempt == lease.attempt)
    }

    async fn heartbeat(&mut self, leases: &[Lease]) {
        // One that it names and does not hold was taken from it, perhaps while it could not hear so.
        let (own, mut lost): (Vec<Lease>, Vec<Lease>) = leases.iter().partition(|lease| self.holds(**lease));
        if !own.is_empty() {
            let doubtful = self.shared.queue.renew(&own, &self.id, self.shared.settings.timings.lease_ttl).await;
            lost.extend(self.taken_away(doubtful).await);
        }
        for lease in lost {
            if self.holds(lease) {
                self.held.remove(&lease.job_id);
            }
            let _ = self.outbox.try_send(ToRunner::Interrupt { lease, reason: InterruptReason::LeaseLost });
        }
    }

    /// Those of these leases whose execution is over, or another runner's. One that cannot be looked up may be good.
    async fn taken_away(&self, leases: Vec<Lease>) -> Vec<Lease> {
        if leases.is_empty() {
            return leases;
        }
        let ids: Vec<JobId> = leases.iter().map(|lease| lease.job_id).collect();
        let Ok(jobs) = self.shared.store.load(&ids).await else { return Vec::new() };
        let is_good = |job: &Job, lease: &Lease| job.status == Status::Running && self.is_mine(job, *lease);
        let looked_up = leases.into_iter().zip(jobs);
        looked_up
            .filter(|(lease, job)| !job.as_ref().is_some_and(|job| is_good(job, lease)))
            .map(|(lease, _)| lease)
            .collect()
    }

    /// Whether the store has this attempt down as this runner's.
    fn is_mine(&self, job: &Job, lease: Lease) -> bool {
        job.attempt == lease.attempt && job.runner_id.as_deref() == Some(&*self.place.runner_id)
    }

    fn log_lines(&self, lease: Lease, lines: Vec<Line>) -> Vec<JobLog> {
        let now = self.shared.now();
        let Some(job) = self.held.get(&lease.job_id) else { return Vec::new() };
        lines
            .into_iter()
            .map(|line| JobLog {
                id: 0,
                job_id: lease.job_id,
                channel: job.channel.clone(),
                created: line.at.unwrap_or(now),
                kind: line.kind,
                message: line.message,
                meta: line.meta,
            })
            .collect()
    }

    async fn keep_progress(&mut self, lease: Lease, metadata: String) {
        let input = |_: &Job| Input::Progress { attempt: lease.attempt, metadata: metadata.clone() };
        match self.shared.transition(lease.job_id, input).await {
            Ok((_, after)) => {
                self.held.insert(lease.job_id, after);
            }
            Err(error) => tracing::debug!(job = %lease.job_id, %error, "progress was not kept"),
        }
    }

    async fn set_capacity(&mut self, capacity: u32) {
        self.capacity = capacity.min(crate::model::limits::RUNNER_CAPACITY_MAX) as usize;
        self.note_pause().await;
    }

    async fn note_pause(&mut self) {
        let (paused, capacity) = (self.paused || self.capacity == 0, self.capacity as u32);
        self.shared.registry.update(&self.place, |presence| {
            presence.paused = paused;
            if capacity > 0 {
                presence.capacity = capacity;
            }
        });
        if paused {
            self.step_aside().await;
        }
    }

    fn note_running(&self) {
        let running = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        self.shared.registry.update(&self.place, |presence| presence.running = running);
    }

    async fn obey(&mut self, order: Order) -> Going {
        // An order may be about a job that it does not know of yet.
        if self.take_promised().await == Going::Over {
            return Going::Over;
        }
        match order {
            Order::Supersede { .. } => Going::Over,
            Order::Command { command, reply_to } => self.command(command, reply_to).await,
            Order::Interrupt { lease, reason } => {
                if reason != InterruptReason::Requested && self.holds(lease) {
                    self.held.remove(&lease.job_id);
                }
                let told = self.send(ToRunner::Interrupt { lease, reason }).await;
                if told == Going::On { self.turn(Vec::new()).await } else { told }
            }
            Order::Lost(lease) => {
                if !self.holds(lease) {
                    return Going::On;
                }
                self.held.remove(&lease.job_id);
                self.stands_back_until = Some(Instant::now() + STAND_BACK);
                self.step_aside().await;
                self.note_running();
                self.send(ToRunner::Interrupt { lease, reason: InterruptReason::LeaseLost }).await
            }
        }
    }

    fn is_heard(&self) -> bool {
        self.shared.registry.is_heard(&self.place, self.shared.now())
    }

    async fn pass_on_reply(&mut self, command_id: String, data: String, error: String) {
        // A reply that nobody asked for, or that comes too late, is of no use to anybody.
        let Some(at) = self.asked.iter().position(|(id, _)| *id == command_id) else { return };
        let Some((command_id, asked_by)) = self.asked.remove(at) else { return };
        let reply = Reply { runner_id: self.place.runner_id.clone(), data, error };
        self.shared.registry.reply(&asked_by, command_id, reply).await;
    }

    async fn command(&mut self, command: Command, reply_to: Arc<str>) -> Going {
        if self.asked.len() == ASKED_MAX {
            self.asked.pop_front();
        }
        self.asked.push_back((command.command_id.clone(), reply_to));
        match command.kind {
            CommandKind::Pause => self.paused = true,
            CommandKind::Resume => self.paused = false,
            // No new work for a runner that was told to leave.
            CommandKind::Shutdown => self.paused = true,
            CommandKind::Ping | CommandKind::Status | CommandKind::Reload | CommandKind::Sysinfo => {}
        }
        let resumed = command.kind == CommandKind::Resume;
        self.note_pause().await;
        let told = self.send(ToRunner::Command(command)).await;
        if resumed && told == Going::On { self.turn(Vec::new()).await } else { told }
    }
}
