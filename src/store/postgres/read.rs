//! Reads that the engine makes while it runs jobs: each is a walk along an index of the unfinished jobs.
//!
//! Statuses are spelt out in the statements (0 is pending, 1 running), because a partial index serves only a statement that
//! repeats its condition.

use std::{collections::HashMap, sync::Arc};

use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{
    columns::job_columns,
    connections::{Connections, Failure, Kind, Statement, Transaction},
    events,
    row::{self, Fields},
    text::stored,
};
use crate::{
    model::{Job, JobEvent, JobId, Parts, Status, Timestamp},
    store::{Agenda, Due, Ready, StoreError},
};

const LIVE: &str = "errand.jobs";
const FINISHED: &str = "errand.finished";

async fn rows(readers: &Connections, query: Statement<'_>) -> Result<Vec<PgRow>, StoreError> {
    let mut transaction = readers.begin(Kind::Read).await?;
    let rows = transaction.rows(query).await?;
    transaction.commit().await?;
    Ok(rows)
}

async fn live_jobs(readers: &Connections, query: Statement<'_>) -> Result<Vec<Job>, StoreError> {
    rows(readers, query).await?.iter().map(|row| row::job(LIVE, row)).collect()
}

pub(super) async fn load(readers: &Connections, ids: &[JobId]) -> Result<Vec<Option<Job>>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut transaction = readers.begin(Kind::Read).await?;
    let mut found = HashMap::with_capacity(ids.len());
    let statement = concat!("-- name load_jobs\nSELECT ", job_columns!(), " FROM errand.jobs WHERE id = ANY($1)");
    load_from(&mut transaction, (LIVE, statement), ids.to_vec(), &mut found).await?;
    // A job that ended in between is found, because it is among the finished ones as soon as it has left the others.
    let missing: Vec<JobId> = ids.iter().filter(|id| !found.contains_key(id)).copied().collect();
    let statement =
        concat!("-- name load_finished\nSELECT ", job_columns!(), " FROM errand.finished WHERE id = ANY($1)");
    load_from(&mut transaction, (FINISHED, statement), missing, &mut found).await?;
    transaction.commit().await?;
    Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
}

async fn load_from(
    transaction: &mut Transaction,
    (table, statement): (&'static str, &'static str),
    ids: Vec<JobId>,
    found: &mut HashMap<JobId, Job>,
) -> Result<(), Failure> {
    if ids.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
    for row in transaction.rows(sqlx::query(statement).bind(ids)).await? {
        let job = row::job(table, &row)?;
        found.insert(job.id, job);
    }
    Ok(())
}

pub(super) async fn events(readers: &Connections, job_id: JobId, limit: u32) -> Result<Vec<JobEvent>, StoreError> {
    let mut transaction = readers.begin(Kind::Read).await?;
    let query = sqlx::query(
        "-- name events
        SELECT id, channel, event_seq, events FROM errand.jobs WHERE id = $1
        UNION ALL SELECT id, channel, event_seq, events FROM errand.finished WHERE id = $1",
    );
    let rows = transaction.rows(query.bind(job_id.0)).await?;
    let Some(row) = rows.first() else {
        transaction.commit().await?;
        return Ok(Vec::new());
    };
    let row = Fields::new(LIVE, "id", row);
    let channel = row.text("channel")?;
    let mut events = events::parse(row.get("events")?, job_id, &channel).ok_or_else(|| row.corrupt("events"))?;
    if row.number("event_seq")? > events::ON_ROW_MAX {
        let query = sqlx::query(
            "-- name late_events
            SELECT job_id, line FROM errand.late_events WHERE job_id = $1 ORDER BY seq DESC LIMIT $2",
        );
        let late = transaction.rows(query.bind(job_id.0).bind(i64::from(limit))).await?;
        for row in late.iter().rev() {
            let row = Fields::new("errand.late_events", "job_id", row);
            events.extend(events::parse(row.get("line")?, job_id, &channel).ok_or_else(|| row.corrupt("line"))?);
        }
    }
    transaction.commit().await?;
    let surplus = events.len().saturating_sub(limit as usize);
    events.drain(..surplus);
    Ok(events)
}

pub(super) async fn ready(
    readers: &Connections,
    channel: &str,
    now: Timestamp,
    after: Option<&Ready>,
    limit: u32,
) -> Result<Vec<Ready>, StoreError> {
    // Priority after priority, each a range of the index that ends at `now`: a scan of the whole channel would read all jobs
    // that wait for a later time, too. The walk from priority to priority is in order, so it may stop at the limit.
    let query = sqlx::query(
        "-- name ready
        WITH RECURSIVE priorities AS (
            (SELECT priority FROM errand.jobs
            WHERE status = 0 AND channel = $1 AND priority <= $3 ORDER BY priority DESC LIMIT 1)
            UNION ALL
            SELECT (SELECT j.priority FROM errand.jobs AS j
                WHERE j.status = 0 AND j.channel = $1 AND j.priority < p.priority ORDER BY j.priority DESC LIMIT 1)
            FROM priorities AS p WHERE p.priority IS NOT NULL
        )
        SELECT r.* FROM priorities AS p CROSS JOIN LATERAL (
            SELECT j.id, j.channel, j.priority, j.ready_at FROM errand.jobs AS j
            WHERE j.status = 0 AND NOT j.broadcast AND j.channel = $1 AND j.priority = p.priority
                AND j.ready_at <= $2
                AND (j.ready_at, j.id) > (CASE WHEN p.priority = $3 THEN $4 ELSE $6 END, $5)
            ORDER BY j.ready_at, j.id LIMIT $7
        ) AS r LIMIT $7",
    );
    let query = query.bind(stored(channel)).bind(now.0);
    let query = match after {
        Some(after) => query.bind(after.priority).bind(after.ready_at.0).bind(after.id.0),
        None => query.bind(i32::MAX).bind(i64::MIN).bind(Uuid::nil()),
    };
    let query = query.bind(i64::MIN).bind(i64::from(limit));
    rows(readers, query).await?.iter().map(row::ready).collect()
}

pub(super) async fn pending_channels(readers: &Connections) -> Result<Vec<Arc<str>>, StoreError> {
    // From channel to channel along the index, not through each channel's jobs.
    let query = sqlx::query(
        "-- name pending_channels
        WITH RECURSIVE channels AS (
            (SELECT channel FROM errand.jobs WHERE status = 0 ORDER BY channel LIMIT 1)
            UNION ALL
            SELECT (SELECT j.channel FROM errand.jobs AS j
                WHERE j.status = 0 AND j.channel > c.channel ORDER BY j.channel LIMIT 1)
            FROM channels AS c WHERE c.channel IS NOT NULL
        )
        SELECT channel FROM channels WHERE channel IS NOT NULL ORDER BY channel",
    );
    rows(readers, query).await?.iter().map(|row| Fields::new(LIVE, "channel", row).text("channel")).collect()
}

pub(super) async fn agenda(readers: &Connections, now: Timestamp) -> Result<Agenda, StoreError> {
    // Each is the first entry of an index.
    let statement = format!(
        "-- name agenda
        SELECT
            (SELECT ready_at FROM errand.jobs WHERE status = 0 AND NOT broadcast AND ready_at > {}
             ORDER BY ready_at, id LIMIT 1) AS ready,
            (SELECT expires_at FROM errand.jobs WHERE status = 0 ORDER BY expires_at, id LIMIT 1) AS expiry,
            (SELECT overrun_at FROM errand.jobs WHERE overrun_at IS NOT NULL ORDER BY overrun_at, id LIMIT 1) AS overrun,
            (SELECT ready_at FROM errand.jobs WHERE broadcast AND status = 0 ORDER BY ready_at, id LIMIT 1) AS broadcast,
            (SELECT ready_at FROM errand.jobs WHERE broadcast AND status = 1 ORDER BY ready_at, id LIMIT 1) AS parent",
        now.0
    );
    let row = readers.glance(&statement).await?;
    let row = Fields::new(LIVE, "id", &row);
    Ok(Agenda {
        ready: row.time_or_null("ready")?,
        expiry: row.time_or_null("expiry")?,
        overrun: row.time_or_null("overrun")?,
        broadcast: row.time_or_null("broadcast")?,
        parent: row.time_or_null("parent")?,
    })
}

pub(super) async fn due_between(
    readers: &Connections,
    after: Timestamp,
    until: Timestamp,
    limit: u32,
) -> Result<Vec<Ready>, StoreError> {
    let query = sqlx::query(
        "-- name due_between
        SELECT id, channel, priority, ready_at FROM errand.jobs
        WHERE status = 0 AND NOT broadcast AND ready_at > $1 AND ready_at <= $2 ORDER BY ready_at, id LIMIT $3",
    );
    let query = query.bind(after.0).bind(until.0).bind(i64::from(limit));
    rows(readers, query).await?.iter().map(row::ready).collect()
}

pub(super) async fn due(readers: &Connections, due: Due, now: Timestamp, limit: u32) -> Result<Vec<Job>, StoreError> {
    let statement = match due {
        Due::Expiry => concat!(
            "-- name due_expiry\nSELECT ",
            job_columns!(),
            " FROM errand.jobs WHERE status = 0 AND expires_at <= $1 ORDER BY expires_at, id LIMIT $2"
        ),
        Due::Overrun => concat!(
            "-- name due_overrun\nSELECT ",
            job_columns!(),
            " FROM errand.jobs WHERE overrun_at <= $1 ORDER BY overrun_at, id LIMIT $2"
        ),
        Due::Broadcast => concat!(
            "-- name due_broadcast\nSELECT ",
            job_columns!(),
            " FROM errand.jobs WHERE broadcast AND status = 0 AND ready_at <= $1 ORDER BY ready_at, id LIMIT $2"
        ),
        Due::Parent => concat!(
            "-- name due_parent\nSELECT ",
            job_columns!(),
            " FROM errand.jobs WHERE broadcast AND status = 1 ORDER BY ready_at, id LIMIT $1"
        ),
    };
    let query = sqlx::query(statement);
    let query = if due == Due::Parent { query } else { query.bind(now.0) };
    live_jobs(readers, query.bind(i64::from(limit))).await
}

pub(super) async fn running(readers: &Connections, after: Option<JobId>, limit: u32) -> Result<Vec<Job>, StoreError> {
    let Some(first) = after.map_or(Some(0), |id| id.0.as_u128().checked_add(1)) else { return Ok(Vec::new()) };
    let statement = concat!(
        "-- name running\nSELECT ",
        job_columns!(),
        " FROM errand.jobs WHERE status = 1 AND NOT broadcast AND id >= $1 ORDER BY id LIMIT $2"
    );
    live_jobs(readers, sqlx::query(statement).bind(Uuid::from_u128(first)).bind(i64::from(limit))).await
}

pub(super) async fn parts(readers: &Connections, parent_id: JobId) -> Result<Parts, StoreError> {
    let query = sqlx::query(
        "-- name parts
        SELECT status, count(*) AS jobs FROM (
            SELECT status FROM errand.jobs WHERE parent_id = $1
            UNION ALL SELECT status FROM errand.finished WHERE parent_id = $1
        ) AS parts GROUP BY status",
    );
    let mut parts = Parts::default();
    for row in rows(readers, query.bind(parent_id.0)).await? {
        let row = Fields::new(FINISHED, "status", &row);
        let jobs = u32::try_from(row.count("jobs")?).unwrap_or(u32::MAX);
        parts.total += jobs;
        match row.coded("status")? {
            Status::Pending | Status::Running => {}
            Status::Completed => parts.completed = jobs,
            Status::Failed => parts.failed = jobs,
            Status::Canceled => parts.canceled = jobs,
            Status::Expired => parts.expired = jobs,
        }
    }
    Ok(parts)
}

pub(super) async fn unfinished_parts(
    readers: &Connections,
    parent_id: JobId,
    limit: u32,
) -> Result<Vec<Job>, StoreError> {
    let statement = concat!(
        "-- name unfinished_parts\nSELECT ",
        job_columns!(),
        " FROM errand.jobs WHERE parent_id = $1 ORDER BY id LIMIT $2"
    );
    live_jobs(readers, sqlx::query(statement).bind(parent_id.0).bind(i64::from(limit))).await
}

pub(super) async fn jobs_before(readers: &Connections, job: &Job, now: Timestamp) -> Result<u64, StoreError> {
    // Jobs whose run time has come are equal in it, so that among them priority decides.
    let query = sqlx::query(
        "-- name jobs_before
        SELECT count(*) AS jobs FROM errand.jobs
        WHERE status = 0 AND NOT broadcast AND channel = $1
            AND (greatest(ready_at, $2), -priority::bigint, ready_at, id) < (greatest($3, $2), -$4::bigint, $3, $5)",
    );
    let query = query.bind(stored(&job.channel)).bind(now.0).bind(job.ready_at.0);
    let query = query.bind(i64::from(job.priority)).bind(job.id.0);
    let mut transaction = readers.begin(Kind::Read).await?;
    let row = transaction.row(query).await?;
    transaction.commit().await?;
    Fields::new(LIVE, "id", &row).count("jobs")
}
