//! What everybody in one simulation shares.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use errand::{
    clock::{Clock, Dice, SeededDice},
    drain::Drain,
    engine::{Engine, OnBehalf, Parts, Settings, messages::Timings},
    fleet::memory::Hub,
    model::{
        Caller, JobId, Lease,
        access::Permission,
        limits::{Limits, Retention},
    },
    queue::memory::MemoryQueue,
};

use super::faults::{FaultyQueue, FaultyStore};

/// Dice, and whether anything may go wrong still.
#[derive(Clone)]
pub struct Chance {
    pub dice: Arc<SeededDice>,
    pub faulty: Arc<AtomicBool>,
}

impl Chance {
    /// Another stream of rolls from the same seed.
    pub fn split(&self) -> Chance {
        Chance { dice: Arc::new(SeededDice::new(self.dice.roll())), faulty: self.faulty.clone() }
    }

    /// True once in `sides`, and only while things may go wrong.
    pub fn strikes(&self, sides: u64) -> bool {
        let roll = self.dice.roll();
        self.faulty.load(Ordering::Relaxed) && roll.is_multiple_of(sides)
    }
}

/// What the outside saw.
#[derive(Default)]
pub struct Seen {
    pub acknowledged: BTreeSet<JobId>,
    /// Assignments received of each lease, by session.
    pub assigned: BTreeMap<Lease, Vec<String>>,
    /// Accepted receipts of each lease; true: of a completion.
    pub accepted: BTreeMap<Lease, Vec<bool>>,
    /// Leases whose report was on its way when the stream broke: the receipt may be lost.
    pub unanswered: BTreeSet<Lease>,
}

pub struct World {
    pub store: Arc<FaultyStore>,
    pub clock: Arc<dyn Clock>,
    pub chance: Chance,
    pub timings: Timings,
    pub retention: Retention,
    engine: Mutex<Engine>,
    seen: Mutex<Seen>,
}

impl World {
    pub fn new(
        store: Arc<FaultyStore>,
        clock: Arc<dyn Clock>,
        chance: Chance,
        timings: Timings,
        retention: Retention,
    ) -> World {
        let engine = Mutex::new(start(&store, &clock, &chance, (timings, retention)));
        World { store, clock, chance, timings, retention, engine, seen: Mutex::default() }
    }

    pub fn engine(&self) -> Engine {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The door, for somebody who may do everything.
    pub fn door(&self) -> OnBehalf {
        let permissions = vec![Permission::ManageJobs, Permission::RunJobs];
        self.engine().on_behalf(Caller { subject: "ann".into(), permissions, channels: None })
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node stops, and another starts on the same store with an empty queue.
    pub async fn restart(&self) {
        self.engine().stop().await;
        let engine = start(&self.store, &self.clock, &self.chance, (self.timings, self.retention));
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner) = engine;
    }
}

fn start(
    store: &Arc<FaultyStore>,
    clock: &Arc<dyn Clock>,
    chance: &Chance,
    (timings, retention): (Timings, Retention),
) -> Engine {
    let queue = Arc::new(FaultyQueue { inner: MemoryQueue::new(64), chance: chance.split() });
    let settings = Settings { limits: Limits::default(), timings, retention, node_id: "node".into() };
    let fleet = Arc::new(Hub::new(timings.silent_after()).join("node".into()));
    let parts = Parts { store: store.clone(), queue, fleet, clock: clock.clone(), dice: chance.split().dice };
    Engine::start(settings, parts, Drain::new())
}
