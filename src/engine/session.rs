//! One attached runner: hands it jobs, takes its results, and keeps its leases.
//!
//! A session works in turns. A turn takes whatever messages are waiting, turns them into steps, claims jobs for the
//! slots that are free, and stores all of that in one commit; only then do receipts and assignments leave. So a job
//! is running in the store before its runner hears of it, and a result is durable before its receipt.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use tokio::sync::{Notify, mpsc};

use super::{
    EngineError, Shared,
    messages::{
        Command, CommandKind, End, FromRunner, Hello, InterruptReason, Line, Presence, Receipt, Reply, Report,
        ToRunner, Welcome,
    },
    registry::{Admission, ORDERS_MAX, Order},
};
use crate::{
    model::{Input, Job, JobId, Lease, Refusal, Status, Step, lifecycle::private_channel, log::JobLog, step},
    queue::{Offer, Waiter},
    store::Outcome,
};

/// Messages of a runner that may wait for its session.
const INBOX_MAX: usize = 256;
/// Messages that may wait for a runner to read them.
const OUTBOX_MAX: usize = 64;
/// Messages taken in one turn.
const TURN_MAX: usize = 256;
/// Jobs claimed in one turn.
const CLAIM_MAX: usize = 256;
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
    runner_id: Arc<str>,
    /// With its private one.
    channels: Vec<Arc<str>>,
    capacity: usize,
    /// By an operator's command; a capacity of 0 pauses too.
    paused: bool,
    held: HashMap<JobId, Arc<Job>>,
    waiter: Waiter,
    outbox: mpsc::Sender<ToRunner>,
    own_orders: mpsc::Sender<Order>,
}

/// Whether the session goes on.
#[derive(PartialEq, Eq)]
enum Going {
    On,
    Over,
}

/// Attaches a runner whose Hello was checked.
pub async fn attach(shared: Arc<Shared>, hello: Hello) -> Result<Attachment, EngineError> {
    if shared.leaving.is_cancelled() {
        return Err(EngineError::Draining);
    }
    let now = shared.now();
    let resumes = is_session_id(&hello.session_id);
    let fresh = || uuid::Builder::from_u128((u128::from(shared.dice.roll()) << 64) | u128::from(shared.dice.roll()));
    let id: Arc<str> =
        if resumes { hello.session_id.as_str().into() } else { fresh().into_uuid().simple().to_string().into() };
    let runner_id: Arc<str> = hello.runner_id.as_str().into();
    let mut channels: Vec<Arc<str>> = hello.channels.iter().map(|channel| channel.as_str().into()).collect();
    channels.sort();
    channels.dedup();
    let presence = Presence {
        runner_id: runner_id.clone(),
        channels: channels.clone(),
        jobs_processed: 0,
        jobs_failed: 0,
        started: now,
        last_heartbeat: now,
        alive: true,
        paused: hello.capacity == 0,
        hostname: hello.hostname.clone(),
        client: hello.client.clone(),
        capacity: hello.capacity,
        running: 0,
        node_id: shared.settings.node_id.clone(),
    };
    channels.push(private_channel(&runner_id));
    let (own_orders, orders) = mpsc::channel(ORDERS_MAX);
    match shared.registry.admit(presence, &id, resumes, own_orders.clone(), now) {
        Admission::Fresh | Admission::Resumed => {}
        Admission::Replaced(old) => {
            // That incarnation is gone for good; what it ran goes to others at once.
            shared.queue.shorten(&old, std::time::Duration::ZERO).await;
        }
        Admission::Taken => {
            return Err(EngineError::Conflict(format!("another live session bears runner id {runner_id}")));
        }
        Admission::Full => return Err(EngineError::Busy("too many runners are attached; try again")),
    }
    let (inbox, from_runner) = mpsc::channel(INBOX_MAX);
    let (outbox, to_runner) = mpsc::channel(OUTBOX_MAX);
    let number = shared.dice.roll();
    let session = Session {
        id,
        runner_id,
        channels,
        capacity: hello.capacity as usize,
        paused: false,
        held: HashMap::new(),
        waiter: Waiter { number, notify: Arc::new(Notify::new()) },
        outbox,
        own_orders,
        shared: shared.clone(),
    };
    shared.drain.spawn("session", session.run(hello.leases, from_runner, orders));
    Ok(Attachment { inbox, outbox: to_runner })
}

/// Session ids are 32 hex digits, made here or by the node before.
fn is_session_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
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
        if self.shared.registry.detach(&self.runner_id, &self.own_orders) {
            let window = self.shared.settings.timings.resume_window;
            self.shared.queue.shorten(&self.id, window).await;
        }
        tracing::debug!(runner = %self.runner_id, session = %self.id, "a session ended");
    }

    async fn serve(&mut self, inbox: &mut mpsc::Receiver<FromRunner>, orders: &mut mpsc::Receiver<Order>) {
        let leaving = self.shared.leaving.clone();
        let stopped = self.shared.stopped();
        let mut told = false;
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
                Some(order) = orders.recv() => self.obey(order).await,
                () = self.waiter.notify.notified(), if self.free() > 0 => self.turn(Vec::new()).await,
                () = leaving.cancelled(), if !told => {
                    told = true;
                    self.shared.queue.leave(&self.channels, &self.waiter).await;
                    self.send(ToRunner::GoAway { reason: "this node is shutting down".to_owned() }).await
                }
                () = self.outbox.closed() => Going::Over,
                () = stopped.cancelled() => Going::Over,
            };
        }
    }

    /// Slots for more executions.
    fn free(&self) -> usize {
        if self.paused || self.shared.leaving.is_cancelled() {
            return 0;
        }
        self.capacity.saturating_sub(self.held.len())
    }

    async fn send(&self, message: ToRunner) -> Going {
        // A runner that reads nothing for a whole lease has lost everything it holds anyway.
        let patience = self.shared.settings.timings.lease_ttl;
        match tokio::time::timeout(patience, self.outbox.send(message)).await {
            Ok(Ok(())) => Going::On,
            Ok(Err(_)) | Err(_) => Going::Over,
        }
    }

    /// Finds out which of the leases named in Hello are still this runner's, and answers Welcome.
    async fn welcome(&mut self, named: Vec<Lease>) -> Going {
        let timings = self.shared.settings.timings;
        let mut lost = Vec::new();
        let mut interrupted = Vec::new();
        let held = self.shared.queue.held_by(&self.id).await;
        let mut wanted: Vec<Lease> = named.clone();
        wanted.extend(held.iter().filter(|lease| !named.contains(lease)));
        let ids: Vec<JobId> = wanted.iter().map(|lease| lease.job_id).collect();
        let Ok(jobs) = self.shared.store.load(&ids).await else { return Going::Over };
        for (lease, job) in wanted.into_iter().zip(jobs) {
            let holder = self.shared.queue.holder(lease).await;
            let mine = holder.is_none_or(|holder| holder == self.id);
            let job = job.filter(|job| {
                mine && job.status == Status::Running
                    && job.attempt == lease.attempt
                    && job.runner_id.as_deref() == Some(&*self.runner_id)
            });
            match job {
                Some(job) => {
                    if named.contains(&lease) {
                        self.shared.queue.hold(&[lease], &self.id, timings.lease_ttl).await;
                        self.shared.queue.renew(&[lease], &self.id, timings.lease_ttl).await;
                    }
                    if job.cancel_requested {
                        interrupted.push(lease);
                    }
                    self.held.insert(lease.job_id, Arc::new(job));
                }
                None if named.contains(&lease) => lost.push(lease),
                None => {}
            }
        }
        let welcome =
            Welcome { session_id: self.id.to_string(), node_id: self.shared.settings.node_id.clone(), timings, lost };
        self.note_running();
        if self.send(ToRunner::Welcome(welcome)).await == Going::Over {
            return Going::Over;
        }
        for lease in interrupted {
            if self.send(ToRunner::Interrupt { lease, reason: InterruptReason::Requested }).await == Going::Over {
                return Going::Over;
            }
        }
        Going::On
    }

    /// Takes in messages, claims what there is room for, stores all of it at once, and answers.
    async fn turn(&mut self, messages: Vec<FromRunner>) -> Going {
        let mut reports: Vec<Report> = Vec::new();
        // The last word on each job's progress counts; earlier ones would be overwritten at once.
        let mut progress: BTreeMap<Lease, String> = BTreeMap::new();
        let mut logs = Vec::new();
        if !messages.is_empty() {
            let now = self.shared.now();
            self.shared.registry.update(&self.runner_id, |presence| presence.last_heartbeat = now);
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
                    let reply = Reply { runner_id: self.runner_id.clone(), data, error };
                    self.shared.registry.reply(&command_id, reply);
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
        self.settle_and_claim(reports).await
    }

    fn holds(&self, lease: Lease) -> bool {
        self.held.get(&lease.job_id).is_some_and(|job| job.attempt == lease.attempt)
    }

    async fn heartbeat(&mut self, leases: &[Lease]) {
        let ttl = self.shared.settings.timings.lease_ttl;
        self.shared.queue.renew(leases, &self.id, ttl).await;
        // One that it names and does not hold was taken from it, perhaps while it could not hear so.
        for lease in leases.iter().filter(|lease| !self.holds(**lease)) {
            let _ = self.outbox.try_send(ToRunner::Interrupt { lease: *lease, reason: InterruptReason::LeaseLost });
        }
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
        self.shared.registry.update(&self.runner_id, |presence| {
            presence.paused = paused;
            if capacity > 0 {
                presence.capacity = capacity;
            }
        });
        if paused {
            self.shared.queue.leave(&self.channels, &self.waiter).await;
        }
    }

    fn note_running(&self) {
        let running = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        self.shared.registry.update(&self.runner_id, |presence| presence.running = running);
    }

    /// One commit for the results that came in and for the claims that they made room for.
    async fn settle_and_claim(&mut self, reports: Vec<Report>) -> Going {
        let mut ended = self.end_steps(&reports).await;
        let freed = ended.iter().filter(|ended| ended.step.is_some() && self.holds(ended.lease)).count();
        let room = if self.free() == 0 && freed == 0 { 0 } else { self.room_after(freed) };
        let claims = if room > 0 { self.claim_steps(room).await } else { Vec::new() };
        let mut steps: Vec<Step> = ended.iter_mut().filter_map(|ended| ended.step.clone()).collect();
        let settling = steps.len();
        steps.extend(claims.iter().cloned());
        let outcomes = match self.shared.committer.apply_each(steps).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                // No receipt: the runner sends its results again. The leases of the claims lapse, or the orphan
                // search finds what was stored after all.
                tracing::warn!(error = &error as &dyn std::error::Error, "a session's steps were not stored");
                let leases: Vec<Lease> = claims.iter().map(|step| step.job.lease()).collect();
                self.shared.queue.release(&leases).await;
                let channels = self.channels.clone();
                self.shared.queue.suspect(&channels).await;
                return if matches!(error, EngineError::Draining) { Going::Over } else { Going::On };
            }
        };
        let (settled, claimed) = outcomes.split_at(settling.min(outcomes.len()));
        let receipts = self.receipts(ended, settled).await;
        let assigned = self.assigned(claims, claimed).await;
        self.note_running();
        if !receipts.is_empty() && self.send(ToRunner::ResultsAccepted(receipts)).await == Going::Over {
            return Going::Over;
        }
        self.assign(assigned).await
    }

    fn room_after(&self, freed: usize) -> usize {
        if self.paused || self.shared.leaving.is_cancelled() {
            return 0;
        }
        (self.capacity + freed).saturating_sub(self.held.len()).min(CLAIM_MAX)
    }

    /// The steps by which the reported executions end; none for a report that comes too late.
    async fn end_steps(&self, reports: &[Report]) -> Vec<Ended> {
        let now = self.shared.now();
        let mut ended = Vec::with_capacity(reports.len());
        for report in reports {
            let input = input_of(report);
            let mut job = self.held.get(&report.lease.job_id).filter(|_| self.holds(report.lease)).cloned();
            if job.is_none() {
                job = self.reload(report.lease).await;
            }
            let step = job.and_then(|job| step(&job, input.clone(), now, self.shared.dice.roll()).ok());
            // The same report twice in one turn: the second one has nothing left to end.
            let again = ended.iter().any(|earlier: &Ended| earlier.lease == report.lease && earlier.step.is_some());
            ended.push(Ended { lease: report.lease, input, step: step.filter(|_| !again) });
        }
        ended
    }

    /// A job as the store has it, if this attempt of it is this runner's.
    async fn reload(&self, lease: Lease) -> Option<Arc<Job>> {
        let job = self.shared.load(lease.job_id).await.ok().flatten()?;
        (job.attempt == lease.attempt && job.runner_id.as_deref() == Some(&*self.runner_id)).then(|| Arc::new(job))
    }

    async fn claim_steps(&self, room: usize) -> Vec<Step> {
        let offers = self.shared.queue.take(&self.channels, room, &self.waiter).await;
        if offers.is_empty() {
            return Vec::new();
        }
        if offers.len() == room {
            // There may be more; a turn that still has room looks again.
            self.waiter.notify.notify_one();
        }
        let jobs = match self.at_hand(offers).await {
            Ok(jobs) => jobs,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "jobs to claim could not be read");
                self.shared.queue.suspect(&self.channels).await;
                return Vec::new();
            }
        };
        let now = self.shared.now();
        let mut steps = Vec::new();
        for job in jobs {
            match step(&job, Input::Claim { runner_id: self.runner_id.clone() }, now, 0) {
                Ok(step) => steps.push(step),
                Err(Refusal::Expiry) => {
                    let _ = self.shared.transition(job.id, |_| Input::Expire).await;
                }
                // A stale hint: somebody else moved it on.
                Err(_) => {}
            }
        }
        let leases: Vec<Lease> = steps.iter().map(|step| step.job.lease()).collect();
        self.shared.queue.hold(&leases, &self.id, self.shared.settings.timings.accept_timeout).await;
        steps
    }

    /// The jobs behind offers; those that were too large to keep are read from the store.
    async fn at_hand(&self, offers: Vec<Offer>) -> Result<Vec<Arc<Job>>, EngineError> {
        let missing: Vec<JobId> =
            offers.iter().filter(|offer| offer.job.is_none()).map(|offer| offer.ready.id).collect();
        let mut loaded: HashMap<JobId, Arc<Job>> = HashMap::new();
        if !missing.is_empty() {
            let jobs = self.shared.store.load(&missing).await?;
            loaded.extend(jobs.into_iter().flatten().map(|job| (job.id, Arc::new(job))));
        }
        let take = |offer: Offer| offer.job.or_else(|| loaded.remove(&offer.ready.id));
        Ok(offers.into_iter().filter_map(take).collect())
    }

    async fn receipts(&mut self, ended: Vec<Ended>, outcomes: &[Outcome]) -> Vec<Receipt> {
        let mut outcomes = outcomes.iter();
        let mut receipts = Vec::with_capacity(ended.len());
        let (mut processed, mut failed) = (0, 0);
        for Ended { lease, input, step } in ended {
            let mut accepted = false;
            if step.is_some() {
                accepted = outcomes.next() == Some(&Outcome::Applied);
                if !accepted {
                    // Somebody changed the job meanwhile, e.g. asked for its cancellation.
                    match self.shared.transition(lease.job_id, |_| input.clone()).await {
                        Ok(_) => accepted = true,
                        Err(super::transition::Stuck::Failed(error)) => {
                            tracing::warn!(job = %lease.job_id, %error, "a result was not stored");
                            continue;
                        }
                        Err(_) => {}
                    }
                }
            }
            if self.holds(lease) {
                self.held.remove(&lease.job_id);
            }
            if accepted {
                self.shared.queue.release(&[lease]).await;
                processed += u64::from(!matches!(input, Input::Release { .. }));
                failed += u64::from(matches!(input, Input::Fail { .. }));
            }
            receipts.push(Receipt { lease, accepted });
        }
        self.shared.registry.update(&self.runner_id, |presence| {
            presence.jobs_processed += processed;
            presence.jobs_failed += failed;
        });
        receipts
    }

    /// The claims that were stored. One that was not had a stale hint: if its job is still to be had, it is offered anew.
    async fn assigned(&mut self, claims: Vec<Step>, outcomes: &[Outcome]) -> Vec<Arc<Job>> {
        let mut assigned = Vec::with_capacity(claims.len());
        for (claim, outcome) in claims.into_iter().zip(outcomes) {
            if *outcome == Outcome::Applied {
                self.held.insert(claim.job.id, claim.job.clone());
                assigned.push(claim.job);
                continue;
            }
            self.shared.queue.release(&[claim.job.lease()]).await;
            if let Ok(Some(job)) = self.shared.load(claim.job.id).await
                && job.status == Status::Pending
                && job.ready_at <= self.shared.now()
            {
                self.shared.queue.offer(vec![super::offer_of(&Arc::new(job))]).await;
            }
        }
        assigned
    }

    async fn assign(&self, jobs: Vec<Arc<Job>>) -> Going {
        let mut message = Vec::new();
        let mut bytes = 0;
        for job in jobs {
            let size = job.payload.len() + job.metadata.len();
            if bytes + size > ASSIGNMENT_BYTES && !message.is_empty() {
                if self.send(ToRunner::Assignments(std::mem::take(&mut message))).await == Going::Over {
                    return Going::Over;
                }
                bytes = 0;
            }
            bytes += size;
            message.push(job);
        }
        if message.is_empty() {
            return Going::On;
        }
        self.send(ToRunner::Assignments(message)).await
    }

    async fn obey(&mut self, order: Order) -> Going {
        match order {
            Order::Supersede => Going::Over,
            Order::Command(command) => self.command(command).await,
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
                let reason = InterruptReason::LeaseLost;
                let told = self.send(ToRunner::Interrupt { lease, reason }).await;
                // A runner that just lost its leases to silence gets no more until it speaks.
                if told == Going::On && self.is_heard() { self.turn(Vec::new()).await } else { told }
            }
        }
    }

    fn is_heard(&self) -> bool {
        self.shared.registry.presence(&self.runner_id, self.shared.now()).is_some_and(|presence| presence.alive)
    }

    async fn command(&mut self, command: Command) -> Going {
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

/// A reported end on its way to its receipt.
struct Ended {
    lease: Lease,
    input: Input,
    /// None where the report comes too late.
    step: Option<Step>,
}

fn input_of(report: &Report) -> Input {
    let attempt = report.lease.attempt;
    let metadata = report.metadata.clone();
    match &report.end {
        End::Completed(result) => Input::Complete { attempt, result: result.clone(), metadata },
        End::Failed(failure) => Input::Fail { attempt, failure: failure.clone(), metadata },
        End::Canceled => Input::Canceled { attempt, metadata },
        End::Released => Input::Release { attempt },
    }
}
