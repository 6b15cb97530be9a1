//! The start of a session: who the runner is, and which of the leases it names are still its own.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tokio::sync::{Notify, mpsc};

use super::{Attachment, Going, INBOX_MAX, OUTBOX_MAX, Session};
use crate::{
    engine::{
        EngineError, Shared,
        messages::{Hello, InterruptReason, Presence, ToRunner, Welcome},
        registry::{Entrance, ORDERS_MAX, Place},
        vacancies::Vacancy,
    },
    fleet::Arrival,
    model::{JobId, Lease, Status, lifecycle::private_channel},
    queue::Waiter,
};

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
    let (to_session, orders) = mpsc::channel(ORDERS_MAX);
    let stream = shared.dice.roll();
    let arrival = Arrival { presence, session_id: id.clone(), resumes, stream };
    match shared.registry.admit(arrival, to_session).await {
        Entrance::Open => {}
        Entrance::Replaces(old) => {
            // That incarnation is gone for good; what it ran goes to others at once.
            shared.queue.shorten(&old, std::time::Duration::ZERO).await;
        }
        Entrance::Taken => {
            return Err(EngineError::Conflict(format!("another live session bears runner id {runner_id}")));
        }
        Entrance::Full => return Err(EngineError::Busy("too many runners are attached; try again")),
    }
    let (inbox, from_runner) = mpsc::channel(INBOX_MAX);
    let (outbox, to_runner) = mpsc::channel(OUTBOX_MAX);
    let number = shared.dice.roll();
    let place = Place { runner_id, stream };
    let notify = Arc::new(Notify::new());
    let vacancy = Vacancy { place: place.clone(), session_id: id.clone(), notify: notify.clone() };
    shared.vacancies.enter(number, vacancy);
    let session = Session {
        id,
        place,
        channels,
        capacity: hello.capacity as usize,
        paused: false,
        held: HashMap::new(),
        promised: 0,
        said_goodbye: false,
        stands_back_until: None,
        owed: Vec::new(),
        owes_until: None,
        waiter: Waiter { number, notify },
        outbox,
        asked: VecDeque::new(),
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
    /// Finds out which of the leases named in Hello are still this runner's, and answers Welcome.
    pub(super) async fn welcome(&mut self, named: Vec<Lease>) -> Going {
        let timings = self.shared.settings.timings;
        let mut lost = Vec::new();
        let mut interrupted = Vec::new();
        let held = self.shared.queue.held_by(&self.id).await;
        let mut wanted: Vec<Lease> = named.clone();
        wanted.extend(held.iter().filter(|lease| !named.contains(lease)));
        let ids: Vec<JobId> = wanted.iter().map(|lease| lease.job_id).collect();
        let Ok(jobs) = self.shared.store.load(&ids).await else { return Going::Over };
        // Where nobody can be asked, the store's word counts.
        let holders = self.shared.queue.holders(&wanted).await.unwrap_or_else(|_| vec![None; wanted.len()]);
        let mut resumed = Vec::new();
        for ((lease, job), holder) in wanted.into_iter().zip(jobs).zip(holders) {
            let mine = holder.is_none_or(|holder| holder == self.id);
            let job = job.filter(|job| mine && job.status == Status::Running && self.is_mine(job, lease));
            match job {
                Some(job) => {
                    if named.contains(&lease) {
                        resumed.push(lease);
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
        if !resumed.is_empty() {
            self.shared.queue.renew(&resumed, &self.id, timings.lease_ttl).await;
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
}
