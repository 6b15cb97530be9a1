//! Removing jobs whose time is over: whole days where that can be, and some rows at a time elsewhere.

use std::collections::{BTreeMap, HashSet};

use uuid::Uuid;

use super::{
    connections::{Connections, Failure, Kind, Transaction},
    days::{self, Days, Left},
    remove::{delete_belongings, delete_parts},
    row::Fields,
    write::{Change, add_to_tallies},
};
use crate::{
    model::{JobId, Status, Timestamp},
    store::{Forgotten, Outdated},
};

/// Log lines that are removed at once, before their jobs are: a statement has seconds at most, and a job any number of lines.
const LOGS_MAX: i64 = 5_000;

/// A walk over the finished jobs in order of id that stops at the beginning of each day that is old enough to go whole.
pub(super) async fn forget(
    writers: &Connections,
    outdated: Outdated,
    after: Option<JobId>,
    (limit, slot): (u32, i32),
) -> Result<Forgotten, Failure> {
    let days = Days::read(writers).await?;
    let mut forgotten = Forgotten { jobs: 0, next: None };
    if after.is_none() {
        // What a node began and did not end, because it died or others were in the way.
        for day in &days.leaving {
            forgotten.jobs += days::finish(writers, *day, outdated.finished_before, slot).await?;
        }
    }
    let from = Uuid::from_u128(after.map_or(0, |id| id.0.as_u128().saturating_add(1)));
    let old = days.old(outdated.finished_before);
    if let Some(day) = old.iter().find(|day| day.first_id() == from) {
        let (left, jobs) = days::leave(writers, *day, outdated, slot).await?;
        forgotten.jobs += jobs;
        if left != Left::Needed {
            if left == Left::Gone {
                forgotten.jobs += days::finish(writers, *day, outdated.finished_before, slot).await?;
            }
            forgotten.next = Some(before(day.plus(1).first_id()));
            return Ok(forgotten);
        }
    }
    // Within an old day at once. Behind the last of them a day will be old soon, and its jobs may wait for that.
    let is_in_old = old.iter().any(|day| day.first_id() <= from && from < day.plus(1).first_id());
    let finished_before =
        if is_in_old { outdated.finished_before } else { outdated.finished_before.minus(outdated.leisure) };
    let next_day = old.iter().map(|day| day.first_id()).find(|first| *first > from);
    let end = if is_in_old { old.iter().map(|day| day.plus(1).first_id()).find(|end| *end > from) } else { None };
    let until = [next_day, end].into_iter().flatten().min();
    let until = until.unwrap_or(JobId::first_made_at(finished_before).0);
    let jobs_max = usize::try_from(outdated.jobs_max.saturating_sub(forgotten.jobs)).unwrap_or(usize::MAX);
    let rows = old_rows(writers, (from, until), finished_before, limit).await?;
    let is_full = rows.len() >= limit as usize;
    forgotten.next = match rows.last() {
        Some(last) if is_full => Some(JobId(last.id)),
        _ => (next_day.is_some() || end.is_some()).then(|| before(until)),
    };
    let ids: Vec<Uuid> = rows.iter().filter(|row| row.is_outdated).map(|row| row.id).take(jobs_max).collect();
    forgotten.jobs += forget_jobs(writers, &ids, finished_before, slot).await?;
    Ok(forgotten)
}

/// The last id before this one.
fn before(id: Uuid) -> JobId {
    JobId(Uuid::from_u128(id.as_u128().saturating_sub(1)))
}

struct OldRow {
    id: Uuid,
    is_outdated: bool,
}

async fn old_rows(
    writers: &Connections,
    (from, until): (Uuid, Uuid),
    finished_before: Timestamp,
    limit: u32,
) -> Result<Vec<OldRow>, Failure> {
    let query = sqlx::query(
        "-- name old_rows
        SELECT id, coalesce(parent_id IS NULL AND finished_at < $3, false) AND NOT (
            broadcast AND EXISTS (SELECT 1 FROM errand.jobs AS j WHERE j.parent_id = f.id)
        ) AS is_outdated FROM errand.finished AS f WHERE id >= $1 AND id < $2 ORDER BY id LIMIT $4",
    );
    let query = query.bind(from).bind(until).bind(finished_before.0).bind(i64::from(limit));
    let mut transaction = writers.begin(Kind::Read).await?;
    let rows = transaction.rows(query).await?;
    transaction.commit().await?;
    let old_row = |row| {
        let row = Fields::new("errand.finished", "id", row);
        Ok(OldRow { id: row.get("id")?, is_outdated: row.get("is_outdated")? })
    };
    rows.iter().map(old_row).collect()
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
        changes.entry(row.text("channel")?).or_default().end(status, -1);
    }
    if !parents.is_empty() {
        let parts = delete_parts(&mut transaction, &parents).await?;
        delete_belongings(&mut transaction, &parts).await?;
    }
    delete_belongings_between(&mut transaction, (*first, *last), &gone).await?;
    add_to_tallies(&mut transaction, &changes, slot).await?;
    transaction.commit().await?;
    Ok(gone.len() as u64)
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

/// Like [`delete_belongings`], for ids that lie close together.
async fn delete_belongings_between(
    transaction: &mut Transaction,
    (first, last): (Uuid, Uuid),
    ids: &[Uuid],
) -> Result<(), Failure> {
    let statements = [
        "-- name forget_events
        DELETE FROM errand.late_events WHERE job_id >= $1 AND job_id <= $2 AND job_id = ANY($3)",
        "-- name forget_last_logs
        DELETE FROM errand.logs WHERE job_id >= $1 AND job_id <= $2 AND job_id = ANY($3)",
        "-- name forget_keys
        DELETE FROM errand.keys WHERE job_id >= $1 AND job_id <= $2 AND job_id = ANY($3)",
    ];
    for statement in statements {
        transaction.execute(sqlx::query(statement).bind(first).bind(last).bind(ids)).await?;
    }
    Ok(())
}
