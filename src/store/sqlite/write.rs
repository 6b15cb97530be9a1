//! Writes: each call is one transaction, and each kind of change in it one statement for many rows.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use sqlx::{QueryBuilder, Sqlite, SqliteConnection, SqlitePool, Transaction};

use super::{
    row::{self, Fields},
    unavailable,
};
use crate::{
    model::{EventKind, JobId, Status, Step, log::JobLog},
    store::{Outcome, StoreError},
};

/// The most rows in one statement. A job has 36 values, so this takes 9,216 of the 32,766 that SQLite allows.
pub(super) const ROWS_MAX: usize = 256;

/// What a step that does not apply means for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Each,
    AllOrNothing,
}

pub(super) async fn commit(writer: &SqlitePool, steps: &[Step], mode: Mode) -> Result<Vec<Outcome>, StoreError> {
    if steps.is_empty() {
        return Ok(Vec::new());
    }
    let mut transaction = begin(writer).await?;
    let mut outcomes = Vec::with_capacity(steps.len());
    for round in rounds(steps) {
        outcomes.extend(apply(&mut transaction, round).await?);
    }
    let all_applied = outcomes.iter().all(|outcome| *outcome == Outcome::Applied);
    if mode == Mode::AllOrNothing && !all_applied {
        transaction.rollback().await.map_err(unavailable)?;
        return Ok(outcomes);
    }
    let applied: Vec<&Step> = steps
        .iter()
        .zip(&outcomes)
        .filter(|(_, outcome)| **outcome == Outcome::Applied)
        .map(|(step, _)| step)
        .collect();
    insert_events(&mut transaction, &applied).await?;
    add_to_totals(&mut transaction, &Ended::by(&applied)).await?;
    transaction.commit().await.map_err(unavailable)?;
    Ok(outcomes)
}

/// A transaction that has the write lock from the start: one that took it later could find its reads outdated.
async fn begin(writer: &SqlitePool) -> Result<Transaction<'static, Sqlite>, StoreError> {
    writer.begin_with("BEGIN IMMEDIATE").await.map_err(unavailable)
}

/// Cuts a batch, in order, into runs that name each job at most once: one statement can change a row only once.
fn rounds(steps: &[Step]) -> Vec<&[Step]> {
    let mut rounds = Vec::new();
    let mut seen = HashSet::with_capacity(steps.len());
    let mut start = 0;
    for (index, step) in steps.iter().enumerate() {
        if !seen.insert(step.job.id) {
            rounds.push(&steps[start..index]);
            seen.clear();
            seen.insert(step.job.id);
            start = index;
        }
    }
    rounds.push(&steps[start..]);
    rounds
}

/// Cuts rows into chunks whose lengths are powers of two, so that few distinct statements exist and all stay prepared.
pub(super) fn chunks<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let length = 1 << rows.len().min(ROWS_MAX).checked_ilog2()?;
        let (chunk, rest) = rows.split_at(length);
        rows = rest;
        Some(chunk)
    })
}

/// Writes the jobs of one round and tells what became of each step.
async fn apply(connection: &mut SqliteConnection, round: &[Step]) -> Result<Vec<Outcome>, StoreError> {
    let (created, changed): (Vec<&Step>, Vec<&Step>) = round.iter().partition(|step| step.expected.is_none());
    let mut applied = HashSet::with_capacity(round.len());
    for chunk in chunks(&created) {
        insert_jobs(connection, chunk, &mut applied).await?;
    }
    for chunk in chunks(&changed) {
        update_jobs(connection, chunk, &mut applied).await?;
    }
    let refused: Vec<&Step> = created.iter().copied().filter(|step| !applied.contains(&step.job.id)).collect();
    let holders = key_holders(connection, &refused).await?;
    // Jobs that this round made, but behind the step at hand: to that step, they do not hold their keys yet.
    let mut later: HashSet<JobId> = created.iter().map(|step| step.job.id).filter(|id| applied.contains(id)).collect();
    let outcome = |step: &Step| {
        if applied.contains(&step.job.id) {
            later.remove(&step.job.id);
            return Outcome::Applied;
        }
        let key = step.job.idempotency_key.as_ref().filter(|_| step.expected.is_none());
        let holder = key.and_then(|key| holders.get(&(step.job.owner.clone(), key.clone())));
        let holder = holder.filter(|id| !later.contains(id));
        holder.map_or(Outcome::Stale, |id| Outcome::Duplicate(*id))
    };
    Ok(round.iter().map(outcome).collect())
}

async fn insert_jobs(
    connection: &mut SqliteConnection,
    steps: &[&Step],
    applied: &mut HashSet<JobId>,
) -> Result<(), StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("-- name insert_jobs\nINSERT INTO jobs (");
    query.push(row::JOB_COLUMNS).push(") ");
    query.push_values(steps, |mut row, step| row::push_job(&mut row, &step.job));
    query.push(" ON CONFLICT DO NOTHING RETURNING id");
    collect_ids(connection, query, applied).await
}

async fn update_jobs(
    connection: &mut SqliteConnection,
    steps: &[&Step],
    applied: &mut HashSet<JobId>,
) -> Result<(), StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("-- name update_jobs\nUPDATE jobs SET ");
    query.push(row::JOB_CHANGES).push(" FROM (");
    query.push_values(steps, |mut row, step| row::push_change(&mut row, step.expected.unwrap_or(0), &step.job));
    query.push(") AS v WHERE jobs.id = v.column1 AND jobs.version = v.column2 RETURNING id");
    collect_ids(connection, query, applied).await
}

async fn collect_ids(
    connection: &mut SqliteConnection,
    mut query: QueryBuilder<Sqlite>,
    ids: &mut HashSet<JobId>,
) -> Result<(), StoreError> {
    for row in query.build().fetch_all(connection).await.map_err(unavailable)? {
        ids.insert(Fields::new("jobs", "id", &row).id("id")?);
    }
    Ok(())
}

/// The jobs that hold the idempotency keys of steps that were not inserted.
async fn key_holders(
    connection: &mut SqliteConnection,
    refused: &[&Step],
) -> Result<HashMap<(Arc<str>, Arc<str>), JobId>, StoreError> {
    let keys: Vec<(Arc<str>, Arc<str>)> = refused
        .iter()
        .filter_map(|step| step.job.idempotency_key.clone().map(|key| (step.job.owner.clone(), key)))
        .collect();
    let mut holders = HashMap::with_capacity(keys.len());
    for chunk in chunks(&keys) {
        let mut query =
            QueryBuilder::<Sqlite>::new("-- name key_holders\nSELECT jobs.id, jobs.owner, jobs.idempotency_key FROM (");
        query.push_values(chunk, |mut row, (owner, key)| {
            row.push_bind(owner.clone()).push_bind(key.clone());
        });
        // A cross join keeps the order: each key is looked up, never each job.
        query.push(
            ") AS v CROSS JOIN jobs ON jobs.owner = v.column1 AND jobs.idempotency_key = v.column2 \
             WHERE jobs.idempotency_key IS NOT NULL",
        );
        for row in query.build().fetch_all(&mut *connection).await.map_err(unavailable)? {
            let row = Fields::new("jobs", "id", &row);
            holders.insert((row.text("owner")?, row.text("idempotency_key")?), row.id("id")?);
        }
    }
    Ok(holders)
}

async fn insert_events(connection: &mut SqliteConnection, applied: &[&Step]) -> Result<(), StoreError> {
    let events: Vec<_> = applied.iter().filter_map(|step| step.event.as_ref()).collect();
    for chunk in chunks(&events) {
        let mut query = QueryBuilder::<Sqlite>::new("-- name insert_events\nINSERT INTO job_events (");
        query.push(row::EVENT_COLUMNS).push(") ");
        query.push_values(chunk, |mut row, event| row::push_event(&mut row, event));
        query.build().execute(&mut *connection).await.map_err(unavailable)?;
    }
    Ok(())
}

/// How many jobs that are no parts came to which end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ended {
    completed: i64,
    failed: i64,
    canceled: i64,
    expired: i64,
}

impl Ended {
    /// A terminal job takes only one more step, the note that it was published anew, so any other step to a terminal status
    /// is that job's end.
    fn by(applied: &[&Step]) -> Ended {
        let mut ended = Ended::default();
        for step in applied {
            let is_note = step.event.as_ref().is_some_and(|event| event.kind == EventKind::Retry);
            if step.job.parent_id.is_none() && !is_note {
                ended.add(step.job.status, 1);
            }
        }
        ended
    }

    fn add(&mut self, status: Status, jobs: i64) {
        match status {
            Status::Pending | Status::Running => {}
            Status::Completed => self.completed += jobs,
            Status::Failed => self.failed += jobs,
            Status::Canceled => self.canceled += jobs,
            Status::Expired => self.expired += jobs,
        }
    }
}

async fn add_to_totals(connection: &mut SqliteConnection, ended: &Ended) -> Result<(), StoreError> {
    if *ended == Ended::default() {
        return Ok(());
    }
    let query = sqlx::query(
        "-- name add_to_totals
        UPDATE totals
        SET completed = completed + ?, failed = failed + ?, canceled = canceled + ?, expired = expired + ?",
    );
    let query = query.bind(ended.completed).bind(ended.failed).bind(ended.canceled).bind(ended.expired);
    query.execute(connection).await.map_err(unavailable)?;
    Ok(())
}

pub(super) async fn append_logs(writer: &SqlitePool, logs: &[JobLog]) -> Result<(), StoreError> {
    if logs.is_empty() {
        return Ok(());
    }
    let mut transaction = begin(writer).await?;
    for chunk in chunks(logs) {
        let mut query = QueryBuilder::<Sqlite>::new("-- name append_logs\nINSERT INTO job_logs (");
        query.push(row::LOG_COLUMNS).push(") SELECT * FROM (");
        query.push_values(chunk, |mut row, log| row::push_log(&mut row, log));
        query.push(") AS v WHERE EXISTS (SELECT 1 FROM jobs WHERE jobs.id = v.column1)");
        query.build().execute(&mut *transaction).await.map_err(unavailable)?;
    }
    transaction.commit().await.map_err(unavailable)
}

pub(super) async fn delete(writer: &SqlitePool, id: JobId, version: u32) -> Result<bool, StoreError> {
    let mut transaction = begin(writer).await?;
    let deleted = sqlx::query(
        "-- name delete_job
        DELETE FROM jobs WHERE id = ? AND version = ? RETURNING id, status, parent_id",
    )
    .bind(id.as_bytes().as_slice())
    .bind(i64::from(version))
    .fetch_optional(&mut *transaction)
    .await
    .map_err(unavailable)?;
    let Some(deleted) = deleted else { return Ok(false) };
    let deleted = Fields::new("jobs", "id", &deleted);
    if deleted.id_or_null("parent_id")?.is_none() {
        let mut ended = Ended::default();
        ended.add(deleted.coded("status")?, -1);
        add_to_totals(&mut transaction, &ended).await?;
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
        sqlx::query(statement).bind(id.as_bytes().as_slice()).execute(&mut *transaction).await.map_err(unavailable)?;
    }
    transaction.commit().await.map_err(unavailable)?;
    Ok(true)
}

/// Writes what is there already, which takes the same way to the disk as any other write.
pub(super) async fn ping(writer: &SqlitePool) -> Result<(), StoreError> {
    let query = sqlx::query(
        "-- name ping_write
        UPDATE totals SET completed = completed",
    );
    query.execute(writer).await.map_err(unavailable)?;
    Ok(())
}
