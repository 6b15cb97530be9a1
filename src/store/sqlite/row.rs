//! Rows and values: the one place that knows how a job, an event or a log line looks in its table.

use std::sync::Arc;

use sqlx::{Decode, Row, Sqlite, Type, query_builder::Separated, sqlite::SqliteRow};

use crate::{
    model::{Job, JobEvent, JobId, Timestamp, log::JobLog},
    store::{
        Ready, StoreError,
        codes::{Coded, code, decoded, expiry_code, expiry_of, overrun_at},
    },
};

/// Binds a row's values, in the order of [`JOB_COLUMNS`].
pub(super) fn push_job(row: &mut Separated<'_, Sqlite, &'static str>, job: &Job) {
    let (expiry_kind, expiry_value) = expiry_code(job.expiry);
    row.push_bind(job.id.as_bytes().as_slice())
        .push_bind(i64::from(job.version))
        .push_bind(job.channel.clone())
        .push_bind(job.func.clone())
        .push_bind(job.payload.clone())
        .push_bind(code(job.status))
        .push_bind(job.run_at.map(|at| at.0))
        .push_bind(job.ready_at.0)
        .push_bind(job.expires_at.0)
        .push_bind(expiry_kind)
        .push_bind(expiry_value)
        .push_bind(i64::from(job.attempt))
        .push_bind(i64::from(job.releases))
        .push_bind(i64::from(job.max_retries))
        .push_bind(job.backoff_base)
        .push_bind(i64::from(job.backoff_max_seconds))
        .push_bind(job.broadcast)
        .push_bind(job.cancel_requested)
        .push_bind(job.max_exec_seconds.map(i64::from))
        .push_bind(overrun_at(job))
        .push_bind(job.runner_id.clone())
        .push_bind(job.last_error.as_str())
        .push_bind(job.stack_trace.as_str())
        .push_bind(job.metadata.as_str())
        .push_bind(job.result.as_str())
        .push_bind(job.idempotency_key.clone())
        .push_bind(job.fingerprint.as_slice())
        .push_bind(job.owner.clone())
        .push_bind(job.priority)
        .push_bind(job.created.0)
        .push_bind(job.modified.0)
        .push_bind(job.started_at.map(|at| at.0))
        .push_bind(job.finished_at.map(|at| at.0))
        .push_bind(job.traceparent.as_str())
        .push_bind(job.parent_id.map(|id| id.as_bytes().to_vec()))
        .push_bind(i64::from(job.event_seq));
}

/// Columns of `jobs`, in the order of [`push_job`].
pub(super) const JOB_COLUMNS: &str = "id, version, channel, func, payload, status, run_at, ready_at, expires_at, \
    expiry_kind, expiry_value, attempt, releases, max_retries, backoff_base, backoff_max_seconds, broadcast, \
    cancel_requested, max_exec_seconds, overrun_at, runner_id, last_error, stack_trace, metadata, result, \
    idempotency_key, fingerprint, owner, priority, created, modified, started_at, finished_at, traceparent, parent_id, \
    event_seq";

/// Binds what an update writes: the id, the expected version, then the values in the order of [`JOB_CHANGES`].
pub(super) fn push_change(row: &mut Separated<'_, Sqlite, &'static str>, expected: u32, job: &Job) {
    row.push_bind(job.id.as_bytes().as_slice())
        .push_bind(i64::from(expected))
        .push_bind(i64::from(job.version))
        .push_bind(code(job.status))
        .push_bind(job.run_at.map(|at| at.0))
        .push_bind(job.ready_at.0)
        .push_bind(job.expires_at.0)
        .push_bind(i64::from(job.attempt))
        .push_bind(i64::from(job.releases))
        .push_bind(job.cancel_requested)
        .push_bind(overrun_at(job))
        .push_bind(job.runner_id.clone())
        .push_bind(job.last_error.as_str())
        .push_bind(job.stack_trace.as_str())
        .push_bind(job.metadata.as_str())
        .push_bind(job.result.as_str())
        .push_bind(job.modified.0)
        .push_bind(job.started_at.map(|at| at.0))
        .push_bind(job.finished_at.map(|at| at.0))
        .push_bind(i64::from(job.event_seq));
}

/// What an update sets, from the columns that SQLite names a `VALUES` table's by; the others of a job never change.
pub(super) const JOB_CHANGES: &str = "version = v.column3, status = v.column4, run_at = v.column5, \
    ready_at = v.column6, expires_at = v.column7, attempt = v.column8, releases = v.column9, \
    cancel_requested = v.column10, overrun_at = v.column11, runner_id = v.column12, last_error = v.column13, \
    stack_trace = v.column14, metadata = v.column15, result = v.column16, modified = v.column17, \
    started_at = v.column18, finished_at = v.column19, event_seq = v.column20";

pub(super) fn job(row: &SqliteRow) -> Result<Job, StoreError> {
    let row = Fields::new("jobs", "id", row);
    let expiry =
        expiry_of(row.get("expiry_kind")?, row.get("expiry_value")?).ok_or_else(|| row.corrupt("expiry_kind"))?;
    let fingerprint = row.get::<&[u8]>("fingerprint")?.try_into().map_err(|_| row.corrupt("fingerprint"))?;
    Ok(Job {
        id: row.id("id")?,
        version: row.number("version")?,
        channel: row.text("channel")?,
        func: row.text("func")?,
        payload: row.text("payload")?,
        status: row.coded("status")?,
        run_at: row.time_or_null("run_at")?,
        ready_at: row.time("ready_at")?,
        expires_at: row.time("expires_at")?,
        expiry,
        attempt: row.number("attempt")?,
        releases: row.number("releases")?,
        max_retries: row.number("max_retries")?,
        backoff_base: row.get("backoff_base")?,
        backoff_max_seconds: row.number("backoff_max_seconds")?,
        broadcast: row.get::<i64>("broadcast")? != 0,
        cancel_requested: row.get::<i64>("cancel_requested")? != 0,
        max_exec_seconds: row.number_or_null("max_exec_seconds")?,
        runner_id: row.text_or_null("runner_id")?,
        last_error: row.get("last_error")?,
        stack_trace: row.get("stack_trace")?,
        metadata: row.get("metadata")?,
        result: row.get("result")?,
        idempotency_key: row.text_or_null("idempotency_key")?,
        fingerprint,
        owner: row.text("owner")?,
        priority: row.get("priority")?,
        created: row.time("created")?,
        modified: row.time("modified")?,
        started_at: row.time_or_null("started_at")?,
        finished_at: row.time_or_null("finished_at")?,
        traceparent: row.get("traceparent")?,
        parent_id: row.id_or_null("parent_id")?,
        event_seq: row.number("event_seq")?,
    })
}

pub(super) fn ready(row: &SqliteRow) -> Result<Ready, StoreError> {
    let row = Fields::new("jobs", "id", row);
    Ok(Ready {
        id: row.id("id")?,
        channel: row.text("channel")?,
        priority: row.get("priority")?,
        ready_at: row.time("ready_at")?,
    })
}

/// Columns of `job_events`, in the order of [`push_event`].
pub(super) const EVENT_COLUMNS: &str = "job_id, seq, channel, kind, at, runner_id, attempt, details";

pub(super) fn push_event(row: &mut Separated<'_, Sqlite, &'static str>, event: &JobEvent) {
    row.push_bind(event.job_id.as_bytes().as_slice())
        .push_bind(i64::from(event.seq))
        .push_bind(event.channel.clone())
        .push_bind(code(event.kind))
        .push_bind(event.at.0)
        .push_bind(event.runner_id.clone())
        .push_bind(i64::from(event.attempt))
        .push_bind(event.details.as_str());
}

pub(super) fn event(row: &SqliteRow) -> Result<JobEvent, StoreError> {
    let row = Fields::new("job_events", "job_id", row);
    Ok(JobEvent {
        seq: row.number("seq")?,
        job_id: row.id("job_id")?,
        channel: row.text("channel")?,
        kind: row.coded("kind")?,
        at: row.time("at")?,
        runner_id: row.text_or_null("runner_id")?,
        attempt: row.number("attempt")?,
        details: row.get("details")?,
    })
}

/// Columns of `job_logs` that a new line fills, in the order of [`push_log`].
pub(super) const LOG_COLUMNS: &str = "job_id, channel, created, kind, message, meta";

pub(super) fn push_log(row: &mut Separated<'_, Sqlite, &'static str>, log: &JobLog) {
    row.push_bind(log.job_id.as_bytes().as_slice())
        .push_bind(log.channel.clone())
        .push_bind(log.created.0)
        .push_bind(code(log.kind))
        .push_bind(log.message.as_str())
        .push_bind(log.meta.as_str());
}

pub(super) fn log(row: &SqliteRow) -> Result<JobLog, StoreError> {
    let row = Fields::new("job_logs", "job_id", row);
    let id = u64::try_from(row.get::<i64>("id")?).map_err(|_| row.corrupt("id"))?;
    Ok(JobLog {
        id,
        job_id: row.id("job_id")?,
        channel: row.text("channel")?,
        created: row.time("created")?,
        kind: row.coded("kind")?,
        message: row.get("message")?,
        meta: row.get("meta")?,
    })
}

/// A row, with what it takes to name a place where it is corrupt.
pub(super) struct Fields<'r> {
    table: &'static str,
    key: &'static str,
    row: &'r SqliteRow,
}

impl<'r> Fields<'r> {
    pub(super) fn new(table: &'static str, key: &'static str, row: &'r SqliteRow) -> Fields<'r> {
        Fields { table, key, row }
    }

    pub(super) fn get<T: Decode<'r, Sqlite> + Type<Sqlite>>(&self, column: &'static str) -> Result<T, StoreError> {
        self.row.try_get(column).map_err(|_| self.corrupt(column))
    }

    pub(super) fn id(&self, column: &'static str) -> Result<JobId, StoreError> {
        JobId::from_slice(self.get(column)?).ok_or_else(|| self.corrupt(column))
    }

    pub(super) fn id_or_null(&self, column: &'static str) -> Result<Option<JobId>, StoreError> {
        self.get::<Option<&[u8]>>(column)?
            .map(|bytes| JobId::from_slice(bytes).ok_or_else(|| self.corrupt(column)))
            .transpose()
    }

    pub(super) fn text(&self, column: &'static str) -> Result<Arc<str>, StoreError> {
        self.get::<&str>(column).map(Arc::from)
    }

    fn text_or_null(&self, column: &'static str) -> Result<Option<Arc<str>>, StoreError> {
        Ok(self.get::<Option<&str>>(column)?.map(Arc::from))
    }

    pub(super) fn time(&self, column: &'static str) -> Result<Timestamp, StoreError> {
        self.get(column).map(Timestamp)
    }

    pub(super) fn time_or_null(&self, column: &'static str) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.get::<Option<i64>>(column)?.map(Timestamp))
    }

    fn number(&self, column: &'static str) -> Result<u32, StoreError> {
        u32::try_from(self.get::<i64>(column)?).map_err(|_| self.corrupt(column))
    }

    fn number_or_null(&self, column: &'static str) -> Result<Option<u32>, StoreError> {
        let number = self.get::<Option<i64>>(column)?;
        number.map(|number| u32::try_from(number).map_err(|_| self.corrupt(column))).transpose()
    }

    pub(super) fn count(&self, column: &'static str) -> Result<u64, StoreError> {
        u64::try_from(self.get::<i64>(column)?).map_err(|_| self.corrupt(column))
    }

    pub(super) fn coded<T: Coded>(&self, column: &'static str) -> Result<T, StoreError> {
        decoded(self.get(column)?).ok_or_else(|| self.corrupt(column))
    }

    fn corrupt(&self, column: &str) -> StoreError {
        let key = self.row.try_get::<&[u8], _>(self.key).ok().and_then(JobId::from_slice);
        let key = key.map_or_else(|| "unknown".to_owned(), |id| id.to_string());
        StoreError::Corrupt(format!("table {}, column {column}, row {} {key}", self.table, self.key))
    }
}
