//! Rows as they are written: many at once, as one array of a composite type for each statement.
//!
//! An array for each column, paired by `unnest`, is what Postgres is usually given. It keeps each array in a store of its own
//! while it reads them side by side; with the 37 columns of a job that took four times as long as the array of rows here.
//!
//! The lists of columns below, the composite types in the schema and the functions that fill a record must agree in their
//! order. The types never change, so that nodes of two versions can share a schema: another shape is another type.

use sqlx::{
    Encode, Postgres, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo},
};
use uuid::Uuid;

use super::{events, text::stored};
use crate::{
    model::{Job, Step},
    store::codes::{code, expiry_code, overrun_at},
};

/// Columns that never change, in the order of [`put_kept`].
macro_rules! kept {
    () => {
        "id, channel, func, payload, expiry_kind, expiry_value, max_retries, backoff_base, backoff_max_seconds, broadcast, \
         max_exec_seconds, idempotency_key, fingerprint, owner, priority, created, traceparent, parent_id"
    };
}

/// Columns that each step writes, in the order of [`put_changed`]; `events` is not among them, for it only grows.
macro_rules! changed {
    () => {
        "version, status, run_at, ready_at, expires_at, attempt, releases, cancel_requested, overrun_at, runner_id, \
         last_error, stack_trace, metadata, result, modified, started_at, finished_at, event_seq"
    };
}

/// The same, of the rows that a step brings.
macro_rules! brought {
    () => {
        "v.version, v.status, v.run_at, v.ready_at, v.expires_at, v.attempt, v.releases, v.cancel_requested, v.overrun_at, \
         v.runner_id, v.last_error, v.stack_trace, v.metadata, v.result, v.modified, v.started_at, v.finished_at, v.event_seq"
    };
}

/// All that makes a job.
macro_rules! job_columns {
    () => {
        concat!($crate::store::postgres::columns::kept!(), ", ", $crate::store::postgres::columns::changed!())
    };
}

pub(super) use {brought, changed, job_columns, kept};

/// A job that is not there yet: a row of `errand.new_job`.
pub(super) struct NewJob<'a> {
    pub made: &'a Step,
    /// The next step of the same job, where it is stored at once.
    pub moved: Option<&'a Step>,
}

/// What a step changes of its job: a row of `errand.job_change`.
pub(super) struct JobChange<'a>(pub &'a Step);

impl Type<Postgres> for NewJob<'_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("errand.new_job")
    }
}

impl PgHasArrayType for NewJob<'_> {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::array_of("errand.new_job")
    }
}

impl Encode<'_, Postgres> for NewJob<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let mut record = Record::begin(buffer);
        let mut lines = events::line_on_row(self.made);
        lines.extend(self.moved.map(events::line_on_row));
        put_kept(&mut record, &self.made.job)?;
        put_changed(&mut record, &self.moved.unwrap_or(self.made).job)?;
        record.text(&lines)?;
        Ok(record.end())
    }
}

impl Type<Postgres> for JobChange<'_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("errand.job_change")
    }
}

impl PgHasArrayType for JobChange<'_> {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::array_of("errand.job_change")
    }
}

impl Encode<'_, Postgres> for JobChange<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let mut record = Record::begin(buffer);
        record.uuid(Some(self.0.job.id.0))?;
        record.bigint(self.0.expected.map(i64::from))?;
        put_changed(&mut record, &self.0.job)?;
        record.text(&events::line_on_row(self.0))?;
        Ok(record.end())
    }
}

/// The columns of `kept!`, in their order.
fn put_kept(record: &mut Record<'_>, job: &Job) -> Result<(), BoxDynError> {
    let (expiry_kind, expiry_value) = expiry_code(job.expiry);
    record.uuid(Some(job.id.0))?;
    record.text(&job.channel)?;
    record.text(&job.func)?;
    record.text(&job.payload)?;
    record.integer(expiry_kind)?;
    record.bigint(expiry_value)?;
    record.bigint(Some(job.max_retries.into()))?;
    record.double(job.backoff_base)?;
    record.bigint(Some(job.backoff_max_seconds.into()))?;
    record.boolean(job.broadcast)?;
    record.bigint(job.max_exec_seconds.map(i64::from))?;
    record.text_or_null(job.idempotency_key.as_deref())?;
    record.bytes(&job.fingerprint)?;
    record.text(&job.owner)?;
    record.integer(job.priority)?;
    record.bigint(Some(job.created.0))?;
    record.text(&job.traceparent)?;
    record.uuid(job.parent_id.map(|id| id.0))
}

/// The columns of `changed!`, in their order.
fn put_changed(record: &mut Record<'_>, job: &Job) -> Result<(), BoxDynError> {
    record.bigint(Some(job.version.into()))?;
    record.integer(code(job.status))?;
    record.bigint(job.run_at.map(|at| at.0))?;
    record.bigint(Some(job.ready_at.0))?;
    record.bigint(Some(job.expires_at.0))?;
    record.bigint(Some(job.attempt.into()))?;
    record.bigint(Some(job.releases.into()))?;
    record.boolean(job.cancel_requested)?;
    record.bigint(overrun_at(job))?;
    record.text_or_null(job.runner_id.as_deref())?;
    record.text(&job.last_error)?;
    record.text(&job.stack_trace)?;
    record.text(&job.metadata)?;
    record.text(&job.result)?;
    record.bigint(Some(job.modified.0))?;
    record.bigint(job.started_at.map(|at| at.0))?;
    record.bigint(job.finished_at.map(|at| at.0))?;
    record.bigint(Some(job.event_seq.into()))
}

/// A value of a composite type in Postgres's binary format: the number of fields, then each field's type, length and bytes.
struct Record<'a> {
    buffer: &'a mut PgArgumentBuffer,
    start: usize,
    fields: u32,
}

/// The numbers of Postgres's own types are the same in every database.
mod oid {
    pub(super) const BOOL: u32 = 16;
    pub(super) const BYTEA: u32 = 17;
    pub(super) const INT8: u32 = 20;
    pub(super) const INT4: u32 = 23;
    pub(super) const TEXT: u32 = 25;
    pub(super) const FLOAT8: u32 = 701;
    pub(super) const UUID: u32 = 2950;
}

impl<'a> Record<'a> {
    fn begin(buffer: &'a mut PgArgumentBuffer) -> Record<'a> {
        let start = buffer.len();
        buffer.extend_from_slice(&0u32.to_be_bytes());
        Record { buffer, start, fields: 0 }
    }

    fn end(self) -> IsNull {
        self.buffer[self.start..self.start + 4].copy_from_slice(&self.fields.to_be_bytes());
        IsNull::No
    }

    fn field(&mut self, oid: u32, value: Option<&[u8]>) -> Result<(), BoxDynError> {
        let length = value.map_or(Ok(-1), |value| i32::try_from(value.len()))?;
        self.buffer.extend_from_slice(&oid.to_be_bytes());
        self.buffer.extend_from_slice(&length.to_be_bytes());
        self.buffer.extend_from_slice(value.unwrap_or_default());
        self.fields += 1;
        Ok(())
    }

    fn boolean(&mut self, value: bool) -> Result<(), BoxDynError> {
        self.field(oid::BOOL, Some(&[value.into()]))
    }

    fn bytes(&mut self, value: &[u8]) -> Result<(), BoxDynError> {
        self.field(oid::BYTEA, Some(value))
    }

    fn bigint(&mut self, value: Option<i64>) -> Result<(), BoxDynError> {
        self.field(oid::INT8, value.map(i64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice))
    }

    fn integer(&mut self, value: i32) -> Result<(), BoxDynError> {
        self.field(oid::INT4, Some(&value.to_be_bytes()))
    }

    fn double(&mut self, value: f64) -> Result<(), BoxDynError> {
        self.field(oid::FLOAT8, Some(&value.to_be_bytes()))
    }

    fn text(&mut self, value: &str) -> Result<(), BoxDynError> {
        self.field(oid::TEXT, Some(stored(value).as_bytes()))
    }

    fn text_or_null(&mut self, value: Option<&str>) -> Result<(), BoxDynError> {
        self.field(oid::TEXT, value.map(stored).as_ref().map(|text| text.as_bytes()))
    }

    fn uuid(&mut self, value: Option<Uuid>) -> Result<(), BoxDynError> {
        self.field(oid::UUID, value.as_ref().map(|id| id.as_bytes().as_slice()))
    }
}
