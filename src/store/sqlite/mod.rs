//! The store in one SQLite file.
//!
//! One connection writes, each batch in one transaction that is on the disk before its answer; four others read. Write-ahead
//! logging keeps readers and the writer out of each other's way. Nothing outside this folder sees a type of the driver.

mod list;
mod probe;
mod read;
mod row;
mod write;

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{
    SqlSafeStr, SqlitePool,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

pub use probe::insert_rate;

use super::{Agenda, Due, ListQuery, Outcome, Page, Ready, Store, StoreError, Tally};
use crate::model::{
    Job, JobEvent, JobId, Parts, Step, Timestamp,
    log::{JobLog, LogKind},
};

/// How long a statement waits for a lock that another process holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that read.
const READERS: u32 = 4;
/// Prepared statements kept for each connection: some 12 kinds in at most 9 sizes each.
const STATEMENTS_MAX: usize = 200;
/// Page cache of each connection, in KiB; SQLite takes a negative number for KiB.
const CACHE_KIB: &str = "-8000";
/// Rows the driver's thread may run ahead: a whole answer of a batch, so that the writer does not wait for its reader.
const ROWS_AHEAD: usize = 1_024;

/// Keeps everything in one file.
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
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
    /// Opens a database file, makes it where there is none, and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<SqliteStore, OpenError> {
        create_private(path).await.map_err(|error| OpenError::Unavailable(error.into()))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(false)
            .statement_cache_capacity(STATEMENTS_MAX)
            .row_buffer_size(ROWS_AHEAD)
            .pragma("cache_size", CACHE_KIB);
        let writing = options
            .clone()
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", "1000");
        let writer = pool(1).connect_with(writing).await.map_err(open_error)?;
        migrate(&writer).await?;
        let readers = pool(READERS).connect_with(options.read_only(true)).await.map_err(open_error)?;
        Ok(SqliteStore { writer, readers })
    }
}

/// A pool whose connections stay open: each has its prepared statements and its cache.
fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .min_connections(connections)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
}

/// Makes the file readable for its owner only, before anything is in it; SQLite gives its side files the same mode.
async fn create_private(path: &Path) -> std::io::Result<()> {
    let mut options = tokio::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    options.mode(0o600);
    options.open(path).await.map(drop)
}

async fn migrate(writer: &SqlitePool) -> Result<(), OpenError> {
    let migrator = Migrator::with_migrations(migrations());
    let known = migrator.iter().map(|migration| migration.version).max().unwrap_or(0);
    match migrator.run(writer).await {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(found)) => Err(OpenError::SchemaTooNew { found, known }),
        Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => Err(open_error(error)),
        Err(error) => Err(OpenError::Corrupt(error.into())),
    }
}

fn migrations() -> Vec<Migration> {
    let sql = include_str!("migrations/0001_initial.sql").into_sql_str();
    vec![Migration::new(1, "initial".into(), MigrationType::Simple, sql, false)]
}

fn open_error(error: sqlx::Error) -> OpenError {
    /// SQLITE_CORRUPT and SQLITE_NOTADB.
    const DAMAGED: [&str; 2] = ["11", "26"];
    let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default();
    if DAMAGED.contains(&&*code) { OpenError::Corrupt(error.into()) } else { OpenError::Unavailable(error.into()) }
}

/// Whatever the driver says, but for values it cannot decode, means that the database cannot serve at the moment.
fn unavailable(error: sqlx::Error) -> StoreError {
    StoreError::Unavailable(error.into())
}

#[async_trait]
impl Store for SqliteStore {
    async fn commit(&self, steps: &[Step]) -> Result<Vec<Outcome>, StoreError> {
        write::commit(&self.writer, steps, write::Mode::Each).await
    }

    async fn commit_all(&self, steps: &[Step]) -> Result<Vec<Outcome>, StoreError> {
        write::commit(&self.writer, steps, write::Mode::AllOrNothing).await
    }

    async fn load(&self, ids: &[JobId]) -> Result<Vec<Option<Job>>, StoreError> {
        read::load(&self.readers, ids).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        list::list(&self.readers, query).await
    }

    async fn events(&self, job_id: JobId, limit: u32) -> Result<Vec<JobEvent>, StoreError> {
        read::events(&self.readers, job_id, limit).await
    }

    async fn append_logs(&self, logs: &[JobLog]) -> Result<(), StoreError> {
        write::append_logs(&self.writer, logs).await
    }

    async fn logs(&self, job_id: JobId, kinds: &[LogKind], after: u64, limit: u32) -> Result<Vec<JobLog>, StoreError> {
        list::logs(&self.readers, job_id, kinds, after, limit).await
    }

    async fn ready(
        &self,
        channel: &str,
        now: Timestamp,
        after: Option<&Ready>,
        limit: u32,
    ) -> Result<Vec<Ready>, StoreError> {
        read::ready(&self.readers, channel, now, after, limit).await
    }

    async fn pending_channels(&self) -> Result<Vec<Arc<str>>, StoreError> {
        read::pending_channels(&self.readers).await
    }

    async fn agenda(&self, now: Timestamp) -> Result<Agenda, StoreError> {
        read::agenda(&self.readers, now).await
    }

    async fn due_between(&self, after: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Ready>, StoreError> {
        read::due_between(&self.readers, after, until, limit).await
    }

    async fn due(&self, due: Due, now: Timestamp, limit: u32) -> Result<Vec<Job>, StoreError> {
        read::due(&self.readers, due, now, limit).await
    }

    async fn running(&self, after: Option<JobId>, limit: u32) -> Result<Vec<Job>, StoreError> {
        read::running(&self.readers, after, limit).await
    }

    async fn parts(&self, parent_id: JobId) -> Result<Parts, StoreError> {
        read::parts(&self.readers, parent_id).await
    }

    async fn unfinished_parts(&self, parent_id: JobId, limit: u32) -> Result<Vec<Job>, StoreError> {
        read::unfinished_parts(&self.readers, parent_id, limit).await
    }

    async fn jobs_before(&self, job: &Job, now: Timestamp) -> Result<u64, StoreError> {
        read::jobs_before(&self.readers, job, now).await
    }

    async fn tally(&self, now: Timestamp) -> Result<Tally, StoreError> {
        read::tally(&self.readers, now).await
    }

    async fn delete(&self, id: JobId, version: u32) -> Result<bool, StoreError> {
        write::delete(&self.writer, id, version).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        read::ping(&self.readers).await?;
        write::ping(&self.writer).await
    }

    async fn close(&self) {
        // The last connection to close empties the write-ahead log into the database, and only a writing one can.
        self.readers.close().await;
        self.writer.close().await;
    }
}
