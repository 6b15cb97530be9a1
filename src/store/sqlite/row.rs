//! Rows and values: the one place that knows how a job, an event or a log line looks in its table.

use std::{cell::Cell, sync::Arc};

use rusqlite::{Row, Statement, ToSql, types::FromSql};

use super::{codec::Decoder, unavailable};
use crate::{
    model::{Job, JobEvent, JobId, Status, Timestamp, log::JobLog},
    store::{
        Ready, StoreError,
        codes::{Coded, code, decoded, expiry_code, expiry_of, overrun_at},
    },
};

/// Columns of `jobs`, in the order in which [`bind_job`] binds and [`job`] reads them.
pub(super) const JOB_COLUMNS: &str = "id, version, status, broadcast, channel, priority, run_at, ready_at, expires_at, \
    due_at, attempt, releases, cancel_requested, modified, started_at, finished_at, runner_id, event_seq, created, owner, \
    func, expiry_kind, expiry_value, max_retries, backoff_base, backoff_max_seconds, max_exec_seconds, idempotency_key, \
    fingerprint, traceparent, parent_id, events, payload, metadata, result, last_error, stack_trace";
/// How many there are.
pub(super) const JOB_COLUMN_COUNT: usize = 37;

/// What an update sets, in the order of [`bind_state`]; the other columns of a job never change.
pub(super) const JOB_STATE: &str = "version = ?, status = ?, run_at = ?, ready_at = ?, expires_at = ?, due_at = ?, \
    attempt = ?, releases = ?, cancel_requested = ?, modified = ?, started_at = ?, finished_at = ?, runner_id = ?, \
    event_seq = ?, events = CAST(events || ? AS BLOB), metadata = ?, result = ?, last_error = ?, stack_trace = ?";

/// Binds the parameters of one statement, one after the other.
pub(super) struct Parameters<'s, 'c> {
    statement: &'s mut Statement<'c>,
    bound: usize,
}

impl<'s, 'c> Parameters<'s, 'c> {
    pub fn of(statement: &'s mut Statement<'c>) -> Parameters<'s, 'c> {
        Parameters { statement, bound: 0 }
    }

    pub fn bind(&mut self, value: impl ToSql) -> Result<&mut Self, StoreError> {
        self.bound += 1;
        self.statement.raw_bind_parameter(self.bound, value).map_err(unavailable)?;
        Ok(self)
    }

    fn bind_time(&mut self, at: Option<Timestamp>) -> Result<&mut Self, StoreError> {
        self.bind(at.map(|at| at.0))
    }
}

/// Binds all of a job, in the order of [`JOB_COLUMNS`].
pub(super) fn bind_job(row: &mut Parameters<'_, '_>, job: &Job, events: &[u8]) -> Result<(), StoreError> {
    let (expiry_kind, expiry_value) = expiry_code(job.expiry);
    row.bind(job.id.as_bytes())?.bind(job.version)?.bind(code(job.status))?.bind(job.broadcast)?;
    row.bind(&*job.channel)?.bind(job.priority)?;
    row.bind_time(job.run_at)?.bind(job.ready_at.0)?.bind(job.expires_at.0)?.bind(due_at(job))?;
    row.bind(job.attempt)?.bind(job.releases)?.bind(job.cancel_requested)?;
    row.bind(job.modified.0)?.bind_time(job.started_at)?.bind_time(job.finished_at)?;
    row.bind(job.runner_id.as_deref())?.bind(job.event_seq)?.bind(job.created.0)?;
    row.bind(&*job.owner)?.bind(&*job.func)?.bind(expiry_kind)?.bind(expiry_value)?;
    row.bind(job.max_retries)?.bind(job.backoff_base)?.bind(job.backoff_max_seconds)?.bind(job.max_exec_seconds)?;
    row.bind(job.idempotency_key.as_deref())?.bind(&job.fingerprint[..])?.bind(job.traceparent.as_str())?;
    row.bind(job.parent_id.as_ref().map(|id| &id.as_bytes()[..]))?.bind(events)?.bind(&*job.payload)?;
    for text in [&job.metadata, &job.result, &job.last_error, &job.stack_trace] {
        row.bind(text.as_str())?;
    }
    Ok(())
}

/// Binds what changes of a job, in the order of [`JOB_STATE`]; `events` are added to those that are there.
pub(super) fn bind_state(row: &mut Parameters<'_, '_>, job: &Job, events: &[u8]) -> Result<(), StoreError> {
    row.bind(job.version)?.bind(code(job.status))?;
    row.bind_time(job.run_at)?.bind(job.ready_at.0)?.bind(job.expires_at.0)?.bind(due_at(job))?;
    row.bind(job.attempt)?.bind(job.releases)?.bind(job.cancel_requested)?;
    row.bind(job.modified.0)?.bind_time(job.started_at)?.bind_time(job.finished_at)?;
    row.bind(job.runner_id.as_deref())?.bind(job.event_seq)?.bind(events)?;
    for text in [&job.metadata, &job.result, &job.last_error, &job.stack_trace] {
        row.bind(text.as_str())?;
    }
    Ok(())
}

/// When time alone will end what is going on; none for one that has ended.
fn due_at(job: &Job) -> Option<i64> {
    if job.status == Status::Pending { Some(job.expires_at.0) } else { overrun_at(job) }
}

/// A job, from the columns of [`JOB_COLUMNS`].
pub(super) fn job(row: &Row<'_>) -> Result<Job, StoreError> {
    let row = Fields::of("jobs", row);
    let id = row.id()?;
    let mut job = Job { version: row.take()?, status: row.coded()?, ..super::codec::unread(id) };
    job.broadcast = row.take()?;
    job.channel = row.take()?;
    job.priority = row.take()?;
    job.run_at = row.time_or_null()?;
    job.ready_at = row.time()?;
    job.expires_at = row.time()?;
    row.skip();
    job.attempt = row.take()?;
    job.releases = row.take()?;
    job.cancel_requested = row.take()?;
    job.modified = row.time()?;
    job.started_at = row.time_or_null()?;
    job.finished_at = row.time_or_null()?;
    job.runner_id = row.take()?;
    job.event_seq = row.take()?;
    job.created = row.time()?;
    job.owner = row.take()?;
    job.func = row.take()?;
    job.expiry = expiry_of(row.take()?, row.take()?).ok_or_else(|| row.corrupt())?;
    job.max_retries = row.take()?;
    job.backoff_base = row.take()?;
    job.backoff_max_seconds = row.take()?;
    job.max_exec_seconds = row.take()?;
    job.idempotency_key = row.take()?;
    job.fingerprint = row.take()?;
    job.traceparent = row.take()?;
    job.parent_id = row.id_or_null()?;
    row.skip();
    job.payload = row.take()?;
    job.metadata = row.take()?;
    job.result = row.take()?;
    job.last_error = row.take()?;
    job.stack_trace = row.take()?;
    Ok(job)
}

/// Columns that say enough of a pending job to line it up.
pub(super) const READY_COLUMNS: &str = "id, channel, priority, ready_at";

pub(super) fn ready(row: &Row<'_>) -> Result<Ready, StoreError> {
    let row = Fields::of("jobs", row);
    Ok(Ready { id: row.id()?, channel: row.take()?, priority: row.take()?, ready_at: row.time()? })
}

/// The events on a job's row, from its columns id, channel and events.
pub(super) fn packed_events(row: &Row<'_>) -> Result<(Arc<str>, Vec<JobEvent>), StoreError> {
    let row = Fields::of("jobs", row);
    let (id, channel): (JobId, Arc<str>) = (row.id()?, row.take()?);
    let bytes: Vec<u8> = row.take()?;
    let mut decoder = Decoder(&bytes);
    let mut events = Vec::new();
    while !decoder.is_at_end() {
        events.push(decoder.event(id, &channel).ok_or_else(|| row.corrupt())?);
    }
    Ok((channel, events))
}

/// Columns of `job_events`, in the order in which they are bound and read.
pub(super) const EVENT_COLUMNS: &str = "job_id, seq, kind, at, runner_id, attempt, details";

pub(super) fn bind_event(row: &mut Parameters<'_, '_>, event: &JobEvent) -> Result<(), StoreError> {
    row.bind(event.job_id.as_bytes())?.bind(event.seq)?.bind(code(event.kind))?.bind(event.at.0)?;
    row.bind(event.runner_id.as_deref())?.bind(event.attempt)?.bind(event.details.as_str())?;
    Ok(())
}

pub(super) fn event(row: &Row<'_>, channel: &Arc<str>) -> Result<JobEvent, StoreError> {
    let row = Fields::of("job_events", row);
    Ok(JobEvent {
        job_id: row.id()?,
        channel: channel.clone(),
        seq: row.take()?,
        kind: row.coded()?,
        at: row.time()?,
        runner_id: row.take()?,
        attempt: row.take()?,
        details: row.take()?,
    })
}

/// Columns of `job_logs` that a new line fills, in the order in which they are bound.
pub(super) const LOG_COLUMNS: &str = "job_id, channel, created, kind, message, meta";

pub(super) fn bind_log(row: &mut Parameters<'_, '_>, log: &JobLog) -> Result<(), StoreError> {
    row.bind(log.job_id.as_bytes())?.bind(&*log.channel)?.bind(log.created.0)?.bind(code(log.kind))?;
    row.bind(log.message.as_str())?.bind(log.meta.as_str())?;
    Ok(())
}

/// A log line, from its id and the columns of [`LOG_COLUMNS`].
pub(super) fn log(row: &Row<'_>) -> Result<JobLog, StoreError> {
    let row = Fields::of("job_logs", row);
    Ok(JobLog {
        id: u64::try_from(row.take::<i64>()?).map_err(|_| row.corrupt())?,
        job_id: row.id()?,
        channel: row.take()?,
        created: row.time()?,
        kind: row.coded()?,
        message: row.take()?,
        meta: row.take()?,
    })
}

/// A row that is read from its first column to its last, with what it takes to name a place where it is corrupt.
pub(super) struct Fields<'r> {
    table: &'static str,
    row: &'r Row<'r>,
    read: Cell<usize>,
}

impl<'r> Fields<'r> {
    pub(super) fn of(table: &'static str, row: &'r Row<'r>) -> Fields<'r> {
        Fields { table, row, read: Cell::new(0) }
    }

    /// The value of the next column.
    pub(super) fn take<T: FromSql>(&self) -> Result<T, StoreError> {
        let column = self.read.replace(self.read.get() + 1);
        self.row.get(column).map_err(|_| self.corrupt())
    }

    fn skip(&self) {
        self.read.set(self.read.get() + 1);
    }

    pub(super) fn id(&self) -> Result<JobId, StoreError> {
        self.take::<[u8; 16]>().map(|bytes| JobId(uuid::Uuid::from_bytes(bytes)))
    }

    fn id_or_null(&self) -> Result<Option<JobId>, StoreError> {
        Ok(self.take::<Option<[u8; 16]>>()?.map(|bytes| JobId(uuid::Uuid::from_bytes(bytes))))
    }

    pub(super) fn time(&self) -> Result<Timestamp, StoreError> {
        self.take().map(Timestamp)
    }

    pub(super) fn time_or_null(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.take::<Option<i64>>()?.map(Timestamp))
    }

    pub(super) fn count(&self) -> Result<u64, StoreError> {
        u64::try_from(self.take::<i64>()?).map_err(|_| self.corrupt())
    }

    pub(super) fn coded<T: Coded>(&self) -> Result<T, StoreError> {
        decoded(self.take()?).ok_or_else(|| self.corrupt())
    }

    /// Names the column that was read last, and the row by its first column where that is an id.
    pub(super) fn corrupt(&self) -> StoreError {
        let column = self.read.get().saturating_sub(1);
        let column = self.row.as_ref().column_name(column).unwrap_or("unknown");
        let key = self.row.get::<_, [u8; 16]>(0).map(|bytes| JobId(uuid::Uuid::from_bytes(bytes)).to_string());
        let key = key.unwrap_or_else(|_| "unknown".to_owned());
        StoreError::Corrupt(format!("table {}, column {column}, row {key}", self.table))
    }
}
