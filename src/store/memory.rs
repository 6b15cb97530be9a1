//! A store in memory, for simulations and as the oracle of the contract: simple and obviously right, never fast.
//!
//! It keeps nothing once dropped, so no service runs on it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use super::{
    Agenda, Arrival, ArrivalPage, Bell, Due, Forgotten, ListQuery, OrderBy, Outcome, Outdated, Page, Ready, Store,
    StoreError, Tally, Total,
};
use crate::model::{
    Job, JobEvent, JobId, Parts, Status, Step, Timestamp,
    log::{JobLog, LogKind},
};

/// Keeps everything until it is dropped.
#[derive(Debug, Default)]
pub struct MemoryStore {
    tables: Mutex<Tables>,
}

#[derive(Debug, Clone, Default)]
struct Tables {
    jobs: BTreeMap<JobId, Job>,
    /// Oldest first.
    events: BTreeMap<JobId, Vec<JobEvent>>,
    logs: Vec<JobLog>,
    /// The id of the last log line; ids of deleted lines do not return.
    last_log_id: u64,
    closed: bool,
}

impl MemoryStore {
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    fn open(&self) -> Result<MutexGuard<'_, Tables>, StoreError> {
        // A panic elsewhere leaves the tables whole: they are changed only after everything that could panic.
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if tables.closed { Err(StoreError::Unavailable("the store is closed".into())) } else { Ok(tables) }
    }
}

impl Tables {
    fn apply(&mut self, step: &Step) -> Outcome {
        let job = &step.job;
        match step.expected {
            Some(version) if self.jobs.get(&job.id).is_none_or(|stored| stored.version != version) => {
                return Outcome::Stale;
            }
            Some(_) => {}
            None => {
                if let Some(holder) = self.key_holder(job) {
                    return Outcome::Duplicate(holder);
                }
                if self.jobs.contains_key(&job.id) {
                    return Outcome::Stale;
                }
            }
        }
        self.jobs.insert(job.id, (**job).clone());
        self.events.entry(job.id).or_default().extend(step.event.clone());
        Outcome::Applied
    }

    fn key_holder(&self, job: &Job) -> Option<JobId> {
        let key = job.idempotency_key.as_ref()?;
        let holds = |other: &&Job| other.owner == job.owner && other.idempotency_key.as_ref() == Some(key);
        self.jobs.values().find(holds).map(|other| other.id)
    }

    fn remove(&mut self, id: JobId) {
        let is_gone = |job: &Job| job.id == id || job.parent_id == Some(id);
        let gone: Vec<JobId> = self.jobs.values().filter(|job| is_gone(job)).map(|job| job.id).collect();
        for id in gone {
            self.jobs.remove(&id);
            self.events.remove(&id);
            self.logs.retain(|log| log.job_id != id);
        }
    }

    fn is_outdated(&self, id: JobId, finished_before: Timestamp) -> bool {
        let is_over =
            |job: &Job| job.parent_id.is_none() && job.finished_at.is_some_and(|finished| finished < finished_before);
        self.jobs.get(&id).is_some_and(|job| job.status.is_terminal() && is_over(job))
            && !self.jobs.values().any(|job| job.parent_id == Some(id) && !job.status.is_terminal())
    }

    /// The first `limit` jobs that `chosen` takes, lowest `key` first.
    fn select<K: Ord>(&self, limit: u32, chosen: impl Fn(&Job) -> bool, key: impl Fn(&Job) -> K) -> Vec<Job> {
        let mut jobs: Vec<Job> = self.jobs.values().filter(|job| chosen(job)).cloned().collect();
        jobs.sort_by_key(key);
        jobs.truncate(limit as usize);
        jobs
    }
}

fn is_ready(job: &Job, now: Timestamp) -> bool {
    job.status == Status::Pending && !job.broadcast && job.ready_at <= now
}

fn ready_of(job: &Job) -> Ready {
    Ready { id: job.id, channel: job.channel.clone(), priority: job.priority, ready_at: job.ready_at }
}

fn matches(query: &ListQuery, job: &Job) -> bool {
    fn is<T: PartialEq + ?Sized>(wanted: Option<&T>, value: &T) -> bool {
        wanted.is_none_or(|wanted| wanted == value)
    }
    query.parent_id == job.parent_id
        && is(query.owner.as_deref(), &*job.owner)
        && is(query.channel.as_deref(), &*job.channel)
        && (query.statuses.is_empty() || query.statuses.contains(&job.status))
        && is(query.func.as_deref(), &*job.func)
        && query.runner_id.as_deref().is_none_or(|wanted| job.runner_id.as_deref() == Some(wanted))
        && query.created_from.is_none_or(|from| job.created >= from)
        && query.created_to.is_none_or(|to| job.created < to)
        && is(query.broadcast.as_ref(), &job.broadcast)
        && query.search.as_deref().is_none_or(|search| {
            job.func.starts_with(search) || job.id.to_string().starts_with(&search.to_ascii_lowercase())
        })
}

/// What a list sorts by, before the id.
fn order_key(order: OrderBy, job: &Job) -> Option<Timestamp> {
    match order {
        OrderBy::Created => None,
        OrderBy::Modified => Some(job.modified),
        OrderBy::StartedAt => job.started_at,
        OrderBy::FinishedAt => job.finished_at,
        OrderBy::RunAt => job.run_at,
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn commit(&self, steps: &[Step]) -> Result<Vec<Outcome>, StoreError> {
        let mut tables = self.open()?;
        Ok(steps.iter().map(|step| tables.apply(step)).collect())
    }

    async fn commit_all(&self, steps: &[Step]) -> Result<Vec<Outcome>, StoreError> {
        let mut tables = self.open()?;
        let mut attempt = tables.clone();
        let outcomes: Vec<Outcome> = steps.iter().map(|step| attempt.apply(step)).collect();
        if outcomes.iter().all(|outcome| *outcome == Outcome::Applied) {
            *tables = attempt;
        }
        Ok(outcomes)
    }

    async fn load(&self, ids: &[JobId]) -> Result<Vec<Option<Job>>, StoreError> {
        let tables = self.open()?;
        Ok(ids.iter().map(|id| tables.jobs.get(id).cloned()).collect())
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        let tables = self.open()?;
        let mut jobs = tables.select(u32::MAX, |job| matches(query, job), |job| (order_key(query.order, job), job.id));
        let total = query.count.then_some(Total::exactly(jobs.len() as u64));
        if query.descending {
            jobs.reverse();
        }
        jobs.retain(|job| query.before.is_none_or(|before| job.id < before));
        let jobs = jobs.into_iter().skip(query.offset as usize).take(query.limit as usize).collect();
        Ok(Page { jobs, total })
    }

    async fn events(&self, job_id: JobId, limit: u32) -> Result<Vec<JobEvent>, StoreError> {
        let tables = self.open()?;
        let events = tables.events.get(&job_id).map(Vec::as_slice).unwrap_or_default();
        Ok(events[events.len().saturating_sub(limit as usize)..].to_vec())
    }

    async fn append_logs(&self, logs: &[JobLog]) -> Result<(), StoreError> {
        let mut tables = self.open()?;
        for log in logs {
            if tables.jobs.contains_key(&log.job_id) {
                tables.last_log_id += 1;
                let id = tables.last_log_id;
                tables.logs.push(JobLog { id, ..log.clone() });
            }
        }
        Ok(())
    }

    async fn logs(&self, job_id: JobId, kinds: &[LogKind], after: u64, limit: u32) -> Result<Vec<JobLog>, StoreError> {
        let tables = self.open()?;
        let chosen =
            |log: &&JobLog| log.job_id == job_id && log.id > after && (kinds.is_empty() || kinds.contains(&log.kind));
        Ok(tables.logs.iter().filter(chosen).take(limit as usize).cloned().collect())
    }

    async fn ready(
        &self,
        channel: &str,
        now: Timestamp,
        after: Option<&Ready>,
        limit: u32,
    ) -> Result<Vec<Ready>, StoreError> {
        let tables = self.open()?;
        let place = |priority: i32, ready_at: Timestamp, id: JobId| (Reverse(priority), ready_at, id);
        let of_job = |job: &Job| place(job.priority, job.ready_at, job.id);
        let is_behind = |job: &Job| after.is_none_or(|it| of_job(job) > place(it.priority, it.ready_at, it.id));
        let chosen = |job: &Job| *job.channel == *channel && is_ready(job, now) && is_behind(job);
        Ok(tables.select(limit, chosen, of_job).iter().map(ready_of).collect())
    }

    async fn pending_channels(&self) -> Result<Vec<Arc<str>>, StoreError> {
        let tables = self.open()?;
        let pending = tables.jobs.values().filter(|job| job.status == Status::Pending);
        let channels: BTreeSet<Arc<str>> = pending.map(|job| job.channel.clone()).collect();
        Ok(channels.into_iter().collect())
    }

    async fn agenda(&self, now: Timestamp) -> Result<Agenda, StoreError> {
        let tables = self.open()?;
        Ok(Agenda::of(tables.jobs.values(), now))
    }

    async fn due_between(&self, after: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Ready>, StoreError> {
        let tables = self.open()?;
        let chosen = |job: &Job| is_ready(job, until) && job.ready_at > after;
        Ok(tables.select(limit, chosen, |job| (job.ready_at, job.id)).iter().map(ready_of).collect())
    }

    async fn due(&self, due: Due, now: Timestamp, limit: u32) -> Result<Vec<Job>, StoreError> {
        let tables = self.open()?;
        let is_due = |job: &Job| due.of(job).is_some_and(|at| at <= now || due == Due::Parent);
        Ok(tables.select(limit, is_due, |job| (due.of(job), job.id)))
    }

    async fn running(&self, after: Option<JobId>, limit: u32) -> Result<Vec<Job>, StoreError> {
        let tables = self.open()?;
        let is_behind = |job: &Job| after.is_none_or(|after| job.id > after);
        let chosen = |job: &Job| job.status == Status::Running && !job.broadcast && is_behind(job);
        Ok(tables.select(limit, chosen, |job| job.id))
    }

    async fn parts(&self, parent_id: JobId) -> Result<Parts, StoreError> {
        let tables = self.open()?;
        let mut parts = Parts::default();
        for part in tables.jobs.values().filter(|job| job.parent_id == Some(parent_id)) {
            parts.total += 1;
            match part.status {
                Status::Pending | Status::Running => {}
                Status::Completed => parts.completed += 1,
                Status::Failed => parts.failed += 1,
                Status::Canceled => parts.canceled += 1,
                Status::Expired => parts.expired += 1,
            }
        }
        Ok(parts)
    }

    async fn unfinished_parts(&self, parent_id: JobId, limit: u32) -> Result<Vec<Job>, StoreError> {
        let tables = self.open()?;
        let chosen = |job: &Job| job.parent_id == Some(parent_id) && !job.status.is_terminal();
        Ok(tables.select(limit, chosen, |job| job.id))
    }

    async fn jobs_before(&self, job: &Job, now: Timestamp) -> Result<u64, StoreError> {
        let tables = self.open()?;
        let place = |job: &Job| {
            let due = job.ready_at.max(now);
            (due, Reverse(job.priority), job.ready_at, job.id)
        };
        let runs_before = |other: &&Job| {
            other.status == Status::Pending
                && !other.broadcast
                && other.channel == job.channel
                && place(other) < place(job)
        };
        Ok(tables.jobs.values().filter(runs_before).count() as u64)
    }

    async fn tally(&self, now: Timestamp) -> Result<Tally, StoreError> {
        let tables = self.open()?;
        let mut tally = Tally::default();
        for job in tables.jobs.values().filter(|job| job.parent_id.is_none()) {
            match job.status {
                Status::Pending | Status::Running => {
                    let counts = tally.channels.entry(job.channel.clone()).or_default();
                    match job.status {
                        Status::Running => counts.running += 1,
                        _ if job.ready_at <= now => counts.ready += 1,
                        _ => counts.scheduled += 1,
                    }
                }
                Status::Completed => tally.completed += 1,
                Status::Failed => tally.failed += 1,
                Status::Canceled => tally.canceled += 1,
                Status::Expired => tally.expired += 1,
            }
            if job.status.is_terminal() && tally.oldest_ended.is_none() {
                tally.oldest_ended = Some(job.created);
            }
        }
        Ok(tally)
    }

    async fn delete(&self, id: JobId, version: u32) -> Result<bool, StoreError> {
        let mut tables = self.open()?;
        if tables.jobs.get(&id).is_none_or(|job| job.version != version) {
            return Ok(false);
        }
        tables.remove(id);
        Ok(true)
    }

    async fn forget(&self, outdated: Outdated, after: Option<JobId>, limit: u32) -> Result<Forgotten, StoreError> {
        let mut tables = self.open()?;
        let end = JobId::first_made_at(outdated.finished_before);
        let is_behind = |job: &&Job| after.is_none_or(|after| job.id > after) && job.id < end;
        let looked_at: Vec<JobId> =
            tables.jobs.values().filter(is_behind).take(limit as usize).map(|job| job.id).collect();
        let mut forgotten = Forgotten { jobs: 0, next: looked_at.last().copied() };
        for id in looked_at {
            if forgotten.jobs < outdated.jobs_max && tables.is_outdated(id, outdated.finished_before) {
                tables.remove(id);
                forgotten.jobs += 1;
            }
        }
        Ok(forgotten)
    }

    /// Nothing but this process reaches it.
    async fn arrivals(&self, _page: ArrivalPage) -> Result<Vec<Arrival>, StoreError> {
        self.open().map(|_| Vec::new())
    }

    fn bell(&self) -> Option<Arc<Bell>> {
        None
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.open().map(drop)
    }

    async fn close(&self) {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
    }
}
