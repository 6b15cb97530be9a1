//! What is in the journal and not yet in the tables: the newest version of each job that changed lately.
//!
//! Jobs enter in the order in which they first changed, and leave for the tables in that order, so what is left in the
//! journal is always its end. A job that changes again before it leaves is written to the tables once.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    model::{IdMap, Job, JobEvent, JobId, Step, Timestamp},
    store::{Agenda, Due, ends::Ends},
};

/// Whose key it is, and the key.
pub(super) type Key = (Arc<str>, Arc<str>);

/// A job as the journal has it.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub job: Arc<Job>,
    /// Whether the tables have an earlier version of it.
    pub in_tables: bool,
    /// What happened since then, oldest first.
    pub events: Vec<JobEvent>,
    /// Whether it came to its end since then, and counts.
    pub ended: bool,
}

impl Change {
    pub fn of(step: &Step, in_tables: bool) -> Change {
        Change {
            job: step.job.clone(),
            in_tables,
            events: step.event.iter().cloned().collect(),
            ended: Ends::is_end(step),
        }
    }

    /// A later step of the same job.
    fn follow(&mut self, later: Change) {
        self.job = later.job;
        self.events.extend(later.events);
        self.ended |= later.ended;
    }
}

/// Changes by job, and the keys that new ones among them hold.
#[derive(Debug, Default)]
pub(super) struct Changes {
    jobs: IdMap<Change>,
    keys: HashMap<Key, JobId>,
}

impl Changes {
    pub fn get(&self, id: JobId) -> Option<&Change> {
        self.jobs.get(&id)
    }

    pub fn key_holder(&self, key: &Key) -> Option<JobId> {
        self.keys.get(key).copied()
    }

    pub fn put(&mut self, change: Change) {
        if let Some(key) = key_of(&change.job).filter(|_| !change.in_tables) {
            self.keys.insert(key, change.job.id);
        }
        match self.jobs.entry(change.job.id) {
            std::collections::hash_map::Entry::Occupied(mut earlier) => earlier.get_mut().follow(change),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(change);
            }
        }
    }

    fn remove(&mut self, id: JobId) -> Option<Change> {
        let change = self.jobs.remove(&id)?;
        if let Some(key) = key_of(&change.job) {
            self.keys.remove(&key);
        }
        Some(change)
    }
}

pub(super) fn key_of(job: &Job) -> Option<Key> {
    job.idempotency_key.as_ref().map(|key| (job.owner.clone(), key.clone()))
}

/// A job's place in the order of leaving.
#[derive(Debug, Clone, Copy)]
struct Entered {
    id: JobId,
    /// The first journal record that the tables lack of it.
    record: i64,
    at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Overlay {
    changes: Changes,
    order: VecDeque<Entered>,
    /// All that ever left.
    left: u64,
    /// Texts of the changed jobs, in bytes.
    bytes: usize,
    alarms: Alarms,
}

/// For each kind of what may be due, the earliest time at which something here may be.
#[derive(Debug, Default)]
struct Alarms([Option<Timestamp>; Due::ALL.len()]);

impl Alarms {
    fn set(&mut self, due: Due, at: Timestamp) {
        let alarm = &mut self.0[due as usize];
        *alarm = Some(alarm.map_or(at, |earlier| earlier.min(at)));
    }

    fn hear(&mut self, job: &Job) {
        for due in Due::ALL {
            match due.of(job) {
                // Of these, whatever the time.
                Some(_) if due == Due::Parent => self.set(due, Timestamp(i64::MIN)),
                Some(at) => self.set(due, at),
                None => {}
            }
        }
    }
}

impl Overlay {
    pub fn get(&self, id: JobId) -> Option<&Change> {
        self.changes.get(id)
    }

    pub fn key_holder(&self, key: &Key) -> Option<JobId> {
        self.changes.key_holder(key)
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// How many have left.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// How many have left once all that are here have.
    pub fn entered(&self) -> u64 {
        self.left + self.order.len() as u64
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How long the longest has been here.
    pub fn age(&self) -> Option<Duration> {
        self.order.front().map(|entered| entered.at.elapsed())
    }

    /// Whether a change here may be due by then.
    pub fn concerns(&self, due: Due, now: Timestamp) -> bool {
        self.alarms.0[due as usize].is_some_and(|at| at <= now)
    }

    /// What comes due of the jobs here.
    pub fn agenda(&self, now: Timestamp) -> Agenda {
        Agenda::of(self.changes.jobs.values().map(|change| &*change.job), now)
    }

    /// Which jobs are here.
    pub fn jobs(&self) -> HashSet<JobId> {
        self.changes.jobs.keys().copied().collect()
    }

    /// Whether a job here has ended before then.
    pub fn has_ended_before(&self, before: Timestamp) -> bool {
        self.changes.jobs.values().any(|change| change.job.finished_at.is_some_and(|finished| finished < before))
    }

    /// Takes in the changes of one journal record.
    pub fn absorb(&mut self, changes: Changes, record: i64) {
        let at = Instant::now();
        for (id, change) in changes.jobs {
            self.alarms.hear(&change.job);
            match self.changes.get(id) {
                Some(earlier) => self.bytes = self.bytes.saturating_sub(texts(&earlier.job)),
                None => self.order.push_back(Entered { id, record, at }),
            }
            self.bytes += texts(&change.job);
            self.changes.put(change);
        }
    }

    /// The first `most` to leave.
    pub fn first(&self, most: usize) -> Vec<Change> {
        self.order.iter().take(most).filter_map(|entered| self.changes.get(entered.id)).cloned().collect()
    }

    /// The first journal record that is still needed once the first `count` have left; `None`: none is.
    pub fn record_behind(&self, count: usize) -> Option<i64> {
        self.order.get(count).map(|entered| entered.record)
    }

    /// The first `count` have left.
    pub fn remove_first(&mut self, count: usize) {
        let count = count.min(self.order.len());
        self.left += count as u64;
        for entered in self.order.drain(..count) {
            if let Some(change) = self.changes.remove(entered.id) {
                self.bytes = self.bytes.saturating_sub(texts(&change.job));
            }
        }
        if self.order.is_empty() {
            self.alarms = Alarms::default();
        }
    }
}

fn texts(job: &Job) -> usize {
    job.payload.len() + job.metadata.len() + job.result.len() + job.stack_trace.len() + job.last_error.len()
}
