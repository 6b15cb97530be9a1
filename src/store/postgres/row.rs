//! Rows as they come back: the one place that knows how to read a job, an event or a log line, and where one is corrupt.

use std::sync::Arc;

use sqlx::{Decode, Postgres, Row, Type, postgres::PgRow};
use uuid::Uuid;

use super::text::original;
use crate::{
    model::{Job, JobId, Timestamp, log::JobLog},
    store::{
        Ready, StoreError,
        codes::{Coded, decoded, expiry_of},
    },
};

/// Reads a row with the columns of `job_columns!`.
pub(super) fn job(table: &'static str, row: &PgRow) -> Result<Job, StoreError> {
    let row = Fields::new(table, "id", row);
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
        broadcast: row.get("broadcast")?,
        cancel_requested: row.get("cancel_requested")?,
        max_exec_seconds: row.number_or_null("max_exec_seconds")?,
        runner_id: row.text_or_null("runner_id")?,
        last_error: row.string("last_error")?,
        stack_trace: row.string("stack_trace")?,
        metadata: row.string("metadata")?,
        result: row.string("result")?,
        idempotency_key: row.text_or_null("idempotency_key")?,
        fingerprint,
        owner: row.text("owner")?,
        priority: row.get("priority")?,
        created: row.time("created")?,
        modified: row.time("modified")?,
        started_at: row.time_or_null("started_at")?,
        finished_at: row.time_or_null("finished_at")?,
        traceparent: row.string("traceparent")?,
        parent_id: row.id_or_null("parent_id")?,
        event_seq: row.number("event_seq")?,
    })
}

/// Reads `id`, `channel`, `priority` and `ready_at`.
pub(super) fn ready(row: &PgRow) -> Result<Ready, StoreError> {
    let row = Fields::new("errand.jobs", "id", row);
    Ok(Ready {
        id: row.id("id")?,
        channel: row.text("channel")?,
        priority: row.get("priority")?,
        ready_at: row.time("ready_at")?,
    })
}

pub(super) fn log(row: &PgRow) -> Result<JobLog, StoreError> {
    let row = Fields::new("errand.logs", "job_id", row);
    Ok(JobLog {
        id: row.count("id")?,
        job_id: row.id("job_id")?,
        channel: row.text("channel")?,
        created: row.time("created")?,
        kind: row.coded("kind")?,
        message: row.string("message")?,
        meta: row.string("meta")?,
    })
}

/// A row, with what it takes to name a place where it is corrupt.
pub(super) struct Fields<'r> {
    table: &'static str,
    key: &'static str,
    row: &'r PgRow,
}

impl<'r> Fields<'r> {
    /// `key` is a column that has an id or a text.
    pub(super) fn new(table: &'static str, key: &'static str, row: &'r PgRow) -> Fields<'r> {
        Fields { table, key, row }
    }

    pub(super) fn get<T: Decode<'r, Postgres> + Type<Postgres>>(&self, column: &'static str) -> Result<T, StoreError> {
        self.row.try_get(column).map_err(|_| self.corrupt(column))
    }

    pub(super) fn id(&self, column: &'static str) -> Result<JobId, StoreError> {
        self.get(column).map(JobId)
    }

    pub(super) fn id_or_null(&self, column: &'static str) -> Result<Option<JobId>, StoreError> {
        Ok(self.get::<Option<Uuid>>(column)?.map(JobId))
    }

    pub(super) fn text(&self, column: &'static str) -> Result<Arc<str>, StoreError> {
        self.get(column).map(|text| original(text).into())
    }

    fn text_or_null(&self, column: &'static str) -> Result<Option<Arc<str>>, StoreError> {
        Ok(self.get::<Option<&str>>(column)?.map(|text| original(text).into()))
    }

    fn string(&self, column: &'static str) -> Result<String, StoreError> {
        self.get(column).map(|text| original(text).into_owned())
    }

    pub(super) fn time(&self, column: &'static str) -> Result<Timestamp, StoreError> {
        self.get(column).map(Timestamp)
    }

    pub(super) fn time_or_null(&self, column: &'static str) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.get::<Option<i64>>(column)?.map(Timestamp))
    }

    pub(super) fn number(&self, column: &'static str) -> Result<u32, StoreError> {
        u32::try_from(self.get::<i64>(column)?).map_err(|_| self.corrupt(column))
    }

    pub(super) fn number_or_null(&self, column: &'static str) -> Result<Option<u32>, StoreError> {
        let number = self.get::<Option<i64>>(column)?;
        number.map(|number| u32::try_from(number).map_err(|_| self.corrupt(column))).transpose()
    }

    pub(super) fn count(&self, column: &'static str) -> Result<u64, StoreError> {
        u64::try_from(self.get::<i64>(column)?).map_err(|_| self.corrupt(column))
    }

    pub(super) fn coded<T: Coded>(&self, column: &'static str) -> Result<T, StoreError> {
        decoded(self.get(column)?).ok_or_else(|| self.corrupt(column))
    }

    pub(super) fn corrupt(&self, column: &str) -> StoreError {
        let id = self.row.try_get::<Uuid, _>(self.key).map(|id| JobId(id).to_string());
        let key = id.or_else(|_| self.row.try_get::<String, _>(self.key)).unwrap_or_else(|_| "unknown".to_owned());
        StoreError::Corrupt(format!("table {}, column {column}, row {} {key}", self.table, self.key))
    }
}
