//! Removing jobs whose time is over: whole days where that can be, and some rows at a time elsewhere.

use uuid::Uuid;

use super::{
    connections::{Connections, Failure, Kind},
    days::{self, Days, Left},
    remove::forget_jobs,
    row::Fields,
};
use crate::{
    model::{JobId, Timestamp},
    store::{Forgotten, Outdated},
};

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
            forgotten.next = Some(JobId(day.plus(1).first_id()).previous());
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
        _ => (next_day.is_some() || end.is_some()).then(|| JobId(until).previous()),
    };
    let ids: Vec<Uuid> = rows.iter().filter(|row| row.is_outdated).map(|row| row.id).take(jobs_max).collect();
    forgotten.jobs += forget_jobs(writers, &ids, finished_before, slot).await?;
    Ok(forgotten)
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
