//! Which runners there are, and how to reach them.
//!
//! A rumour: losing it costs a heartbeat. A runner that went silent or away stays listed for ten minutes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::mpsc;

use super::messages::{Command, InterruptReason, Presence, Reply};
use crate::model::{Lease, Timestamp};

/// How long a runner that is gone stays listed.
const REMEMBER: Duration = Duration::from_secs(600);
/// Orders that may wait for one session.
pub const ORDERS_MAX: usize = 1_024;
/// Commands that may wait for their replies.
const REPLIES_MAX: usize = 100_000;

/// An order to a session from elsewhere in the engine.
#[derive(Debug, Clone)]
pub enum Order {
    Command(Command),
    Interrupt {
        lease: Lease,
        reason: InterruptReason,
    },
    /// The reaper took this lease away.
    Lost(Lease),
    /// The runner came back over another stream.
    Supersede,
}

struct Entry {
    presence: Presence,
    session_id: Arc<str>,
    /// Present while a stream is attached.
    orders: Option<mpsc::Sender<Order>>,
}

/// What a new stream found of its runner's earlier ones.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// Nothing that matters.
    Fresh,
    /// The session it names; its leases go on.
    Resumed,
    /// A session it does not name, which is over.
    Replaced(Arc<str>),
    /// A live session of another incarnation.
    Taken,
    /// Too many runners are attached.
    Full,
}

pub struct Registry {
    entries: Mutex<HashMap<Arc<str>, Entry>>,
    replies: Mutex<HashMap<String, mpsc::Sender<Reply>>>,
    silent_after: Duration,
    sessions_max: usize,
}

impl Registry {
    /// `silent_after`: a runner that was not heard of for longer is not alive.
    pub fn new(silent_after: Duration, sessions_max: usize) -> Registry {
        Registry { entries: Mutex::default(), replies: Mutex::default(), silent_after, sessions_max }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Arc<str>, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a stream, unless its runner's id is taken. The counts of a resumed session go on.
    pub fn admit(
        &self,
        presence: Presence,
        session_id: &Arc<str>,
        resumes: bool,
        orders: mpsc::Sender<Order>,
        now: Timestamp,
    ) -> Admission {
        let mut entries = self.entries();
        let id = presence.runner_id.clone();
        let attached = entries.values().filter(|entry| entry.orders.is_some()).count();
        let mut admission = Admission::Fresh;
        if let Some(old) = entries.get(&id) {
            let same = resumes && old.session_id == *session_id;
            let lives = old.orders.is_some() && self.is_alive(old, now);
            admission = match (same, lives) {
                (true, _) => Admission::Resumed,
                (false, true) => return Admission::Taken,
                (false, false) => Admission::Replaced(old.session_id.clone()),
            };
            if let Some(orders) = &old.orders {
                // A full inbox belongs to a session that is stuck; it finds its inbox closed later.
                let _ = orders.try_send(Order::Supersede);
            }
        } else if attached >= self.sessions_max {
            return Admission::Full;
        }
        let mut presence = presence;
        if admission == Admission::Resumed
            && let Some(old) = entries.get(&id)
        {
            presence.jobs_processed = old.presence.jobs_processed;
            presence.jobs_failed = old.presence.jobs_failed;
            presence.started = old.presence.started;
        }
        entries.insert(id, Entry { presence, session_id: session_id.clone(), orders: Some(orders) });
        admission
    }

    /// The stream of this session has closed. False where another stream has taken its place.
    pub fn detach(&self, runner_id: &str, orders: &mpsc::Sender<Order>) -> bool {
        match self.entries().get_mut(runner_id) {
            Some(entry) if entry.orders.as_ref().is_some_and(|own| own.same_channel(orders)) => {
                entry.orders = None;
                entry.presence.running = 0;
                true
            }
            _ => false,
        }
    }

    /// Changes what is known of a runner.
    pub fn update(&self, runner_id: &str, change: impl FnOnce(&mut Presence)) {
        if let Some(entry) = self.entries().get_mut(runner_id) {
            change(&mut entry.presence);
        }
    }

    fn is_alive(&self, entry: &Entry, now: Timestamp) -> bool {
        entry.orders.is_some() && now.since(entry.presence.last_heartbeat) <= self.silent_after
    }

    /// Every runner, by id; those gone for ten minutes are forgotten.
    pub fn roster(&self, now: Timestamp) -> Vec<Presence> {
        let mut entries = self.entries();
        entries.retain(|_, entry| entry.orders.is_some() || now.since(entry.presence.last_heartbeat) < REMEMBER);
        let mut roster: Vec<Presence> = entries
            .values()
            .map(|entry| Presence { alive: self.is_alive(entry, now), ..entry.presence.clone() })
            .collect();
        roster.sort_by(|a, b| a.runner_id.cmp(&b.runner_id));
        roster
    }

    pub fn presence(&self, runner_id: &str, now: Timestamp) -> Option<Presence> {
        let entries = self.entries();
        let entry = entries.get(runner_id)?;
        Some(Presence { alive: self.is_alive(entry, now), ..entry.presence.clone() })
    }

    /// Whether this session has a stream.
    pub fn is_attached(&self, runner_id: &str) -> bool {
        self.entries().get(runner_id).is_some_and(|entry| entry.orders.is_some())
    }

    pub fn attached(&self) -> usize {
        self.entries().values().filter(|entry| entry.orders.is_some()).count()
    }

    /// Sends an order to a runner's session. False where there is none, or it takes no more.
    pub fn order(&self, runner_id: &str, order: Order) -> bool {
        let orders = self.entries().get(runner_id).and_then(|entry| entry.orders.clone());
        orders.is_some_and(|orders| orders.try_send(order).is_ok())
    }

    /// Where the reply to `command_id` goes. False where too many are awaited.
    pub fn expect_reply(&self, command_id: &str, to: mpsc::Sender<Reply>) -> bool {
        let mut replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        if replies.len() >= REPLIES_MAX {
            return false;
        }
        replies.insert(command_id.to_owned(), to);
        true
    }

    pub fn forget_reply(&self, command_id: &str) {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner).remove(command_id);
    }

    pub fn reply(&self, command_id: &str, reply: Reply) {
        let to = self.replies.lock().unwrap_or_else(PoisonError::into_inner).remove(command_id);
        if let Some(to) = to {
            // Whoever asked may have stopped waiting.
            let _ = to.try_send(reply);
        }
    }
}
