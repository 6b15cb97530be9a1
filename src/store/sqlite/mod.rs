//! The store in one SQLite file.
//!
//! One connection writes, on a thread of its own; a few others read. Write-ahead logging keeps readers and the writer out
//! of each other's way. What is stored lies in two places: in the tables, and ahead of them in a journal (see [`journal`])
//! that is also kept in memory (see [`overlay`]). A read by id looks into both; any other read waits until the tables
//! have caught up. Nothing outside this folder sees a type of the driver.

mod buckets;
mod checkpoints;
mod codec;
mod filter;
mod journal;
mod list;
mod overlay;
mod probe;
mod read;
mod readers;
mod row;
mod schema;
mod tables;
mod writer;

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use rusqlite::{Connection, ErrorCode, OpenFlags};

pub use probe::insert_rate;

use super::{
    Agenda, Arrival, ArrivalPage, Bell, Due, Forgotten, ListQuery, Outcome, Outdated, Page, Ready, Store, StoreError,
    Tally,
};
use crate::model::{
    Job, JobEvent, JobId, Parts, Step, Timestamp,
    log::{JobLog, LogKind},
};
use readers::Readers;
use writer::{Mode, Writer};

/// How long a statement waits for a lock that another process holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Prepared statements kept for each connection.
const STATEMENTS_MAX: usize = 64;

/// Keeps everything in one file.
pub struct SqliteStore {
    writer: Writer,
    readers: Readers,
}

/// Why a database file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be read, written or made.
    #[error("the database cannot be opened")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A newer version of this service wrote it.
    #[error(
        "the database has schema version {found}, but this version of errand knows only up to {known}: \
         start a newer errand, or restore a backup from before the update"
    )]
    SchemaTooNew { found: i64, known: i64 },
    /// It is no database of this service, or is damaged.
    #[error("the database file is damaged or belongs to another program")]
    Corrupt(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl SqliteStore {
    /// Opens a database file, makes it where there is none, brings its schema up to date, and takes in what a process that
    /// died has left in the journal.
    pub async fn open(path: &Path) -> Result<SqliteStore, OpenError> {
        create_private(path).await.map_err(|error| OpenError::Unavailable(error.into()))?;
        let path = path.to_owned();
        let opening = tokio::task::spawn_blocking(move || {
            let mut connection = connect(&path, false).map_err(open_error)?;
            schema::migrate(&mut connection)?;
            let writer = Writer::start(connection, &path).map_err(|error| match error {
                StoreError::Corrupt(what) => OpenError::Corrupt(what.into()),
                StoreError::Unavailable(source) => OpenError::Unavailable(source),
            })?;
            Ok(SqliteStore { writer, readers: Readers::open(&path)? })
        });
        opening.await.map_err(|error| OpenError::Unavailable(error.into()))?
    }

    /// Reads tables that have everything.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.writer.catch_up().await?;
        self.readers.read(read).await
    }
}

/// A connection with what all of them have in common. No other thread uses it at the same time, so it needs no mutex.
fn connect(path: &Path, reads_only: bool) -> Result<Connection, rusqlite::Error> {
    let access = if reads_only { OpenFlags::SQLITE_OPEN_READ_ONLY } else { OpenFlags::SQLITE_OPEN_READ_WRITE };
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // SQLite takes a negative size for KiB.
    connection.execute_batch("PRAGMA cache_size = -8000; PRAGMA foreign_keys = OFF")?;
    if !reads_only {
        connection
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 1000")?;
    }
    Ok(connection)
}

/// Makes the file readable for its owner only, before anything is in it; SQLite gives its side files the same mode.
async fn create_private(path: &Path) -> std::io::Result<()> {
    let mut options = tokio::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    options.mode(0o600);
    options.open(path).await.map(drop)
}

fn open_error(error: rusqlite::Error) -> OpenError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => OpenError::Corrupt(error.into()),
        _ => OpenError::Unavailable(error.into()),
    }
}

/// Whatever the driver says, but for values it cannot decode, means that the database cannot serve at the moment.
fn unavailable(error: rusqlite::Error) -> StoreError {
    StoreError::Unavailable(error.into())
}

#[async_trait]
impl Store for SqliteStore {
    async fn commit(&self, steps: &[Step]) -> Result<Vec<Outcome>, StoreError> {
        self.writer.commit(steps, Mode::Each).await
    }

    async fn commit_all(&self, steps: &[Step]) -> Result<Vec<Outcome>, StoreError> {
        self.writer.commit(steps, Mode::AllOrNothing).await
    }

    async fn load(&self, ids: &[JobId]) -> Result<Vec<Option<Job>>, StoreError> {
        // Looked up before the tables are read: what leaves the overlay meanwhile is in the tables by then.
        let mut jobs: Vec<Option<Job>> = self
            .writer
            .looking(|overlay| ids.iter().map(|id| overlay.get(*id).map(|change| (*change.job).clone())).collect());
        let absent: Vec<usize> = (0..ids.len()).filter(|index| jobs[*index].is_none()).collect();
        if !absent.is_empty() || ids.is_empty() {
            let wanted: Vec<JobId> = absent.iter().map(|index| ids[*index]).collect();
            let found = self.readers.read(move |connection| read::jobs(connection, &wanted)).await?;
            for (index, job) in absent.into_iter().zip(found) {
                jobs[index] = job;
            }
        }
        Ok(jobs)
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        let query = query.clone();
        self.read(move |connection| list::list(connection, &query)).await
    }

    async fn events(&self, job_id: JobId, limit: u32) -> Result<Vec<JobEvent>, StoreError> {
        let ahead = self.writer.looking(|overlay| overlay.get(job_id).map(|change| change.events.clone()));
        let ahead = ahead.unwrap_or_default();
        let mut events = self.readers.read(move |connection| read::events(connection, job_id, limit)).await?;
        // What was ahead may be in the tables by now, and later events with it.
        if let Some(first) = ahead.first() {
            events.retain(|event| event.seq < first.seq);
        }
        events.extend(ahead);
        let surplus = events.len().saturating_sub(limit as usize);
        Ok(events.split_off(surplus))
    }

    async fn append_logs(&self, logs: &[JobLog]) -> Result<(), StoreError> {
        self.writer.append_logs(logs).await
    }

    async fn logs(&self, job_id: JobId, kinds: &[LogKind], after: u64, limit: u32) -> Result<Vec<JobLog>, StoreError> {
        let kinds = kinds.to_vec();
        self.readers.read(move |connection| read::logs(connection, job_id, &kinds, after, limit)).await
    }

    async fn ready(
        &self,
        channel: &str,
        now: Timestamp,
        after: Option<&Ready>,
        limit: u32,
    ) -> Result<Vec<Ready>, StoreError> {
        let (channel, after) = (channel.to_owned(), after.cloned());
        self.read(move |connection| read::ready(connection, &channel, now, after.as_ref(), limit)).await
    }

    async fn pending_channels(&self) -> Result<Vec<Arc<str>>, StoreError> {
        self.read(read::pending_channels).await
    }

    async fn agenda(&self, now: Timestamp) -> Result<Agenda, StoreError> {
        // Asked each second: the tables catch up only where what they would say is outdated.
        let read = move |connection: &Connection| read::agenda(connection, now);
        let (ahead, changed) = self.writer.looking(|overlay| (overlay.agenda(now), overlay.jobs()));
        let (agenda, jobs) = self.readers.read(read).await?;
        if jobs.iter().any(|id| changed.contains(id)) {
            return Ok(self.read(read).await?.0);
        }
        Ok(agenda.and(ahead))
    }

    async fn due_between(&self, after: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Ready>, StoreError> {
        self.read(move |connection| read::due_between(connection, after, until, limit)).await
    }

    async fn due(&self, due: Due, now: Timestamp, limit: u32) -> Result<Vec<Job>, StoreError> {
        // Asked often, and mostly in vain: the tables catch up only where what is ahead of them may make a difference.
        let read = move |connection: &Connection| read::due(connection, due, now, limit);
        if !self.writer.looking(|overlay| overlay.concerns(due, now)) {
            let jobs = self.readers.read(read).await?;
            if self.writer.looking(|overlay| jobs.iter().all(|job| overlay.get(job.id).is_none())) {
                return Ok(jobs);
            }
        }
        self.read(read).await
    }

    async fn running(&self, after: Option<JobId>, limit: u32) -> Result<Vec<Job>, StoreError> {
        self.read(move |connection| read::running(connection, after, limit)).await
    }

    async fn parts(&self, parent_id: JobId) -> Result<Parts, StoreError> {
        self.read(move |connection| read::parts(connection, parent_id)).await
    }

    async fn unfinished_parts(&self, parent_id: JobId, limit: u32) -> Result<Vec<Job>, StoreError> {
        self.read(move |connection| read::unfinished_parts(connection, parent_id, limit)).await
    }

    async fn jobs_before(&self, job: &Job, now: Timestamp) -> Result<u64, StoreError> {
        let job = job.clone();
        self.read(move |connection| read::jobs_before(connection, &job, now)).await
    }

    async fn tally(&self, now: Timestamp) -> Result<Tally, StoreError> {
        self.read(move |connection| read::tally(connection, now)).await
    }

    async fn delete(&self, id: JobId, version: u32) -> Result<bool, StoreError> {
        self.writer.delete(id, version).await
    }

    async fn forget(&self, outdated: Outdated, after: Option<JobId>, limit: u32) -> Result<Forgotten, StoreError> {
        let before = outdated.finished_before;
        // Who keeps jobs for days has none here, and the tables need not catch up for it.
        if self.writer.looking(|overlay| overlay.has_ended_before(before)) {
            self.writer.catch_up().await?;
        }
        let range = (after, JobId::first_made_at(before));
        let aged = self.readers.read(move |connection| read::aged(connection, before, range, limit)).await?;
        let next = aged.last().map(|job| job.id);
        let ids: Vec<JobId> = aged.iter().filter(|job| job.is_outdated).map(|job| job.id).collect();
        Ok(Forgotten { jobs: self.writer.forget(&ids, outdated).await?, next })
    }

    /// No other process may open the file, so none can publish in it.
    async fn arrivals(&self, _page: ArrivalPage) -> Result<Vec<Arrival>, StoreError> {
        Ok(Vec::new())
    }

    fn bell(&self) -> Option<Arc<Bell>> {
        None
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.readers.read(read::ping).await?;
        self.writer.ping().await
    }

    async fn close(&self) {
        // The last connection to close empties the write-ahead log into the database, and only a writing one can.
        self.readers.close().await;
        self.writer.close().await;
    }
}
