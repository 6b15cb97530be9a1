//! A store and a queue that misbehave by the dice while the world is faulty, and a record of what was really stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use errand::{
    clock::Dice,
    model::{
        EventKind, Job, JobEvent, JobId, Lease, Parts, Step, Timestamp,
        job::Ready,
        log::{JobLog, LogKind},
    },
    queue::{Lapsed, Look, Offer, Queue, Unreachable, Waiter, memory::MemoryQueue},
    store::{
        Agenda, Arrival, ArrivalPage, Bell, Due, Forgotten, Lanes, ListQuery, Outcome, Outdated, Page, Store,
        StoreError, Tally, memory::MemoryStore,
    },
};
use tokio::sync::Notify;

use super::world::Chance;

type Result<T> = std::result::Result<T, StoreError>;

/// What was stored.
#[derive(Default)]
pub struct Book {
    /// Who claimed each attempt.
    pub claims: BTreeMap<Lease, Vec<String>>,
    /// The ends of each job.
    pub ends: BTreeMap<JobId, u32>,
    /// When each job ended.
    pub ended_at: BTreeMap<JobId, Timestamp>,
    /// Leases in a commit that was stored and answered as unavailable.
    pub ambiguous: BTreeSet<Lease>,
}

impl Book {
    fn note(&mut self, steps: &[Step], outcomes: &[Outcome], ambiguous: bool) {
        for (step, _) in steps.iter().zip(outcomes).filter(|(_, outcome)| **outcome == Outcome::Applied) {
            let job = &step.job;
            if ambiguous {
                self.ambiguous.insert(job.lease());
            }
            match step.event.as_ref().map(|event| event.kind) {
                Some(EventKind::Running) => {
                    let runner = job.runner_id.as_deref().unwrap_or_default().to_owned();
                    self.claims.entry(job.lease()).or_default().push(runner);
                }
                Some(EventKind::Retry) => {}
                Some(_) if job.status.is_terminal() => {
                    *self.ends.entry(job.id).or_default() += 1;
                    self.ended_at.extend(job.finished_at.map(|at| (job.id, at)));
                }
                _ => {}
            }
        }
    }
}

pub struct FaultyStore {
    pub inner: MemoryStore,
    pub book: Mutex<Book>,
    pub chance: Chance,
    /// Commits that are under way at once.
    pub lanes: Lanes,
}

impl FaultyStore {
    async fn write(&self, steps: &[Step], all: bool) -> Result<Vec<Outcome>> {
        let unavailable = || StoreError::Unavailable("by the dice".into());
        let faulty = self.chance.faulty.load(Ordering::Relaxed);
        if faulty {
            tokio::time::sleep(Duration::from_millis(self.chance.dice.roll() % 300)).await;
        }
        let fate = if faulty { self.chance.dice.roll() % 16 } else { 16 };
        if fate == 0 {
            return Err(unavailable());
        }
        let outcomes = if all { self.inner.commit_all(steps).await? } else { self.inner.commit(steps).await? };
        if !all || outcomes.iter().all(|outcome| *outcome == Outcome::Applied) {
            self.book.lock().unwrap_or_else(PoisonError::into_inner).note(steps, &outcomes, fate == 1);
        }
        if fate == 1 { Err(unavailable()) } else { Ok(outcomes) }
    }
}

#[async_trait]
impl Store for FaultyStore {
    async fn commit(&self, steps: &[Step]) -> Result<Vec<Outcome>> {
        self.write(steps, false).await
    }
    async fn commit_all(&self, steps: &[Step]) -> Result<Vec<Outcome>> {
        self.write(steps, true).await
    }
    async fn load(&self, ids: &[JobId]) -> Result<Vec<Option<Job>>> {
        self.inner.load(ids).await
    }
    async fn list(&self, query: &ListQuery) -> Result<Page> {
        self.inner.list(query).await
    }
    async fn events(&self, job_id: JobId, limit: u32) -> Result<Vec<JobEvent>> {
        self.inner.events(job_id, limit).await
    }
    async fn append_logs(&self, logs: &[JobLog]) -> Result<()> {
        self.inner.append_logs(logs).await
    }
    async fn logs(&self, job_id: JobId, kinds: &[LogKind], after: u64, limit: u32) -> Result<Vec<JobLog>> {
        self.inner.logs(job_id, kinds, after, limit).await
    }
    async fn ready(&self, channel: &str, now: Timestamp, after: Option<&Ready>, limit: u32) -> Result<Vec<Ready>> {
        self.inner.ready(channel, now, after, limit).await
    }
    async fn pending_channels(&self) -> Result<Vec<Arc<str>>> {
        self.inner.pending_channels().await
    }
    async fn agenda(&self, now: Timestamp) -> Result<Agenda> {
        self.inner.agenda(now).await
    }
    async fn due_between(&self, after: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Ready>> {
        self.inner.due_between(after, until, limit).await
    }
    async fn due(&self, due: Due, now: Timestamp, limit: u32) -> Result<Vec<Job>> {
        self.inner.due(due, now, limit).await
    }
    async fn running(&self, after: Option<JobId>, limit: u32) -> Result<Vec<Job>> {
        self.inner.running(after, limit).await
    }
    async fn parts(&self, parent_id: JobId) -> Result<Parts> {
        self.inner.parts(parent_id).await
    }
    async fn unfinished_parts(&self, parent_id: JobId, limit: u32) -> Result<Vec<Job>> {
        self.inner.unfinished_parts(parent_id, limit).await
    }
    async fn jobs_before(&self, job: &Job, now: Timestamp) -> Result<u64> {
        self.inner.jobs_before(job, now).await
    }
    async fn tally(&self, now: Timestamp) -> Result<Tally> {
        self.inner.tally(now).await
    }
    async fn delete(&self, id: JobId, version: u32) -> Result<bool> {
        self.inner.delete(id, version).await
    }
    async fn forget(&self, outdated: Outdated, after: Option<JobId>, limit: u32) -> Result<Forgotten> {
        if self.chance.strikes(8) {
            return Err(StoreError::Unavailable("by the dice".into()));
        }
        self.inner.forget(outdated, after, limit).await
    }
    async fn arrivals(&self, page: ArrivalPage) -> Result<Vec<Arrival>> {
        self.inner.arrivals(page).await
    }
    fn lanes(&self) -> Lanes {
        self.lanes
    }
    fn bell(&self) -> Option<Arc<Bell>> {
        self.inner.bell()
    }
    async fn ping(&self) -> Result<()> {
        self.inner.ping().await
    }
    async fn close(&self) {
        self.inner.close().await;
    }
}

pub struct FaultyQueue {
    pub inner: MemoryQueue,
    pub chance: Chance,
}

#[async_trait]
impl Queue for FaultyQueue {
    async fn offer(&self, offers: Vec<Offer>) {
        let fate = if self.chance.faulty.load(Ordering::Relaxed) { self.chance.dice.roll() % 8 } else { 8 };
        match fate {
            0 => {}
            1 => {
                self.inner.offer(offers.clone()).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.inner.offer(offers).await;
            }
            _ => self.inner.offer(offers).await,
        }
    }
    async fn take(&self, channels: &[Arc<str>], max: usize, waiter: &Waiter) -> Vec<Offer> {
        self.inner.take(channels, max, waiter).await
    }
    fn line_length(&self, channel: &Arc<str>) -> Option<usize> {
        self.inner.line_length(channel)
    }
    async fn leave(&self, channels: &[Arc<str>], waiter: &Waiter) {
        self.inner.leave(channels, waiter).await;
    }
    async fn forget(&self, jobs: &[Ready]) {
        self.inner.forget(jobs).await;
    }
    async fn suspect(&self, channels: &[Arc<str>]) {
        self.inner.suspect(channels).await;
    }
    fn hunger(&self) -> Arc<Notify> {
        self.inner.hunger()
    }
    fn has_forgotten(&self) -> bool {
        self.inner.has_forgotten()
    }
    async fn hungry(&self) -> Vec<Look> {
        self.inner.hungry().await
    }
    async fn refill(&self, channel: &Arc<str>, offers: Vec<Offer>, complete: bool) {
        self.inner.refill(channel, offers, complete).await;
    }
    async fn hold(
        &self,
        leases: &[Lease],
        holder: &Arc<str>,
        ttl: Duration,
    ) -> std::result::Result<Vec<Lease>, Unreachable> {
        if self.chance.strikes(32) {
            return Err(Unreachable);
        }
        self.inner.hold(leases, holder, ttl).await
    }
    async fn renew(&self, leases: &[Lease], holder: &Arc<str>, ttl: Duration) -> Vec<Lease> {
        if self.chance.strikes(32) {
            return Vec::new();
        }
        self.inner.renew(leases, holder, ttl).await
    }
    async fn shorten(&self, holder: &Arc<str>, window: Duration) {
        self.inner.shorten(holder, window).await;
    }
    async fn release(&self, leases: &[Lease]) {
        self.inner.release(leases).await;
    }
    async fn holders(&self, leases: &[Lease]) -> std::result::Result<Vec<Option<Arc<str>>>, Unreachable> {
        if self.chance.strikes(32) {
            return Err(Unreachable);
        }
        self.inner.holders(leases).await
    }
    async fn held_by(&self, holder: &Arc<str>) -> Vec<Lease> {
        self.inner.held_by(holder).await
    }
    async fn lapsed(&self, limit: usize) -> Vec<Lapsed> {
        self.inner.lapsed(limit).await
    }
    fn is_well(&self) -> bool {
        self.inner.is_well()
    }
}
