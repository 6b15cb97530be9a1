//! The statements that write: each takes a connection and is part of the transaction that is open there.

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    buckets::Buckets,
    codec::Encoder,
    overlay::{Change, Key},
    read::rows,
    row::{self, Fields, JOB_COLUMN_COUNT, JOB_COLUMNS, JOB_STATE, Parameters},
    unavailable,
};
use crate::{
    model::{JobEvent, JobId, Status, Timestamp, log::JobLog},
    store::{StoreError, ends::Ends},
};

/// Events of a job that lie on its row: those of a job that runs a few times. The row is written whole with each change,
/// so what can grow without an end has a table of its own.
const EVENTS_ON_ROW: u32 = 8;
/// The longest details of an event on the row, in bytes.
const DETAILS_ON_ROW: usize = 256;

/// Events, and log lines, of a job that are removed at once.
const BELONGINGS_MAX: u32 = 500;

/// Brings the tables to where these changes are, and drops the journal before the record `needed`, or all of it.
pub(super) fn take_in(
    connection: &Connection,
    buckets: &mut Buckets,
    changes: &[Change],
    needed: Option<i64>,
) -> Result<(), StoreError> {
    let mut ended = Ends::default();
    let insert = format!(
        "-- name insert_job\nINSERT INTO jobs ({JOB_COLUMNS}, bucket) VALUES ({}, ?)",
        ["?"; JOB_COLUMN_COUNT].join(", ")
    );
    let update = format!("-- name update_job\nUPDATE jobs SET {JOB_STATE} WHERE id = ?");
    let end = format!("-- name end_job\nUPDATE jobs SET {JOB_STATE}, bucket = ? WHERE id = ?");
    let mut insert = connection.prepare_cached(&insert).map_err(unavailable)?;
    let mut update = connection.prepare_cached(&update).map_err(unavailable)?;
    let mut end = connection.prepare_cached(&end).map_err(unavailable)?;
    let mut packed = Vec::new();
    for change in changes {
        packed.clear();
        let (on_row, apart): (Vec<&JobEvent>, Vec<&JobEvent>) = change.events.iter().partition(|e| is_on_row(e));
        on_row.into_iter().for_each(|event| Encoder(&mut packed).event(event));
        let statement = match (change.in_tables, change.ended) {
            (false, _) => &mut insert,
            (true, false) => &mut update,
            (true, true) => &mut end,
        };
        let mut row = Parameters::of(statement);
        if change.in_tables {
            row::bind_state(&mut row, &change.job, &packed)?;
            if change.ended {
                row.bind(buckets.pass(connection, &change.job)?)?;
            }
            row.bind(change.job.id.as_bytes())?;
        } else {
            row::bind_job(&mut row, &change.job, &packed)?;
            row.bind(buckets.enter(connection, &change.job)?)?;
        }
        statement.raw_execute().map_err(unavailable)?;
        insert_events(connection, &apart)?;
        if change.ended {
            ended.add(change.job.status, 1);
        }
    }
    add_to_totals(connection, &ended)?;
    buckets.write(connection, false)?;
    let mut trim =
        connection.prepare_cached("-- name trim_journal\nDELETE FROM journal WHERE record < ?").map_err(unavailable)?;
    trim.execute([needed.unwrap_or(i64::MAX)]).map_err(unavailable)?;
    Ok(())
}

/// Whether an event lies on its job's row; the same for as long as it is kept.
fn is_on_row(event: &JobEvent) -> bool {
    event.seq <= EVENTS_ON_ROW && event.details.len() <= DETAILS_ON_ROW
}

fn insert_events(connection: &Connection, events: &[&JobEvent]) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let insert = "-- name insert_event
        INSERT INTO job_events (job_id, seq, kind, at, runner_id, attempt, details) VALUES (?, ?, ?, ?, ?, ?, ?)";
    let mut insert = connection.prepare_cached(insert).map_err(unavailable)?;
    for event in events {
        row::bind_event(&mut Parameters::of(&mut insert), event)?;
        insert.raw_execute().map_err(unavailable)?;
    }
    Ok(())
}

pub(super) fn add_to_totals(connection: &Connection, ended: &Ends) -> Result<(), StoreError> {
    if *ended == Ends::default() {
        return Ok(());
    }
    let update = "-- name add_to_totals
        UPDATE totals
        SET completed = completed + ?, failed = failed + ?, canceled = canceled + ?, expired = expired + ?";
    let mut update = connection.prepare_cached(update).map_err(unavailable)?;
    update.execute([ended.completed, ended.failed, ended.canceled, ended.expired]).map_err(unavailable)?;
    Ok(())
}

/// Writes a record; it is stored once the transaction is.
pub(super) fn append_record(connection: &Connection, record: &[u8]) -> Result<i64, StoreError> {
    let insert = "-- name append_record\nINSERT INTO journal (steps) VALUES (?)";
    let mut insert = connection.prepare_cached(insert).map_err(unavailable)?;
    insert.execute([record]).map_err(unavailable)?;
    Ok(connection.last_insert_rowid())
}

/// The records of the journal, oldest first.
pub(super) fn records(connection: &Connection) -> Result<Vec<(i64, Vec<u8>)>, StoreError> {
    let select = "-- name records\nSELECT record, steps FROM journal ORDER BY record";
    let mut select = connection.prepare(select).map_err(unavailable)?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(unavailable)?;
    rows.collect::<Result<_, _>>().map_err(unavailable)
}

/// The version of a job in the tables.
pub(super) fn version(connection: &Connection, id: JobId) -> Result<Option<u32>, StoreError> {
    let select = "-- name version\nSELECT version FROM jobs WHERE id = ?";
    let mut select = connection.prepare_cached(select).map_err(unavailable)?;
    let mut rows = select.query([id.as_bytes()]).map_err(unavailable)?;
    let row = rows.next().map_err(unavailable)?;
    row.map(|row| Fields::of("jobs", row).take()).transpose()
}

/// The newest id in the tables.
pub(super) fn newest(connection: &Connection) -> Result<Option<JobId>, StoreError> {
    let select = "-- name newest\nSELECT id FROM jobs ORDER BY id DESC LIMIT 1";
    let newest = connection.query_row(select, [], |row| row.get::<_, [u8; 16]>(0)).optional();
    Ok(newest.map_err(unavailable)?.map(|bytes| JobId(uuid::Uuid::from_bytes(bytes))))
}

/// The job in the tables that holds an idempotency key.
pub(super) fn key_holder(connection: &Connection, (owner, key): &Key) -> Result<Option<JobId>, StoreError> {
    let select = "-- name key_holder\nSELECT id FROM jobs WHERE owner = ? AND idempotency_key = ?";
    let mut select = connection.prepare_cached(select).map_err(unavailable)?;
    let mut rows = select.query(params![&**owner, &**key]).map_err(unavailable)?;
    let row = rows.next().map_err(unavailable)?;
    row.map(|row| Fields::of("jobs", row).id()).transpose()
}

/// Appends log lines; those of a job that is neither ahead of the tables nor in them are dropped.
pub(super) fn append_logs(
    connection: &Connection,
    logs: &[JobLog],
    is_ahead: impl Fn(JobId) -> bool,
) -> Result<(), StoreError> {
    let insert = format!(
        "-- name append_log
        INSERT INTO job_logs ({}) SELECT ?1, ?2, ?3, ?4, ?5, ?6
        WHERE ?7 OR EXISTS (SELECT 1 FROM jobs WHERE id = ?1)",
        row::LOG_COLUMNS
    );
    let mut insert = connection.prepare_cached(&insert).map_err(unavailable)?;
    for log in logs {
        let mut row = Parameters::of(&mut insert);
        row::bind_log(&mut row, log)?;
        row.bind(is_ahead(log.job_id))?;
        insert.raw_execute().map_err(unavailable)?;
    }
    Ok(())
}

/// Removes a job that is at `version`, with its events, logs and parts. False where it is not at that version.
pub(super) fn delete(
    connection: &Connection,
    buckets: &mut Buckets,
    id: JobId,
    version: u32,
) -> Result<bool, StoreError> {
    let delete = "-- name delete_job
        DELETE FROM jobs WHERE id = ? AND version = ? RETURNING id, status, bucket";
    let mut delete = connection.prepare_cached(delete).map_err(unavailable)?;
    let mut rows = delete.query(params![id.as_bytes(), version]).map_err(unavailable)?;
    let Some(row) = rows.next().map_err(unavailable)? else { return Ok(false) };
    let row = Fields::of("jobs", row);
    let (_, status, bucket) = (row.id()?, row.coded()?, row.take()?);
    // The statement ends only once its rows are read to the last.
    while rows.next().map_err(unavailable)?.is_some() {}
    // A part has none, and does not count.
    if let Some(bucket) = bucket {
        let mut ended = Ends::default();
        ended.add(status, -1);
        add_to_totals(connection, &ended)?;
        buckets.leave(bucket);
        buckets.write(connection, true)?;
    }
    let belongings = [
        "-- name delete_events
        DELETE FROM job_events WHERE job_id IN (SELECT ?1 UNION ALL SELECT id FROM jobs WHERE parent_id = ?1)",
        "-- name delete_logs
        DELETE FROM job_logs WHERE job_id IN (SELECT ?1 UNION ALL SELECT id FROM jobs WHERE parent_id = ?1)",
        "-- name delete_parts
        DELETE FROM jobs WHERE parent_id = ?1",
    ];
    for statement in belongings {
        let mut statement = connection.prepare_cached(statement).map_err(unavailable)?;
        statement.execute([id.as_bytes()]).map_err(unavailable)?;
    }
    Ok(true)
}

/// What became of a job that was to be removed.
pub(super) enum Removal {
    /// It has not ended, or not before then, or a part of it has not, or it changes just now.
    Stays,
    /// Some of what belongs to it is gone, the rest is for another slice.
    Begun,
    /// It is gone with all that belongs to it: how it had ended, and its id and those of its parts.
    Done(Status, Vec<JobId>),
}

/// Removes a job that is no part and has ended before then, with its events, logs and parts. A broadcast job goes with all its
/// parts at once, as they came.
pub(super) fn forget(
    connection: &Connection,
    buckets: &mut Buckets,
    id: JobId,
    finished_before: Timestamp,
    is_ahead: impl Fn(JobId) -> bool,
) -> Result<Removal, StoreError> {
    let select = "-- name outdated
        SELECT id, status, broadcast, bucket FROM jobs
        WHERE id = ? AND status > 1 AND finished_at < ? AND parent_id IS NULL";
    let found = rows(connection, select, params![id.as_bytes(), finished_before.0], |row| {
        let row = Fields::of("jobs", row);
        let (_, status) = (row.id()?, row.coded::<Status>()?);
        Ok((status, row.take::<bool>()?, row.take()?))
    })?;
    let Some((status, broadcast, bucket)) = found.into_iter().next() else { return Ok(Removal::Stays) };
    let mut ids = vec![id];
    if broadcast {
        let select = "-- name parts_to_remove\nSELECT id, status FROM jobs WHERE parent_id = ?";
        let parts = rows(connection, select, [id.as_bytes()], |row| {
            let row = Fields::of("jobs", row);
            Ok((row.id()?, row.coded::<Status>()?))
        })?;
        if parts.iter().any(|(part, status)| !status.is_terminal() || is_ahead(*part)) {
            return Ok(Removal::Stays);
        }
        ids.extend(parts.into_iter().map(|(part, _)| part));
    }
    if is_ahead(id) {
        return Ok(Removal::Stays);
    }
    for id in &ids {
        if !forget_belongings(connection, *id)? {
            return Ok(Removal::Begun);
        }
    }
    let delete = "-- name forget_job\nDELETE FROM jobs WHERE id = ?";
    let mut delete = connection.prepare_cached(delete).map_err(unavailable)?;
    for id in &ids {
        delete.execute([id.as_bytes()]).map_err(unavailable)?;
    }
    buckets.leave(bucket);
    Ok(Removal::Done(status, ids))
}

/// Removes events and log lines, at most [`BELONGINGS_MAX`] of each; false where there may be more.
fn forget_belongings(connection: &Connection, id: JobId) -> Result<bool, StoreError> {
    let statements = [
        "-- name forget_events
        DELETE FROM job_events WHERE job_id = ?1 AND seq IN (SELECT seq FROM job_events WHERE job_id = ?1 LIMIT ?2)",
        "-- name forget_logs
        DELETE FROM job_logs WHERE id IN (SELECT id FROM job_logs WHERE job_id = ?1 LIMIT ?2)",
    ];
    for statement in statements {
        let mut statement = connection.prepare_cached(statement).map_err(unavailable)?;
        let removed = statement.execute(params![id.as_bytes(), BELONGINGS_MAX]).map_err(unavailable)?;
        if removed >= BELONGINGS_MAX as usize {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes what is there already, which takes the same way to the disk as any other write.
pub(super) fn ping(connection: &Connection) -> Result<(), StoreError> {
    let update = "-- name ping_write\nUPDATE totals SET completed = completed";
    let mut update = connection.prepare_cached(update).map_err(unavailable)?;
    update.execute([]).map_err(unavailable)?;
    Ok(())
}
