//! Reads that the engine makes while it runs jobs: each is served by an index of the schema.
//!
//! Statuses are spelt out in the statements (0 is pending, 1 running), because SQLite uses a partial index only where the
//! statement repeats its condition.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use sqlx::{QueryBuilder, Sqlite, SqlitePool, sqlite::SqliteRow};

use super::{
    row::{self, Fields},
    unavailable,
    write::chunks,
};
use crate::{
    model::{Job, JobEvent, JobId, Parts, Status, Timestamp},
    store::{Agenda, Due, Ready, StoreError, Tally},
};

pub(super) async fn load(readers: &SqlitePool, ids: &[JobId]) -> Result<Vec<Option<Job>>, StoreError> {
    let mut found = HashMap::with_capacity(ids.len());
    for chunk in chunks(ids) {
        let mut query = QueryBuilder::<Sqlite>::new("-- name load_jobs\nSELECT * FROM jobs WHERE id IN (");
        let mut values = query.separated(", ");
        for id in chunk {
            values.push_bind(id.as_bytes().as_slice());
        }
        query.push(")");
        for row in query.build().fetch_all(readers).await.map_err(unavailable)? {
            let job = row::job(&row)?;
            found.insert(job.id, job);
        }
    }
    Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
}

pub(super) async fn events(readers: &SqlitePool, job_id: JobId, limit: u32) -> Result<Vec<JobEvent>, StoreError> {
    let query = sqlx::query(
        "-- name events
        SELECT * FROM job_events WHERE job_id = ? ORDER BY seq DESC LIMIT ?",
    );
    let query = query.bind(job_id.as_bytes().as_slice()).bind(i64::from(limit));
    let rows = query.fetch_all(readers).await.map_err(unavailable)?;
    rows.iter().rev().map(row::event).collect()
}

pub(super) async fn ready(
    readers: &SqlitePool,
    channel: &str,
    now: Timestamp,
    after: Option<&Ready>,
    limit: u32,
) -> Result<Vec<Ready>, StoreError> {
    let Some(after) = after else {
        let query = sqlx::query(
            "-- name ready
            SELECT id, channel, priority, ready_at FROM jobs
            WHERE status = 0 AND broadcast = 0 AND channel = ? AND ready_at <= ?
            ORDER BY priority DESC, ready_at, id LIMIT ?",
        );
        let query = query.bind(channel).bind(now.0).bind(i64::from(limit));
        return collect(query.fetch_all(readers).await, row::ready);
    };
    // Two statements, because an index can be entered at one place only: the rest of this priority, then the lower ones.
    let query = sqlx::query(
        "-- name ready_of_same_priority
        SELECT id, channel, priority, ready_at FROM jobs
        WHERE status = 0 AND broadcast = 0 AND channel = ? AND priority = ? AND (ready_at, id) > (?, ?) AND ready_at <= ?
        ORDER BY ready_at, id LIMIT ?",
    );
    let query = query.bind(channel).bind(after.priority).bind(after.ready_at.0).bind(after.id.as_bytes().as_slice());
    let query = query.bind(now.0).bind(i64::from(limit));
    let mut ready = collect(query.fetch_all(readers).await, row::ready)?;
    let missing = i64::from(limit) - i64::try_from(ready.len()).unwrap_or(i64::MAX);
    if missing > 0 {
        let query = sqlx::query(
            "-- name ready_of_lower_priority
            SELECT id, channel, priority, ready_at FROM jobs
            WHERE status = 0 AND broadcast = 0 AND channel = ? AND priority < ? AND ready_at <= ?
            ORDER BY priority DESC, ready_at, id LIMIT ?",
        );
        let query = query.bind(channel).bind(after.priority).bind(now.0).bind(missing);
        ready.extend(collect(query.fetch_all(readers).await, row::ready)?);
    }
    Ok(ready)
}

pub(super) async fn pending_channels(readers: &SqlitePool) -> Result<Vec<Arc<str>>, StoreError> {
    let query = sqlx::query(
        "-- name pending_channels
        SELECT channel, id FROM jobs WHERE status = 0 AND broadcast = 0 GROUP BY channel
        UNION ALL
        SELECT channel, id FROM jobs WHERE status = 0 AND broadcast = 1 AND status < 2 GROUP BY channel",
    );
    let rows = query.fetch_all(readers).await.map_err(unavailable)?;
    let mut channels: Vec<Arc<str>> =
        rows.iter().map(|row| Fields::new("jobs", "id", row).text("channel")).collect::<Result<_, _>>()?;
    channels.sort_unstable();
    channels.dedup();
    Ok(channels)
}

pub(super) async fn agenda(readers: &SqlitePool, now: Timestamp) -> Result<Agenda, StoreError> {
    // Each is the first entry of an index.
    let query = sqlx::query(
        "-- name agenda
        SELECT x'' AS id,
            (SELECT ready_at FROM jobs WHERE status = 0 AND +broadcast = 0 AND ready_at > ?
             ORDER BY ready_at LIMIT 1) AS ready,
            (SELECT MIN(expires_at) FROM jobs WHERE status = 0) AS expiry,
            (SELECT MIN(overrun_at) FROM jobs WHERE overrun_at IS NOT NULL) AS overrun,
            (SELECT MIN(ready_at) FROM jobs WHERE broadcast = 1 AND status < 2 AND status = 0) AS broadcast,
            (SELECT MIN(ready_at) FROM jobs WHERE broadcast = 1 AND status < 2 AND status = 1) AS parent",
    );
    let row = query.bind(now.0).fetch_one(readers).await.map_err(unavailable)?;
    let row = Fields::new("jobs", "id", &row);
    Ok(Agenda {
        ready: row.time_or_null("ready")?,
        expiry: row.time_or_null("expiry")?,
        overrun: row.time_or_null("overrun")?,
        broadcast: row.time_or_null("broadcast")?,
        parent: row.time_or_null("parent")?,
    })
}

pub(super) async fn due_between(
    readers: &SqlitePool,
    after: Timestamp,
    until: Timestamp,
    limit: u32,
) -> Result<Vec<Ready>, StoreError> {
    let query = sqlx::query(
        "-- name due_between
        SELECT id, channel, priority, ready_at FROM jobs
        WHERE status = 0 AND +broadcast = 0 AND ready_at > ? AND ready_at <= ?
        ORDER BY ready_at, id LIMIT ?",
    );
    let query = query.bind(after.0).bind(until.0).bind(i64::from(limit));
    collect(query.fetch_all(readers).await, row::ready)
}

pub(super) async fn due(readers: &SqlitePool, due: Due, now: Timestamp, limit: u32) -> Result<Vec<Job>, StoreError> {
    let statement = match due {
        Due::Expiry => {
            "-- name due_expiry
            SELECT * FROM jobs WHERE status = 0 AND expires_at <= ?1 ORDER BY expires_at, id LIMIT ?2"
        }
        Due::Overrun => {
            "-- name due_overrun
            SELECT * FROM jobs WHERE overrun_at IS NOT NULL AND overrun_at <= ?1 ORDER BY overrun_at, id LIMIT ?2"
        }
        Due::Broadcast => {
            "-- name due_broadcast
            SELECT * FROM jobs WHERE broadcast = 1 AND status < 2 AND status = 0 AND ready_at <= ?1
            ORDER BY ready_at, id LIMIT ?2"
        }
        Due::Parent => {
            "-- name due_parent
            SELECT * FROM jobs WHERE broadcast = 1 AND status < 2 AND status = 1 ORDER BY ready_at, id LIMIT ?2"
        }
    };
    collect(sqlx::query(statement).bind(now.0).bind(i64::from(limit)).fetch_all(readers).await, row::job)
}

pub(super) async fn running(readers: &SqlitePool, after: Option<JobId>, limit: u32) -> Result<Vec<Job>, StoreError> {
    let query = sqlx::query(
        "-- name running
        SELECT * FROM jobs INDEXED BY jobs_running WHERE status = 1 AND broadcast = 0 AND id > ? ORDER BY id LIMIT ?",
    );
    // The empty text sorts before every id.
    let after = after.map(|id| id.as_bytes().to_vec()).unwrap_or_default();
    collect(query.bind(after).bind(i64::from(limit)).fetch_all(readers).await, row::job)
}

pub(super) async fn parts(readers: &SqlitePool, parent_id: JobId) -> Result<Parts, StoreError> {
    let query = sqlx::query(
        "-- name parts
        SELECT id, status, COUNT(*) AS jobs FROM jobs WHERE parent_id = ? GROUP BY status",
    );
    let rows = query.bind(parent_id.as_bytes().as_slice()).fetch_all(readers).await.map_err(unavailable)?;
    let mut parts = Parts::default();
    for row in &rows {
        let row = Fields::new("jobs", "id", row);
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
    readers: &SqlitePool,
    parent_id: JobId,
    limit: u32,
) -> Result<Vec<Job>, StoreError> {
    let query = sqlx::query(
        "-- name unfinished_parts
        SELECT * FROM jobs INDEXED BY jobs_parent WHERE parent_id = ? AND status < 2 ORDER BY id LIMIT ?",
    );
    let query = query.bind(parent_id.as_bytes().as_slice()).bind(i64::from(limit));
    collect(query.fetch_all(readers).await, row::job)
}

pub(super) async fn jobs_before(readers: &SqlitePool, job: &Job, now: Timestamp) -> Result<u64, StoreError> {
    // Jobs whose run time has come are equal in it, so that among them priority decides.
    let query = sqlx::query(
        "-- name jobs_before
        SELECT COUNT(*) AS jobs FROM jobs INDEXED BY jobs_ready
        WHERE status = 0 AND broadcast = 0 AND channel = ?1
            AND (MAX(ready_at, ?2), -priority, ready_at, id) < (MAX(?3, ?2), -?4, ?3, ?5)",
    );
    let query = query.bind(job.channel.clone()).bind(now.0).bind(job.ready_at.0);
    let query = query.bind(job.priority).bind(job.id.as_bytes().as_slice());
    let row = query.fetch_one(readers).await.map_err(unavailable)?;
    Fields::new("jobs", "id", &row).count("jobs")
}

pub(super) async fn tally(readers: &SqlitePool, now: Timestamp) -> Result<Tally, StoreError> {
    // One transaction, so that all counts are of one moment.
    let mut transaction = readers.begin().await.map_err(unavailable)?;
    let query = sqlx::query(
        "-- name tally_channels
        SELECT id, channel, SUM(ready_at <= ?1) AS ready, SUM(ready_at > ?1) AS scheduled, 0 AS running
        FROM jobs WHERE status = 0 AND broadcast = 0 GROUP BY channel
        UNION ALL
        SELECT id, channel, SUM(ready_at <= ?1), SUM(ready_at > ?1), 0
        FROM jobs WHERE broadcast = 1 AND status < 2 AND status = 0 GROUP BY channel
        UNION ALL
        SELECT id, channel, 0, 0, COUNT(*) FROM jobs INDEXED BY jobs_running WHERE status = 1 GROUP BY channel",
    );
    let rows = query.bind(now.0).fetch_all(&mut *transaction).await.map_err(unavailable)?;
    let query = sqlx::query(
        "-- name tally_totals
        SELECT id, completed, failed, canceled, expired FROM totals",
    );
    let totals = query.fetch_one(&mut *transaction).await.map_err(unavailable)?;
    transaction.rollback().await.map_err(unavailable)?;

    let totals = Fields::new("totals", "id", &totals);
    let mut tally = Tally {
        channels: BTreeMap::new(),
        completed: totals.count("completed")?,
        failed: totals.count("failed")?,
        canceled: totals.count("canceled")?,
        expired: totals.count("expired")?,
    };
    for row in &rows {
        let row = Fields::new("jobs", "id", row);
        let channel = row.text("channel")?;
        // The channels of parts.
        if channel.starts_with('@') {
            continue;
        }
        let counts = tally.channels.entry(channel).or_default();
        counts.ready += row.count("ready")?;
        counts.scheduled += row.count("scheduled")?;
        counts.running += row.count("running")?;
    }
    Ok(tally)
}

pub(super) async fn ping(readers: &SqlitePool) -> Result<(), StoreError> {
    let query = sqlx::query(
        "-- name ping_read
        SELECT completed FROM totals",
    );
    query.fetch_one(readers).await.map_err(unavailable)?;
    Ok(())
}

fn collect<T>(
    rows: Result<Vec<SqliteRow>, sqlx::Error>,
    convert: fn(&SqliteRow) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    rows.map_err(unavailable)?.iter().map(convert).collect()
}
