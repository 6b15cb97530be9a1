//! Whole days going at once: dropping a partition costs next to nothing, whatever is in it.
//!
//! A day may go once it holds nothing that must stay: every job in it has ended long enough ago, none of that day is
//! unfinished, and no part in it has a parent that stays. That is read in small pieces, without a lock; what could change it
//! meanwhile is a node whose clock is more than [`MARGIN`] behind. Then
//!
//! 1. the day's idempotency keys are removed, some at a time;
//! 2. its partition is detached and renamed, which locks everybody out for a moment, or not at all where others are at work for
//!    long. From then on its jobs are gone, and nobody but this module touches the table;
//! 3. its logs are dropped, its late events removed, its jobs counted by channel and end;
//! 4. the table is dropped and the tallies are taken down, in one transaction.
//!
//! A node that dies in between leaves a detached table, and the next walk goes on with it. Two nodes that do the same at once
//! take turns under the schema's lock, and the second finds nothing left to do.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{
    columns::job_columns,
    connections::{Connections, Failure, Kind},
    partitions::Day,
    remove::forget_jobs,
    row::Fields,
    schema,
    write::{Change, add_to_tallies},
};
use crate::{
    model::{Status, Timestamp},
    store::Outdated,
};

/// How long after its end a day may still get jobs, from nodes with slow clocks.
const MARGIN: Duration = Duration::from_secs(3_600);
/// Keys, late events and parents that are removed at once.
const ROWS_MAX: i64 = 1_000;
/// Blocks of a table that are read at once: with 8 KiB each, some ten thousand jobs.
const BLOCKS: i64 = 1_024;

/// The days that have a partition of finished jobs, oldest first.
pub(super) struct Days {
    pub attached: Vec<Day>,
    /// Detached, and to be dropped.
    pub leaving: Vec<Day>,
}

impl Days {
    pub async fn read(connections: &Connections) -> Result<Days, Failure> {
        let query = sqlx::query(
            "-- name days
            SELECT c.relname::text AS name FROM pg_class AS c
            WHERE c.relnamespace = 'errand'::regnamespace AND c.relkind = 'r' ORDER BY c.relname",
        );
        let mut transaction = connections.begin(Kind::Read).await?;
        let rows = transaction.rows(query).await?;
        transaction.commit().await?;
        let mut days = Days { attached: Vec::new(), leaving: Vec::new() };
        for row in &rows {
            let name: &str = Fields::new("pg_class", "name", row).get("name")?;
            let day = |prefix| name.strip_prefix(prefix).and_then(Day::of_suffix);
            days.attached.extend(day("finished_"));
            days.leaving.extend(day("leaving_"));
        }
        Ok(days)
    }

    /// Those that nothing comes to any more, if all in them that ended before then may go.
    pub fn old(&self, finished_before: Timestamp) -> Vec<Day> {
        let is_old = |day: &Day| day.plus(1).start().plus(MARGIN) <= finished_before;
        self.attached.iter().copied().filter(is_old).collect()
    }
}

/// What became of a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Its jobs are gone, and its table is for [`finish`].
    Gone,
    /// Others were at work; it may go another time.
    Busy,
    /// It holds something that must stay.
    Needed,
}

/// Lets a day go if it can; tells how many jobs went before that, one by one.
pub(super) async fn leave(
    connections: &Connections,
    day: Day,
    outdated: Outdated,
    slot: i32,
) -> Result<(Left, u64), Failure> {
    let (from, until) = (day.first_id(), day.plus(1).first_id());
    if has_unfinished(connections, from, until).await? {
        return Ok((Left::Needed, 0));
    }
    let Some(jobs) = forget_parents(connections, (from, until), outdated, slot).await? else {
        return Ok((Left::Needed, 0));
    };
    let rest = Outdated { jobs_max: outdated.jobs_max.saturating_sub(jobs), ..outdated };
    let left = match leave_whole(connections, day, rest).await {
        Err(Failure::Conflict(cause)) => {
            tracing::debug!(%cause, day = day.suffix(), "others are at work; the day is dropped another time");
            Left::Busy
        }
        left => left?,
    };
    Ok((left, jobs))
}

async fn leave_whole(connections: &Connections, day: Day, outdated: Outdated) -> Result<Left, Failure> {
    if !may_go(connections, day, outdated).await? {
        return Ok(Left::Needed);
    }
    remove_all(connections, DELETE_KEYS, day.first_id(), day.plus(1).first_id()).await?;
    detach(connections, day).await
}

/// Whether a job of the day has not ended, or a part of one.
async fn has_unfinished(connections: &Connections, from: Uuid, until: Uuid) -> Result<bool, Failure> {
    let mut transaction = connections.begin(Kind::Read).await?;
    let query = sqlx::query(
        "-- name has_unfinished
        SELECT EXISTS (SELECT 1 FROM errand.jobs WHERE id >= $1 AND id < $2)
            OR EXISTS (SELECT 1 FROM errand.jobs
                WHERE parent_id IS NOT NULL AND parent_id >= $1 AND parent_id < $2) AS has_unfinished",
    );
    let row = transaction.row(query.bind(from).bind(until)).await?;
    transaction.commit().await?;
    Ok(Fields::new("errand.jobs", "id", &row).get("has_unfinished")?)
}

/// Removes the day's broadcast jobs that have parts, one by one: parts are younger than their parent, so they may lie in
/// other days. Tells how many, or none where one of them must stay.
async fn forget_parents(
    connections: &Connections,
    (from, until): (Uuid, Uuid),
    outdated: Outdated,
    slot: i32,
) -> Result<Option<u64>, Failure> {
    let mut jobs = 0;
    loop {
        let query = sqlx::query(
            "-- name parents
            SELECT DISTINCT parent_id FROM errand.finished
            WHERE parent_id IS NOT NULL AND parent_id >= $1 AND parent_id < $2 ORDER BY parent_id LIMIT $3",
        );
        let mut transaction = connections.begin(Kind::Read).await?;
        let rows = transaction.rows(query.bind(from).bind(until).bind(ROWS_MAX)).await?;
        transaction.commit().await?;
        let parent = |row| Fields::new("errand.finished", "parent_id", row).get("parent_id");
        let parents: Vec<Uuid> = rows.iter().map(parent).collect::<Result<_, _>>()?;
        if parents.is_empty() {
            return Ok(Some(jobs));
        }
        if jobs + parents.len() as u64 > outdated.jobs_max {
            return Ok(None);
        }
        let gone = forget_jobs(connections, &parents, outdated.finished_before, slot).await?;
        jobs += gone;
        if gone < parents.len() as u64 {
            return Ok(None);
        }
    }
}

/// Whether every job of the day has ended before then, there are no more than may go, and none of them is a part.
async fn may_go(connections: &Connections, day: Day, outdated: Outdated) -> Result<bool, Failure> {
    let table = format!("errand.finished_{}", day.suffix());
    let mut jobs = 0;
    for from in (0..blocks(connections, &table).await?).step_by(BLOCKS as usize) {
        let query = format!(
            "-- name survey_day
            SELECT count(*) AS jobs,
                coalesce(bool_or(parent_id IS NOT NULL OR finished_at IS NULL OR finished_at >= $3), false) AS stays
            FROM {table} WHERE ctid >= $1::text::tid AND ctid < $2::text::tid"
        );
        let query = sqlx::query(AssertSqlSafe(query)).persistent(false).bind(tid(from)).bind(tid(from + BLOCKS));
        let mut transaction = connections.begin(Kind::Read).await?;
        let row = transaction.row(query.bind(outdated.finished_before.0)).await?;
        transaction.commit().await?;
        let row = Fields::new("errand.finished", "id", &row);
        jobs += row.count("jobs")?;
        if jobs > outdated.jobs_max || row.get("stays")? {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn blocks(connections: &Connections, table: &str) -> Result<i64, Failure> {
    let query = sqlx::query(
        "-- name blocks
        SELECT pg_relation_size($1::text::regclass) / current_setting('block_size')::bigint AS blocks",
    );
    let mut transaction = connections.begin(Kind::Read).await?;
    let row = transaction.row(query.bind(table)).await?;
    transaction.commit().await?;
    Ok(Fields::new("pg_class", "blocks", &row).get("blocks")?)
}

/// Where a block begins, as Postgres writes it.
fn tid(block: i64) -> String {
    format!("({block},0)")
}

const DELETE_KEYS: &str = "-- name delete_keys_of_day
    DELETE FROM errand.keys AS k USING (
        SELECT owner, idempotency_key FROM errand.keys WHERE job_id >= $1 AND job_id < $2 ORDER BY job_id LIMIT $3
    ) AS gone WHERE k.owner = gone.owner AND k.idempotency_key = gone.idempotency_key";

const DELETE_EVENTS: &str = "-- name delete_events_of_day
    DELETE FROM errand.late_events AS e USING (
        SELECT job_id, seq FROM errand.late_events WHERE job_id >= $1 AND job_id < $2 ORDER BY job_id, seq LIMIT $3
    ) AS gone WHERE e.job_id = gone.job_id AND e.seq = gone.seq";

async fn remove_all(
    connections: &Connections,
    statement: &'static str,
    from: Uuid,
    until: Uuid,
) -> Result<(), Failure> {
    loop {
        let mut transaction = connections.begin(Kind::Write).await?;
        let rows = transaction.execute(sqlx::query(statement).bind(from).bind(until).bind(ROWS_MAX)).await?;
        transaction.commit().await?;
        if rows == 0 {
            return Ok(());
        }
    }
}

/// Takes the day's table out of the finished jobs.
async fn detach(connections: &Connections, day: Day) -> Result<Left, Failure> {
    let (from, until, suffix) = (day.first_id(), day.plus(1).first_id(), day.suffix());
    let mut transaction = connections.begin(Kind::Write).await?;
    transaction.script(schema::LOCK).await?;
    // Whoever reads or writes finished jobs meanwhile waits behind this, so it must not wait long itself.
    transaction
        .script(
            "-- name lock_finished\nSET LOCAL lock_timeout = 300; LOCK TABLE errand.finished IN ACCESS EXCLUSIVE MODE",
        )
        .await?;
    let query = sqlx::query(
        "-- name may_detach
        SELECT to_regclass('errand.finished_' || $3) IS NOT NULL AS is_there,
            EXISTS (SELECT 1 FROM errand.jobs WHERE id >= $1 AND id < $2) AS has_unfinished",
    );
    let row = transaction.row(query.bind(from).bind(until).bind(&suffix)).await?;
    let row = Fields::new("errand.finished", "is_there", &row);
    if !row.get::<bool>("is_there")? || row.get("has_unfinished")? {
        transaction.roll_back().await?;
        return Ok(Left::Busy);
    }
    let script = format!(
        "-- name detach_day
        ALTER TABLE errand.finished DETACH PARTITION errand.finished_{suffix};
        ALTER TABLE errand.finished_{suffix} RENAME TO leaving_{suffix}"
    );
    transaction.assembled(script).await?;
    transaction.commit().await?;
    Ok(Left::Gone)
}

/// Removes what is left of a day whose table is detached; tells how many jobs it held, or none where others were at work.
pub(super) async fn finish(
    connections: &Connections,
    day: Day,
    finished_before: Timestamp,
    slot: i32,
) -> Result<u64, Failure> {
    match finish_alone(connections, day, finished_before, slot).await {
        Err(Failure::Conflict(cause)) => {
            tracing::debug!(%cause, day = day.suffix(), "others are at work; the day is dropped another time");
            Ok(0)
        }
        finished => finished,
    }
}

async fn finish_alone(
    connections: &Connections,
    day: Day,
    finished_before: Timestamp,
    slot: i32,
) -> Result<u64, Failure> {
    // First, because nothing else tells of them once the day's table is gone.
    drop_logs(connections, day).await?;
    remove_all(connections, DELETE_EVENTS, day.first_id(), day.plus(1).first_id()).await?;
    let count = count(connections, day, finished_before).await?;
    drop_day(connections, day, finished_before, count, slot).await
}

async fn drop_logs(connections: &Connections, day: Day) -> Result<(), Failure> {
    let mut transaction = connections.begin(Kind::Write).await?;
    transaction.script(schema::LOCK).await?;
    let script =
        format!("-- name drop_logs\nSET LOCAL lock_timeout = 300; DROP TABLE IF EXISTS errand.logs_{}", day.suffix());
    transaction.assembled(script).await?;
    transaction.commit().await
}

/// How many jobs of each channel came to which end.
struct Count {
    jobs: u64,
    changes: BTreeMap<Arc<str>, Change>,
    /// Whether there are some that must stay.
    has_others: bool,
}

async fn count(connections: &Connections, day: Day, finished_before: Timestamp) -> Result<Count, Failure> {
    let table = format!("errand.leaving_{}", day.suffix());
    let mut count = Count { jobs: 0, changes: BTreeMap::new(), has_others: false };
    for from in (0..blocks(connections, &table).await?).step_by(BLOCKS as usize) {
        let query = format!(
            "-- name count_day
            SELECT channel, status, parent_id IS NOT NULL AS is_part, finished_at < $3 AS goes, count(*) AS jobs
            FROM {table} WHERE ctid >= $1::text::tid AND ctid < $2::text::tid GROUP BY 1, 2, 3, 4"
        );
        let query = sqlx::query(AssertSqlSafe(query)).persistent(false).bind(tid(from)).bind(tid(from + BLOCKS));
        let mut transaction = connections.begin(Kind::Read).await?;
        let rows = transaction.rows(query.bind(finished_before.0)).await?;
        transaction.commit().await?;
        for row in &rows {
            let row = Fields::new("errand.finished", "channel", row);
            if !row.get::<Option<bool>>("goes")?.unwrap_or(false) {
                count.has_others = true;
            } else if !row.get::<bool>("is_part")? {
                let jobs = row.count("jobs")?;
                let status: Status = row.coded("status")?;
                count.jobs += jobs;
                count
                    .changes
                    .entry(row.text("channel")?)
                    .or_default()
                    .ends
                    .add(status, -i64::try_from(jobs).unwrap_or(0));
            }
        }
    }
    Ok(count)
}

async fn drop_day(
    connections: &Connections,
    day: Day,
    finished_before: Timestamp,
    count: Count,
    slot: i32,
) -> Result<u64, Failure> {
    let suffix = day.suffix();
    let mut transaction = connections.begin(Kind::Write).await?;
    transaction.script(schema::LOCK).await?;
    // A conflict where another node has dropped it since.
    transaction.assembled(format!("-- name lock_day\nLOCK TABLE errand.leaving_{suffix}")).await?;
    if count.has_others {
        // From a node with a very slow clock, after the day was looked through: they go among the rest.
        let columns = job_columns!();
        let script = format!(
            "-- name put_back
            INSERT INTO errand.finished ({columns}, events) SELECT {columns}, events FROM errand.leaving_{suffix}
            WHERE finished_at IS NULL OR finished_at >= {}",
            finished_before.0
        );
        transaction.assembled(script).await?;
    }
    transaction.assembled(format!("-- name drop_day\nDROP TABLE errand.leaving_{suffix}")).await?;
    add_to_tallies(&mut transaction, &count.changes, slot).await?;
    transaction.commit().await?;
    Ok(count.jobs)
}
