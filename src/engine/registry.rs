//! The runners attached to this node, and through the fleet those attached to others.
//!
//! What a runner that is attached here does is known here first and exactly; the fleet hears of it a moment later.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, mpsc};

use super::messages::{Presence, Reply};
use crate::{
    fleet::{Admission, Arrival, Beat, Fleet, Letter, Order, Unreachable},
    model::Timestamp,
};

/// Orders that may wait for one session.
pub const ORDERS_MAX: usize = 1_024;
/// Commands that may wait for their replies.
const REPLIES_MAX: usize = 100_000;

/// A session's own name in the registry: its runner, and which of the runner's streams it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub runner_id: Arc<str>,
    pub stream: u64,
}

struct Entry {
    presence: Presence,
    session_id: Arc<str>,
    stream: u64,
    orders: mpsc::Sender<Order>,
    /// Since the fleet last heard of it.
    changed: bool,
}

/// Whether a stream was let in.
#[derive(Debug, PartialEq, Eq)]
pub enum Entrance {
    /// Its leases, if it has any, go on.
    Open,
    /// So are those of this earlier session, which is over.
    Replaces(Arc<str>),
    /// A living session of another incarnation bears its id.
    Taken,
    /// Too many runners are attached to this node.
    Full,
}

pub struct Registry {
    fleet: Arc<dyn Fleet>,
    node_id: Arc<str>,
    entries: Mutex<HashMap<Arc<str>, Entry>>,
    replies: Mutex<HashMap<String, mpsc::Sender<Reply>>>,
    silent_after: Duration,
    sessions_max: usize,
    /// Notified when the fleet should hear of something soon.
    stirred: Notify,
}

impl Registry {
    /// `silent_after`: a runner that was not heard of for longer is not alive.
    pub fn new(fleet: Arc<dyn Fleet>, node_id: Arc<str>, silent_after: Duration, sessions_max: usize) -> Registry {
        let (entries, replies, stirred) = (Mutex::default(), Mutex::default(), Notify::new());
        Registry { fleet, node_id, entries, replies, silent_after, sessions_max, stirred }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Arc<str>, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a stream in, unless its runner's id is taken, and ends an earlier stream of the runner wherever it is.
    pub async fn admit(&self, arrival: Arrival, orders: mpsc::Sender<Order>) -> Entrance {
        let Arrival { mut presence, session_id, stream, .. } = arrival.clone();
        let runner_id = presence.runner_id.clone();
        {
            let entries = self.entries();
            if entries.len() >= self.sessions_max && !entries.contains_key(&runner_id) {
                return Entrance::Full;
            }
        }
        let (earlier, entrance) = match self.fleet.admit(arrival).await {
            Admission::Taken => return Entrance::Taken,
            Admission::Fresh => (None, Entrance::Open),
            Admission::Replaced { earlier, session_id } => (Some(earlier), Entrance::Replaces(session_id)),
            Admission::Resumed { earlier, jobs_processed, jobs_failed, started } => {
                presence.jobs_processed = jobs_processed;
                presence.jobs_failed = jobs_failed;
                presence.started = started;
                (Some(earlier), Entrance::Open)
            }
        };
        let entry = Entry { presence, session_id, stream, orders, changed: false };
        let replaced = self.entries().insert(runner_id.clone(), entry);
        if let Some(old) = replaced {
            // A full inbox belongs to a session that is stuck; it finds its inbox closed later.
            let _ = old.orders.try_send(Order::Supersede { stream: old.stream });
        }
        if let Some(earlier) = earlier.filter(|earlier| earlier.attached && earlier.node_id != self.node_id) {
            let order = Order::Supersede { stream: earlier.stream };
            // A node that is gone has no stream to end.
            self.fleet.send(&earlier.node_id, vec![Letter::Order { runner_id, order }]).await;
        }
        entrance
    }

    /// The stream of this session has closed. False where another stream has taken its place.
    pub async fn detach(&self, place: &Place, now: Timestamp) -> bool {
        let last = {
            let mut entries = self.entries();
            let Some(entry) = entries.get(&place.runner_id).filter(|entry| entry.stream == place.stream) else {
                return false;
            };
            let last = entry.beat(now);
            entries.remove(&place.runner_id);
            last
        };
        self.fleet.depart(last).await
    }

    /// A session heard its runner.
    pub fn heard(&self, place: &Place, now: Timestamp) {
        if let Some(entry) = self.entries().get_mut(&place.runner_id)
            && entry.stream == place.stream
        {
            entry.presence.last_heartbeat = now;
            entry.changed = true;
        }
    }

    /// Changes what is known of a session's runner: its counts, its capacity, or whether it is paused.
    pub fn update(&self, place: &Place, change: impl FnOnce(&mut Presence)) {
        if let Some(entry) = self.entries().get_mut(&place.runner_id)
            && entry.stream == place.stream
        {
            let told = |runner: &Presence| {
                (runner.jobs_processed, runner.jobs_failed, runner.paused, runner.capacity, runner.running)
            };
            let before = told(&entry.presence);
            change(&mut entry.presence);
            if told(&entry.presence) != before {
                entry.changed = true;
                self.stirred.notify_one();
            }
        }
    }

    /// Waits until the fleet should hear of something soon.
    pub async fn stirred(&self) {
        self.stirred.notified().await;
    }

    /// How the runners are that changed since they were last told of; `all`: how every runner is.
    pub fn beats(&self, all: bool, now: Timestamp) -> Vec<Beat> {
        let mut entries = self.entries();
        let told = entries.values_mut().filter(|entry| all || entry.changed);
        told.map(|entry| {
            entry.changed = false;
            entry.beat(now)
        })
        .collect()
    }

    fn is_alive(&self, presence: &Presence, now: Timestamp) -> bool {
        now.since(presence.last_heartbeat) <= self.silent_after
    }

    /// Whether this session's runner was heard of lately.
    pub fn is_heard(&self, place: &Place, now: Timestamp) -> bool {
        let entries = self.entries();
        let entry = entries.get(&place.runner_id).filter(|entry| entry.stream == place.stream);
        entry.is_some_and(|entry| self.is_alive(&entry.presence, now))
    }

    /// Every runner, by id.
    pub async fn roster(&self, now: Timestamp) -> Vec<Presence> {
        let rumour = self.fleet.roster().await;
        let mut runners: BTreeMap<Arc<str>, Presence> =
            rumour.into_iter().map(|presence| (presence.runner_id.clone(), presence)).collect();
        for (runner_id, entry) in self.entries().iter() {
            let alive = self.is_alive(&entry.presence, now);
            runners.insert(runner_id.clone(), Presence { alive, ..entry.presence.clone() });
        }
        runners.into_values().collect()
    }

    pub async fn find(&self, runner_id: &str, now: Timestamp) -> Result<Option<Presence>, Unreachable> {
        let own = self.entries().get(runner_id).map(|entry| entry.presence.clone());
        match own {
            Some(presence) => Ok(Some(Presence { alive: self.is_alive(&presence, now), ..presence })),
            None => self.fleet.find(runner_id).await,
        }
    }

    /// Whether a runner is known to be alive.
    pub async fn lives(&self, runner_id: &str, now: Timestamp) -> bool {
        matches!(self.find(runner_id, now).await, Ok(Some(runner)) if runner.alive)
    }

    /// Runners attached to this node.
    pub fn attached(&self) -> usize {
        self.entries().len()
    }

    /// Sends an order to a runner's session, on whichever node it is. False where there is none, or it takes no more.
    pub async fn order(&self, runner_id: &Arc<str>, order: Order) -> bool {
        if let Some(sent) = self.order_here(runner_id, &order) {
            return sent;
        }
        let Ok(Some(runner)) = self.fleet.find(runner_id).await else { return false };
        if runner.node_id == self.node_id {
            return false;
        }
        self.fleet.send(&runner.node_id, vec![Letter::Order { runner_id: runner_id.clone(), order }]).await
    }

    /// `None` where the runner is not attached to this node.
    pub fn order_here(&self, runner_id: &str, order: &Order) -> Option<bool> {
        let entries = self.entries();
        let entry = entries.get(runner_id)?;
        if let Order::Supersede { stream } = order
            && *stream != entry.stream
        {
            return Some(false);
        }
        Some(entry.orders.try_send(order.clone()).is_ok())
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

    /// A reply that this node awaits.
    pub fn replied(&self, command_id: &str, reply: Reply) {
        let to = self.replies.lock().unwrap_or_else(PoisonError::into_inner).remove(command_id);
        if let Some(to) = to {
            // Whoever asked may have stopped waiting.
            let _ = to.try_send(reply);
        }
    }

    /// Passes a runner's reply on to the node that asked.
    pub async fn reply(&self, asked_by: &str, command_id: String, reply: Reply) {
        if *asked_by == *self.node_id {
            self.replied(&command_id, reply);
        } else {
            // A node that is gone awaits nothing.
            self.fleet.send(asked_by, vec![Letter::Reply { command_id, reply }]).await;
        }
    }
}

impl Entry {
    fn beat(&self, now: Timestamp) -> Beat {
        Beat {
            presence: self.presence.clone(),
            session_id: self.session_id.clone(),
            stream: self.stream,
            heard_ago: now.since(self.presence.last_heartbeat),
        }
    }
}
