//! Removing jobs, with all that belongs to them.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use uuid::Uuid;

use super::{
    connections::{Connections, Failure, Kind, Transaction},
    row::Fields,
    write::{Change, add_to_tallies},
};
use crate::{
    model::{JobId, Status, Timestamp},
    store::StoreError,
};

/// Log lines that are removed at once, before their jobs are: a statement has seconds at most, and a job any number of lines.
const LOGS_MAX: i64 = 5_000;

/// Removes a job that is at `version`, with its parts.
pub(super) async fn delete(writers: &Connections, id: JobId, version: u32, slot: i32) -> Result<bool, StoreError> {
    let mut transaction = writers.begin(Kind::Write).await?;
    let Some((channel, change)) = delete_job(&mut transaction, id, version).await? else {
        transaction.roll_back().await?;
        return Ok(false);
    };
    let mut ids = delete_parts(&mut transaction, &[id.0]).await?;
    ids.push(id.0);
    delete_belongings(&mut transaction, &ids).await?;
    add_to_tallies(&mut transaction, &BTreeMap::from([(channel, change)]), slot).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Its channel, and what its going means for the channel's counts; none where it is not at that version.
async fn delete_job(
    transaction: &mut Transaction,
    id: JobId,
    version: u32,
) -> Result<Option<(Arc<str>, Change)>, Failure> {
    let statements = [
        "-- name delete_job
        DELETE FROM errand.jobs WHERE id = $1 AND version = $2 RETURNING id, channel, status, parent_id",
        "-- name delete_finished
        DELETE FROM errand.finished WHERE id = $1 AND version = $2 RETURNING id, channel, status, parent_id",
    ];
    for statement in statements {
        let rows = transaction.rows(sqlx::query(statement).bind(id.0).bind(i64::from(version))).await?;
        let Some(row) = rows.first() else { continue };
        let row = Fields::new("errand.jobs or errand.finished", "id", row);
        let mut change = Change::default();
        let status: Status = row.coded("status")?;
        if row.id_or_null("parent_id")?.is_none() {
            change.live -= i64::from(!status.is_terminal());
            change.ends.add(status, -1);
        }
        return Ok(Some((row.text("channel")?, change)));
    }
    Ok(None)
}

/// Removes the parts of these broadcast jobs, whether they have ended or not, and tells their ids.
async fn delete_parts(transaction: &mut Transaction, parents: &[Uuid]) -> Result<Vec<Uuid>, Failure> {
    let statements = [
        "-- name delete_parts
        DELETE FROM errand.jobs WHERE parent_id = ANY($1) RETURNING id",
        "-- name delete_finished_parts
        DELETE FROM errand.finished WHERE parent_id = ANY($1) RETURNING id",
    ];
    let mut ids = Vec::new();
    for statement in statements {
        for row in transaction.rows(sqlx::query(statement).bind(parents)).await? {
            ids.push(Fields::new("errand.finished", "id", &row).get("id")?);
        }
    }
    Ok(ids)
}

/// Removes what jobs that are gone leave behind.
async fn delete_belongings(transaction: &mut Transaction, ids: &[Uuid]) -> Result<(), Failure> {
    // The range names the partitions that there is any need to look into.
    let (Some(first), Some(last)) = (ids.iter().min(), ids.iter().max()) else { return Ok(()) };
    let statements = [
        "-- name delete_events
        DELETE FROM errand.late_events WHERE job_id >= $1 AND job_id <= $2 AND job_id = ANY($3)",
        "-- name delete_logs
        DELETE FROM errand.logs WHERE job_id >= $1 AND job_id <= $2 AND job_id = ANY($3)",
        "-- name delete_keys
        DELETE FROM errand.keys WHERE job_id >= $1 AND job_id <= $2 AND job_id = ANY($3)",
    ];
    for statement in statements {
        transaction.execute(sqlx::query(statement).bind(first).bind(last).bind(ids)).await?;
    }
    Ok(())
}

/// Removes those of the jobs, given in order of id, that have ended before then and have no unfinished part, with all that
/// belongs to them. Tells how many.
pub(super) async fn forget_jobs(
    writers: &Connections,
    ids: &[Uuid],
    finished_before: Timestamp,
    slot: i32,
) -> Result<u64, Failure> {
    let (Some(first), Some(last)) = (ids.first(), ids.last()) else { return Ok(0) };
    while forget_logs(writers, ids).await? > 0 {}
    let mut transaction = writers.begin(Kind::Write).await?;
    let unfinished = parents_of_unfinished(&mut transaction, ids).await?;
    let ids: Vec<Uuid> = ids.iter().filter(|id| !unfinished.contains(id)).copied().collect();
    // The range names the partitions that there is any need to look into.
    let query = sqlx::query(
        "-- name forget_jobs
        DELETE FROM errand.finished WHERE id >= $1 AND id <= $2 AND id = ANY($3) AND finished_at < $4
        RETURNING id, channel, status, broadcast",
    );
    let rows = transaction.rows(query.bind(first).bind(last).bind(&ids).bind(finished_before.0)).await?;
    let mut gone: Vec<Uuid> = Vec::with_capacity(rows.len());
    let mut parents: Vec<Uuid> = Vec::new();
    let mut changes: BTreeMap<_, Change> = BTreeMap::new();
    for row in &rows {
        let row = Fields::new("errand.finished", "id", row);
        let (id, status): (Uuid, Status) = (row.get("id")?, row.coded("status")?);
        gone.push(id);
        if row.get("broadcast")? {
            parents.push(id);
        }
        changes.entry(row.text("channel")?).or_default().ends.add(status, -1);
    }
    if !parents.is_empty() {
        gone.extend(delete_parts(&mut transaction, &parents).await?);
    }
    delete_belongings(&mut transaction, &gone).await?;
    add_to_tallies(&mut transaction, &changes, slot).await?;
    transaction.commit().await?;
    Ok(rows.len() as u64)
}

async fn forget_logs(writers: &Connections, ids: &[Uuid]) -> Result<u64, Failure> {
    let query = sqlx::query(
        "-- name forget_logs
        DELETE FROM errand.logs AS l USING (
            SELECT job_id, id FROM errand.logs WHERE job_id >= $1 AND job_id <= $2 AND job_id = ANY($3) LIMIT $4
        ) AS gone WHERE l.job_id = gone.job_id AND l.id = gone.id",
    );
    let mut transaction = writers.begin(Kind::Write).await?;
    let query = query.bind(ids.first()).bind(ids.last()).bind(ids).bind(LOGS_MAX);
    let lines = transaction.execute(query).await?;
    transaction.commit().await?;
    Ok(lines)
}

async fn parents_of_unfinished(transaction: &mut Transaction, ids: &[Uuid]) -> Result<HashSet<Uuid>, Failure> {
    let query = sqlx::query(
        "-- name parents_of_unfinished
        SELECT DISTINCT parent_id FROM errand.jobs WHERE parent_id IS NOT NULL AND parent_id = ANY($1)",
    );
    let rows = transaction.rows(query.bind(ids)).await?;
    Ok(rows
        .iter()
        .map(|row| Fields::new("errand.jobs", "parent_id", row).get("parent_id"))
        .collect::<Result<_, _>>()?)
}
