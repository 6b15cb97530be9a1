//! Reads that the engine makes while it runs jobs: each is served by an index of the schema.
//!
//! Statuses are spelt out in the statements (0 is pending, 1 running), and conditions of partial indexes are repeated,
//! because SQLite does not work them out itself.

use std::{collections::BTreeMap, sync::Arc};

use rusqlite::{Connection, Params, Row, params};

use super::{
    filter::{Select, push_codes},
    row::{self, Fields, JOB_COLUMNS, LOG_COLUMNS, READY_COLUMNS},
    unavailable,
};
use crate::{
    model::{
        Job, JobEvent, JobId, Parts, Status, Timestamp,
        log::{JobLog, LogKind},
    },
    store::{Agenda, Due, Ready, StoreError, Tally, codes::code},
};

/// The first jobs among which the oldest ended one is looked for.
const OLDEST_MAX: u32 = 10_000;

/// Every row of an answer.
pub(super) fn rows<T>(
    connection: &Connection,
    select: &str,
    parameters: impl Params,
    mut convert: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut select = connection.prepare_cached(select).map_err(unavailable)?;
    let mut rows = select.query(parameters).map_err(unavailable)?;
    let mut answer = Vec::new();
    while let Some(row) = rows.next().map_err(unavailable)? {
        answer.push(convert(row)?);
    }
    Ok(answer)
}

pub(super) fn job(connection: &Connection, id: JobId) -> Result<Option<Job>, StoreError> {
    let select = format!("-- name job\nSELECT {JOB_COLUMNS} FROM jobs WHERE id = ?");
    Ok(rows(connection, &select, [id.as_bytes()], row::job)?.pop())
}

/// In the order asked.
pub(super) fn jobs(connection: &Connection, ids: &[JobId]) -> Result<Vec<Option<Job>>, StoreError> {
    ids.iter().map(|id| job(connection, *id)).collect()
}

/// Events in the tables, oldest first: all on the row, and the latest `limit` of the others.
pub(super) fn events(connection: &Connection, id: JobId, limit: u32) -> Result<Vec<JobEvent>, StoreError> {
    // One transaction, so that both tables are of one moment.
    let transaction = connection.unchecked_transaction().map_err(unavailable)?;
    let select = "-- name events_on_row\nSELECT id, channel, events FROM jobs WHERE id = ?";
    let Some((channel, mut events)) = rows(&transaction, select, [id.as_bytes()], row::packed_events)?.pop() else {
        return Ok(Vec::new());
    };
    let select = format!(
        "-- name events\nSELECT {} FROM job_events WHERE job_id = ? ORDER BY seq DESC LIMIT ?",
        row::EVENT_COLUMNS
    );
    events.extend(rows(&transaction, &select, params![id.as_bytes(), limit], |row| row::event(row, &channel))?);
    events.sort_unstable_by_key(|event| event.seq);
    Ok(events)
}

pub(super) fn ready(
    connection: &Connection,
    channel: &str,
    now: Timestamp,
    after: Option<&Ready>,
    limit: u32,
) -> Result<Vec<Ready>, StoreError> {
    const LINE: &str = "FROM jobs WHERE status < 2 AND status = 0 AND broadcast = 0 AND channel = ?";
    let Some(after) = after else {
        let select = format!(
            "-- name ready\nSELECT {READY_COLUMNS} {LINE} AND ready_at <= ? ORDER BY priority DESC, ready_at, id LIMIT ?"
        );
        return rows(connection, &select, params![channel, now.0, limit], row::ready);
    };
    // Two statements, because an index can be entered at one place only: the rest of this priority, then the lower ones.
    let select = format!(
        "-- name ready_of_same_priority
        SELECT {READY_COLUMNS} {LINE} AND priority = ? AND (ready_at, id) > (?, ?) AND ready_at <= ?
        ORDER BY ready_at, id LIMIT ?"
    );
    let parameters = params![channel, after.priority, after.ready_at.0, after.id.as_bytes(), now.0, limit];
    let mut ready = rows(connection, &select, parameters, row::ready)?;
    let missing = i64::from(limit) - i64::try_from(ready.len()).unwrap_or(i64::MAX);
    if missing > 0 {
        let select = format!(
            "-- name ready_of_lower_priority
            SELECT {READY_COLUMNS} {LINE} AND priority < ? AND ready_at <= ? ORDER BY priority DESC, ready_at, id LIMIT ?"
        );
        ready.extend(rows(connection, &select, params![channel, after.priority, now.0, missing], row::ready)?);
    }
    Ok(ready)
}

pub(super) fn pending_channels(connection: &Connection) -> Result<Vec<Arc<str>>, StoreError> {
    // From one channel to the next in the index, however many jobs lie between.
    let select = "-- name pending_channels
        WITH RECURSIVE names(broadcast, channel) AS (
            SELECT 0, (SELECT MIN(channel) FROM jobs WHERE status < 2 AND status = 0 AND broadcast = 0)
            UNION ALL
            SELECT 1, (SELECT MIN(channel) FROM jobs WHERE status < 2 AND status = 0 AND broadcast = 1)
            UNION ALL
            SELECT broadcast, (
                SELECT MIN(jobs.channel) FROM jobs
                WHERE status < 2 AND status = 0 AND jobs.broadcast = names.broadcast AND jobs.channel > names.channel
            ) FROM names WHERE channel IS NOT NULL
        )
        SELECT DISTINCT channel FROM names WHERE channel IS NOT NULL ORDER BY channel";
    rows(connection, select, [], |row| Fields::of("jobs", row).take())
}

/// The agenda, and the jobs it is read off.
pub(super) fn agenda(connection: &Connection, now: Timestamp) -> Result<(Agenda, Vec<JobId>), StoreError> {
    // Each is the first entry of an index.
    let select = "-- name agenda
        SELECT * FROM
            (SELECT id, ready_at, 0 FROM jobs
             WHERE status = 0 AND broadcast = 0 AND ready_at > ? ORDER BY ready_at LIMIT 1)
        UNION ALL SELECT * FROM
            (SELECT id, due_at, 1 FROM jobs WHERE status = 0 AND due_at IS NOT NULL ORDER BY due_at LIMIT 1)
        UNION ALL SELECT * FROM
            (SELECT id, due_at, 2 FROM jobs WHERE status = 1 AND due_at IS NOT NULL ORDER BY due_at LIMIT 1)
        UNION ALL SELECT * FROM
            (SELECT id, ready_at, 3 FROM jobs INDEXED BY jobs_broadcast
             WHERE status < 2 AND status = 0 AND broadcast = 1 ORDER BY ready_at LIMIT 1)
        UNION ALL SELECT * FROM
            (SELECT id, ready_at, 4 FROM jobs INDEXED BY jobs_broadcast
             WHERE status < 2 AND status = 1 AND broadcast = 1 ORDER BY ready_at LIMIT 1)";
    let firsts = rows(connection, select, [now.0], |row| {
        let row = Fields::of("jobs", row);
        Ok((row.id()?, row.time()?, row.take::<u8>()?))
    })?;
    let first = |kind| firsts.iter().find(|first| first.2 == kind).map(|first| first.1);
    let agenda = Agenda { ready: first(0), expiry: first(1), overrun: first(2), broadcast: first(3), parent: first(4) };
    Ok((agenda, firsts.iter().map(|first| first.0).collect()))
}

pub(super) fn due_between(
    connection: &Connection,
    after: Timestamp,
    until: Timestamp,
    limit: u32,
) -> Result<Vec<Ready>, StoreError> {
    let select = format!(
        "-- name due_between
        SELECT {READY_COLUMNS} FROM jobs
        WHERE status = 0 AND broadcast = 0 AND ready_at > ? AND ready_at <= ?
        ORDER BY ready_at, id LIMIT ?"
    );
    rows(connection, &select, params![after.0, until.0, limit], row::ready)
}

pub(super) fn due(connection: &Connection, due: Due, now: Timestamp, limit: u32) -> Result<Vec<Job>, StoreError> {
    let condition = match due {
        Due::Expiry => "INDEXED BY jobs_due WHERE status = 0 AND due_at <= ?1 ORDER BY due_at, id",
        Due::Overrun => "INDEXED BY jobs_due WHERE status = 1 AND due_at <= ?1 ORDER BY due_at, id",
        Due::Broadcast => {
            "INDEXED BY jobs_broadcast
            WHERE status < 2 AND status = 0 AND broadcast = 1 AND ready_at <= ?1 ORDER BY ready_at, id"
        }
        Due::Parent => {
            "INDEXED BY jobs_broadcast
            WHERE status < 2 AND status = 1 AND broadcast = 1 AND ?1 = ?1 ORDER BY ready_at, id"
        }
    };
    let select = format!("-- name due\nSELECT {JOB_COLUMNS} FROM jobs {condition} LIMIT ?2");
    rows(connection, &select, params![now.0, limit], row::job)
}

pub(super) fn running(connection: &Connection, after: Option<JobId>, limit: u32) -> Result<Vec<Job>, StoreError> {
    // Sorted by id before the jobs are read, for the index is in another order.
    let select = format!(
        "-- name running
        SELECT {JOB_COLUMNS} FROM jobs WHERE id IN (
            SELECT id FROM jobs WHERE status < 2 AND status = 1 AND broadcast = 0 AND id > ? ORDER BY id LIMIT ?
        ) ORDER BY id"
    );
    // The empty text sorts before every id.
    let after = after.map(|id| id.as_bytes().to_vec()).unwrap_or_default();
    rows(connection, &select, params![after, limit], row::job)
}

pub(super) fn parts(connection: &Connection, parent_id: JobId) -> Result<Parts, StoreError> {
    let select = "-- name parts\nSELECT status, COUNT(*) FROM jobs WHERE parent_id = ? GROUP BY status";
    let mut parts = Parts::default();
    rows(connection, select, [parent_id.as_bytes()], |row| {
        let row = Fields::of("jobs", row);
        let (status, jobs) = (row.coded()?, u32::try_from(row.count()?).unwrap_or(u32::MAX));
        parts.total += jobs;
        match status {
            Status::Pending | Status::Running => {}
            Status::Completed => parts.completed = jobs,
            Status::Failed => parts.failed = jobs,
            Status::Canceled => parts.canceled = jobs,
            Status::Expired => parts.expired = jobs,
        }
        Ok(())
    })?;
    Ok(parts)
}

pub(super) fn unfinished_parts(connection: &Connection, parent_id: JobId, limit: u32) -> Result<Vec<Job>, StoreError> {
    let select = format!(
        "-- name unfinished_parts
        SELECT {JOB_COLUMNS} FROM jobs INDEXED BY jobs_parent WHERE parent_id = ? AND status < 2 ORDER BY id LIMIT ?"
    );
    rows(connection, &select, params![parent_id.as_bytes(), limit], row::job)
}

pub(super) fn jobs_before(connection: &Connection, job: &Job, now: Timestamp) -> Result<u64, StoreError> {
    // Jobs whose run time has come are equal in it, so that among them priority decides.
    let select = "-- name jobs_before
        SELECT COUNT(*) FROM jobs
        WHERE status < 2 AND status = 0 AND broadcast = 0 AND channel = ?1
            AND (MAX(ready_at, ?2), -priority, ready_at, id) < (MAX(?3, ?2), -?4, ?3, ?5)";
    let parameters = params![&*job.channel, now.0, job.ready_at.0, job.priority, job.id.as_bytes()];
    Ok(rows(connection, select, parameters, |row| Fields::of("jobs", row).count())?.pop().unwrap_or(0))
}

pub(super) fn tally(connection: &Connection, now: Timestamp) -> Result<Tally, StoreError> {
    // One transaction, so that all counts are of one moment.
    let transaction = connection.unchecked_transaction().map_err(unavailable)?;
    let mut tally = totals(&transaction)?;
    let select = "-- name tally_channels
        SELECT channel, SUM(status = 0 AND ready_at <= ?1), SUM(status = 0 AND ready_at > ?1), SUM(status = 1)
        FROM jobs WHERE status < 2 GROUP BY status, broadcast, channel";
    rows(&transaction, select, [now.0], |row| {
        let row = Fields::of("jobs", row);
        let channel: Arc<str> = row.take()?;
        // The channels of parts.
        if !channel.starts_with('@') {
            let counts = tally.channels.entry(channel).or_default();
            counts.ready += row.count()?;
            counts.scheduled += row.count()?;
            counts.running += row.count()?;
        }
        Ok(())
    })?;
    if tally.ended() > 0 {
        tally.oldest_ended = oldest_ended(&transaction)?;
    }
    Ok(tally)
}

/// The jobs that have ended, and nothing else.
fn totals(connection: &Connection) -> Result<Tally, StoreError> {
    let select = "-- name tally_totals\nSELECT completed, failed, canceled, expired FROM totals";
    let totals = rows(connection, select, [], |row| {
        let row = Fields::of("totals", row);
        let (completed, failed) = (row.count()?, row.count()?);
        let (canceled, expired) = (row.count()?, row.count()?);
        Ok(Tally { channels: BTreeMap::new(), completed, failed, canceled, expired, oldest_ended: None })
    })?;
    totals.into_iter().next().ok_or_else(|| StoreError::Corrupt("table totals has no row".into()))
}

/// Unknown where the oldest jobs are all unfinished.
fn oldest_ended(connection: &Connection) -> Result<Option<Timestamp>, StoreError> {
    let select = "-- name oldest_ended
        SELECT created FROM (SELECT created, status, parent_id FROM jobs ORDER BY id LIMIT ?)
        WHERE status > 1 AND parent_id IS NULL LIMIT 1";
    let created = rows(connection, select, [OLDEST_MAX], |row| Fields::of("jobs", row).time())?;
    Ok(created.into_iter().next())
}

/// A job that retention may have to look at.
pub(super) struct Aged {
    pub id: JobId,
    /// It has ended long enough ago, and is no part.
    pub is_outdated: bool,
}

/// Jobs from behind `after` and before `end`, in order of id.
pub(super) fn aged(
    connection: &Connection,
    finished_before: Timestamp,
    (after, end): (Option<JobId>, JobId),
    limit: u32,
) -> Result<Vec<Aged>, StoreError> {
    let select = "-- name aged
        SELECT id, status > 1 AND finished_at < ?1 AND parent_id IS NULL FROM jobs WHERE id > ?2 AND id < ?3
        ORDER BY id LIMIT ?4";
    let after = after.map(|id| id.as_bytes().to_vec()).unwrap_or_default();
    rows(connection, select, params![finished_before.0, after, end.as_bytes(), limit], |row| {
        let row = Fields::of("jobs", row);
        Ok(Aged { id: row.id()?, is_outdated: row.take::<Option<bool>>()?.unwrap_or(false) })
    })
}

pub(super) fn logs(
    connection: &Connection,
    job_id: JobId,
    kinds: &[LogKind],
    after: u64,
    limit: u32,
) -> Result<Vec<JobLog>, StoreError> {
    let mut select = Select::new(format!("-- name logs\nSELECT id, {LOG_COLUMNS} FROM job_logs WHERE job_id = "));
    select.bind(job_id.as_bytes()).push(" AND id > ").bind(i64::try_from(after).unwrap_or(i64::MAX));
    if !kinds.is_empty() {
        push_codes(select.push(" AND kind"), kinds.iter().map(|kind| code(*kind)));
    }
    select.push(" ORDER BY id LIMIT ").bind(limit);
    rows(connection, &select.text, select.parameters(), row::log)
}

pub(super) fn ping(connection: &Connection) -> Result<(), StoreError> {
    rows(connection, "-- name ping_read\nSELECT completed FROM totals", [], |row| Fields::of("totals", row).count())?;
    Ok(())
}
