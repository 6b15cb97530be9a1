//! Idempotency keys: who holds which, and what that makes of new jobs.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    connections::{Failure, Transaction},
    row::Fields,
    text::stored,
    write::column,
};
use crate::{
    model::{JobId, Step},
    store::Outcome,
};

/// An owner and a key.
type Key = (Arc<str>, Arc<str>);

fn key_of(step: &Step) -> Option<Key> {
    step.job.idempotency_key.clone().map(|key| (step.job.owner.clone(), key))
}

/// Judges new jobs, in order, and takes the keys of those that are to be inserted. The answers are these jobs' outcomes, if
/// nobody inserts a job of the same id meanwhile.
///
/// A conflict: somebody took one of the keys meanwhile; a new transaction sees whose it is.
pub(super) async fn claim(transaction: &mut Transaction, creations: &[&Step]) -> Result<Vec<Outcome>, Failure> {
    let existing = existing_ids(transaction, creations).await?;
    let holders = holders(transaction, creations).await?;
    let outcomes = judge(creations, existing, holders);
    let mut taken: Vec<(Key, JobId)> = creations
        .iter()
        .zip(&outcomes)
        .filter(|(_, outcome)| **outcome == Outcome::Applied)
        .filter_map(|(step, _)| Some((key_of(step)?, step.job.id)))
        .collect();
    // Whoever takes several keys takes them in the same order, so that two never wait for each other.
    taken.sort();
    if insert(transaction, &taken).await? < taken.len() as u64 {
        return Err(Failure::Conflict("an idempotency key was taken at the same time".into()));
    }
    Ok(outcomes)
}

async fn existing_ids(transaction: &mut Transaction, creations: &[&Step]) -> Result<HashSet<JobId>, Failure> {
    let query = sqlx::query(
        "-- name existing_ids
        SELECT id FROM errand.jobs WHERE id = ANY($1) UNION ALL SELECT id FROM errand.finished WHERE id = ANY($1)",
    );
    let rows = transaction.rows(query.bind(column(creations, |step| step.job.id.0))).await?;
    Ok(rows.iter().map(|row| Fields::new("errand.jobs", "id", row).id("id")).collect::<Result<_, _>>()?)
}

async fn holders(transaction: &mut Transaction, creations: &[&Step]) -> Result<HashMap<Key, JobId>, Failure> {
    let (owners, keys): (Vec<Arc<str>>, Vec<Arc<str>>) = creations.iter().filter_map(|step| key_of(step)).unzip();
    let query = sqlx::query(
        "-- name key_holders
        SELECT k.owner, k.idempotency_key, k.job_id FROM unnest($1, $2) AS v (owner, idempotency_key)
        JOIN errand.keys AS k ON k.owner = v.owner AND k.idempotency_key = v.idempotency_key",
    );
    let query = query.bind(column(&owners, |owner| stored(owner)));
    let query = query.bind(column(&keys, |key| stored(key)));
    let mut holders = HashMap::new();
    for row in transaction.rows(query).await? {
        let row = Fields::new("errand.keys", "idempotency_key", &row);
        holders.insert((row.text("owner")?, row.text("idempotency_key")?), row.id("job_id")?);
    }
    Ok(holders)
}

/// What becomes of new jobs, one after the other, where these ids exist and these keys are held.
fn judge(creations: &[&Step], mut existing: HashSet<JobId>, mut holders: HashMap<Key, JobId>) -> Vec<Outcome> {
    let judge = |step: &&Step| {
        let key = key_of(step);
        if let Some(holder) = key.as_ref().and_then(|key| holders.get(key)) {
            return Outcome::Duplicate(*holder);
        }
        if !existing.insert(step.job.id) {
            return Outcome::Stale;
        }
        holders.extend(key.map(|key| (key, step.job.id)));
        Outcome::Applied
    };
    creations.iter().map(judge).collect()
}

async fn insert(transaction: &mut Transaction, taken: &[(Key, JobId)]) -> Result<u64, Failure> {
    if taken.is_empty() {
        return Ok(0);
    }
    let query = sqlx::query(
        "-- name insert_keys
        INSERT INTO errand.keys (owner, idempotency_key, job_id) SELECT * FROM unnest($1, $2, $3) ON CONFLICT DO NOTHING",
    );
    let query = query.bind(column(taken, |((owner, _), _)| stored(owner)));
    let query = query.bind(column(taken, |((_, key), _)| stored(key)));
    transaction.execute(query.bind(column(taken, |(_, id)| id.0))).await
}
