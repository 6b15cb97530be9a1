//! The store: the truth. Losing it loses jobs.
//!
//! It has one write verb for jobs, [`Store::commit`], so batching, compare-and-set and fencing are each written once.
//! It decides nothing: what a job may become is settled in [`crate::model::lifecycle`] before a step gets here. No type
//! of a database driver appears in this interface.

mod arrival;
mod codes;
#[cfg(test)]
pub mod contract;
mod ends;
pub mod memory;
pub mod postgres;
pub mod sqlite;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;

pub use arrival::{Arrival, ArrivalPage, Bell};

pub use crate::model::job::Ready;
use crate::model::{
    Job, JobEvent, JobId, Parts, Status, Step, Timestamp,
    log::{JobLog, LogKind},
};

/// What became of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Stored, durably.
    Applied,
    /// The job is not at the version the step expected (or is gone); nothing of the step was stored.
    Stale,
    /// A new job whose owner used its idempotency key before: that job, which stays as it is. Where it has the same id, the
    /// very same step may have been stored by an earlier call whose answer was lost.
    Duplicate(JobId),
}

/// What a store may fail with. The driver's own error is the source, for logs only.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached or does not take the write; the same call may succeed later.
    #[error("the database is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A stored value that no version of the service writes; names table, column and row.
    #[error("corrupt data: {0}")]
    Corrupt(String),
}

/// A time at which something must happen to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Pending jobs whose expiry has passed.
    Expiry,
    /// Running jobs that are no broadcast and whose `max_exec_seconds` is over.
    Overrun,
    /// Pending broadcast jobs whose run time has come.
    Broadcast,
    /// Running broadcast jobs, whatever the time, longest ready first.
    Parent,
}

impl Due {
    const ALL: [Due; 4] = [Due::Expiry, Due::Overrun, Due::Broadcast, Due::Parent];

    /// When its time comes for a job, if ever.
    fn of(self, job: &Job) -> Option<Timestamp> {
        match (self, job.status) {
            (Due::Expiry, Status::Pending) => Some(job.expires_at),
            (Due::Overrun, Status::Running) if !job.broadcast => job.overrun_at(),
            (Due::Broadcast, Status::Pending) | (Due::Parent, Status::Running) if job.broadcast => Some(job.ready_at),
            _ => None,
        }
    }
}

/// The earliest time of each kind at which something must happen, past ones included but for `ready`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Agenda {
    /// The earliest `ready_at` after now among pending jobs that are no broadcast.
    pub ready: Option<Timestamp>,
    /// Of [`Due::Expiry`].
    pub expiry: Option<Timestamp>,
    /// Of [`Due::Overrun`].
    pub overrun: Option<Timestamp>,
    /// Of [`Due::Broadcast`].
    pub broadcast: Option<Timestamp>,
    /// Of [`Due::Parent`].
    pub parent: Option<Timestamp>,
}

impl Agenda {
    fn of<'j>(jobs: impl Iterator<Item = &'j Job>, now: Timestamp) -> Agenda {
        jobs.fold(Agenda::default(), |agenda, job| {
            let waits = job.status == Status::Pending && !job.broadcast && job.ready_at > now;
            agenda.and(Agenda {
                ready: waits.then_some(job.ready_at),
                expiry: Due::Expiry.of(job),
                overrun: Due::Overrun.of(job),
                broadcast: Due::Broadcast.of(job),
                parent: Due::Parent.of(job),
            })
        })
    }

    /// That of the jobs of both.
    fn and(self, other: Agenda) -> Agenda {
        let earlier = |one: Option<Timestamp>, other| [one, other].into_iter().flatten().min();
        Agenda {
            ready: earlier(self.ready, other.ready),
            expiry: earlier(self.expiry, other.expiry),
            overrun: earlier(self.overrun, other.overrun),
            broadcast: earlier(self.broadcast, other.broadcast),
            parent: earlier(self.parent, other.parent),
        }
    }
}

/// Which column orders a list; then the id does, in the same direction. An absent time is earlier than any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderBy {
    /// By id, which sorts by creation time.
    Created,
    Modified,
    StartedAt,
    FinishedAt,
    RunAt,
}

/// Filters are ANDed; an absent one filters nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct ListQuery {
    pub owner: Option<Arc<str>>,
    pub channel: Option<String>,
    /// Empty: all.
    pub statuses: Vec<Status>,
    pub func: Option<String>,
    pub runner_id: Option<String>,
    /// Inclusive.
    pub created_from: Option<Timestamp>,
    /// Exclusive.
    pub created_to: Option<Timestamp>,
    /// A prefix of the id (in either case) or of the function's name (as spelt); no character is special.
    pub search: Option<String>,
    pub broadcast: Option<bool>,
    /// The parts of one broadcast job; absent: only jobs that are no parts.
    pub parent_id: Option<JobId>,
    pub order: OrderBy,
    pub descending: bool,
    pub offset: u32,
    pub limit: u32,
    /// Only jobs whose id sorts before this one (for newest first by id); used for page tokens.
    pub before: Option<JobId>,
    /// Whether to count all matches, those from `before` on included.
    pub count: bool,
}

/// One page.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    pub jobs: Vec<Job>,
    /// All matches, where asked for.
    pub total: Option<Total>,
}

/// Matches are counted up to here. Beyond it there is a kept count, or an estimate.
pub const COUNTED_MAX: u64 = 10_000;

/// How many jobs match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Total {
    pub jobs: u64,
    /// There are so many or more.
    pub is_estimate: bool,
}

impl Total {
    pub fn exactly(jobs: u64) -> Total {
        Total { jobs, is_estimate: false }
    }

    /// Of those that are known and those that were counted, which ended somewhere behind [`COUNTED_MAX`].
    fn counted(known: u64, counted: u64) -> Total {
        Total { jobs: known + counted.min(COUNTED_MAX), is_estimate: counted > COUNTED_MAX }
    }
}

impl ListQuery {
    /// Whether it asks for nothing but statuses, and perhaps a channel: of these jobs stores keep counts.
    fn is_plain(&self) -> bool {
        // Without an end in `..`, so that whoever adds a filter comes by here.
        let ListQuery {
            owner,
            func,
            runner_id,
            created_from,
            created_to,
            search,
            broadcast,
            parent_id,
            channel: _,
            statuses: _,
            order: _,
            descending: _,
            offset: _,
            limit: _,
            before: _,
            count: _,
        } = self;
        let names_nobody = owner.is_none() && func.is_none() && runner_id.is_none() && search.is_none();
        let any_time = created_from.is_none() && created_to.is_none();
        names_nobody && any_time && broadcast.is_none() && parent_id.is_none()
    }

    /// Whether a job with this status may match.
    fn wants(&self, status: Status) -> bool {
        self.statuses.is_empty() || self.statuses.contains(&status)
    }

    /// How many of the jobs that have ended have a status that it wants.
    fn ended_of(&self, tally: &Tally) -> u64 {
        let ends = [
            (Status::Completed, tally.completed),
            (Status::Failed, tally.failed),
            (Status::Canceled, tally.canceled),
            (Status::Expired, tally.expired),
        ];
        ends.into_iter().filter(|(status, _)| self.wants(*status)).map(|(_, jobs)| jobs).sum()
    }

    /// For the unfinished ones of its matches; `None` where it wants none.
    fn unfinished(&self) -> Option<ListQuery> {
        let statuses: Vec<Status> =
            Status::ALL.into_iter().filter(|status| !status.is_terminal() && self.wants(*status)).collect();
        (!statuses.is_empty()).then(|| ListQuery { statuses, ..self.clone() })
    }
}

/// The first text behind all that start with `prefix`, by code points; none where that is all texts from there on.
fn behind_prefix(prefix: &str) -> Option<String> {
    let mut end: Vec<char> = prefix.chars().collect();
    while let Some(last) = end.pop() {
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return Some(end.into_iter().collect());
        }
    }
    None
}

/// How many jobs a channel has. Parts of broadcast jobs are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChannelTally {
    /// Pending, and its run time has come.
    pub ready: u64,
    pub scheduled: u64,
    pub running: u64,
}

/// How many jobs there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally {
    /// Channels with unfinished jobs.
    pub channels: BTreeMap<Arc<str>, ChannelTally>,
    pub completed: u64,
    pub failed: u64,
    pub canceled: u64,
    pub expired: u64,
    /// When the oldest job that has ended was created; parts of broadcast jobs are left out. A store that would have to look
    /// far for it, past many unfinished jobs that are older still, may leave it open.
    pub oldest_ended: Option<Timestamp>,
}

impl Tally {
    /// Jobs that have ended and are kept.
    pub fn ended(&self) -> u64 {
        self.completed + self.failed + self.canceled + self.expired
    }
}

/// Which of the jobs that have ended are to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outdated {
    pub finished_before: Timestamp,
    /// How much longer a store may keep a job that can then go with many others at once, at less cost.
    pub leisure: Duration,
    /// Of these no more than so many, oldest first.
    pub jobs_max: u64,
}

/// What one call of [`Store::forget`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forgotten {
    /// Jobs that are gone, their parts not counted.
    pub jobs: u64,
    /// Behind which job to go on; `None`: there is nothing more to look at.
    pub next: Option<JobId>,
}

/// Commits that are under way at once.
#[derive(Debug, Clone, Copy)]
pub struct Lanes {
    /// At least one.
    pub max: usize,
    /// Steps that must be waiting before a commit is begun beside another: fewer are stored sooner in one group than in two.
    pub steps_min: usize,
}

impl Lanes {
    pub const ONE: Lanes = Lanes { max: 1, steps_min: 1 };
}

/// Keeps jobs, their events and their logs.
///
/// Every method fails with [`StoreError`] only; an absent job is an absent value, not an error.
#[async_trait]
pub trait Store: Send + Sync {
    /// Stores steps in one transaction, durably before it returns, and answers for each in order.
    ///
    /// A stale or duplicate step leaves no trace and hinders no other step of the batch. Two steps of the same job in one
    /// batch apply in order. A step with `expected: None` inserts; with `Some(v)` it replaces version `v` exactly. An
    /// applied step's event is stored with it. A step that `arrives` is stale where its arrival is not there, or in the
    /// hands of another commit, and takes it away where it applies.
    async fn commit(&self, steps: &[Step]) -> Result<Vec<Outcome>, StoreError>;

    /// Like [`Store::commit`], but all or nothing: where one step is stale or a duplicate, none is stored, and the answers
    /// tell which (`Applied` then means "would have been").
    async fn commit_all(&self, steps: &[Step]) -> Result<Vec<Outcome>, StoreError>;

    /// Jobs by id, in the order asked; `None` for one that is not there.
    async fn load(&self, ids: &[JobId]) -> Result<Vec<Option<Job>>, StoreError>;

    /// One page of the jobs that match.
    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError>;

    /// The latest `limit` events of a job, oldest first.
    async fn events(&self, job_id: JobId, limit: u32) -> Result<Vec<JobEvent>, StoreError>;

    /// Appends log lines; ids are given in order. Lines of a job that is gone are dropped.
    async fn append_logs(&self, logs: &[JobLog]) -> Result<(), StoreError>;

    /// Log lines of a job with an id above `after`, oldest first; empty `kinds`: all.
    async fn logs(&self, job_id: JobId, kinds: &[LogKind], after: u64, limit: u32) -> Result<Vec<JobLog>, StoreError>;

    /// Pending jobs of a channel that are no broadcast and whose run time has come, in the order to run them: priority
    /// (higher first), then `ready_at`, then id. `after` continues behind such a job.
    async fn ready(
        &self,
        channel: &str,
        now: Timestamp,
        after: Option<&Ready>,
        limit: u32,
    ) -> Result<Vec<Ready>, StoreError>;

    /// Channels that have pending jobs, private ones included, in order of name.
    async fn pending_channels(&self) -> Result<Vec<Arc<str>>, StoreError>;

    /// When something comes due next.
    async fn agenda(&self, now: Timestamp) -> Result<Agenda, StoreError>;

    /// Pending jobs that are no broadcast with `ready_at` in `after..=until` (`after` exclusive), oldest first.
    async fn due_between(&self, after: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Ready>, StoreError>;

    /// Jobs for which the time of `due` has come, longest due first.
    async fn due(&self, due: Due, now: Timestamp, limit: u32) -> Result<Vec<Job>, StoreError>;

    /// Running jobs that are no broadcast, by id, from behind `after`.
    async fn running(&self, after: Option<JobId>, limit: u32) -> Result<Vec<Job>, StoreError>;

    /// How the parts of a broadcast job stand.
    async fn parts(&self, parent_id: JobId) -> Result<Parts, StoreError>;

    /// Unfinished parts of a broadcast job.
    async fn unfinished_parts(&self, parent_id: JobId, limit: u32) -> Result<Vec<Job>, StoreError>;

    /// How many pending jobs of the same channel that are no broadcast run before this one: by run time, where every time
    /// that has come counts as `now`, then priority (higher first), then age.
    async fn jobs_before(&self, job: &Job, now: Timestamp) -> Result<u64, StoreError>;

    /// How many jobs there are, all counted at one moment.
    async fn tally(&self, now: Timestamp) -> Result<Tally, StoreError>;

    /// Removes a job that is at `version`, with its events, logs and parts. False where it is not at that version.
    async fn delete(&self, id: JobId, version: u32) -> Result<bool, StoreError>;

    /// Looks at some `limit` jobs in order of id, from behind `after`, and removes those that are outdated, with their events,
    /// logs, parts and idempotency keys. What it looks at and keeps is passed by, so a call costs the same whatever is kept.
    ///
    /// Unfinished jobs stay, and so do parts whose parent does, and a parent that has an unfinished part. A job that changes at
    /// this moment may be passed by. Ids sort by creation, so the look ends at the first job that is made too late to be
    /// outdated. A store that removes many jobs as cheaply as one may remove more than `limit` at once.
    async fn forget(&self, outdated: Outdated, after: Option<JobId>, limit: u32) -> Result<Forgotten, StoreError>;

    /// Jobs that other programs published in transactions of their own, those that were made first in front. They stay until
    /// a step that [`Step::arrives`] takes them in. A store without a way in for other programs has none.
    async fn arrivals(&self, page: ArrivalPage) -> Result<Vec<Arrival>, StoreError>;

    /// Tells when there are arrivals; `None` for a store that never has one.
    fn bell(&self) -> Option<Arc<Bell>>;

    /// How many commits it takes at once with profit.
    fn lanes(&self) -> Lanes {
        Lanes::ONE
    }

    /// Cheap proof that the database reads and writes.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Flushes and closes; later calls fail as unavailable.
    async fn close(&self);
}
