//! Removing jobs, with all that belongs to them.

use std::{collections::BTreeMap, sync::Arc};

use uuid::Uuid;

use super::{
    connections::{Connections, Failure, Kind, Transaction},
    row::Fields,
    write::{Change, add_to_tallies},
};
use crate::{
    model::{JobId, Status},
    store::StoreError,
};

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
            change.end(status, -1);
        }
        return Ok(Some((row.text("channel")?, change)));
    }
    Ok(None)
}

/// Removes the parts of these broadcast jobs, whether they have ended or not, and tells their ids.
pub(super) async fn delete_parts(transaction: &mut Transaction, parents: &[Uuid]) -> Result<Vec<Uuid>, Failure> {
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
pub(super) async fn delete_belongings(transaction: &mut Transaction, ids: &[Uuid]) -> Result<(), Failure> {
    let statements = [
        "-- name delete_events
        DELETE FROM errand.late_events WHERE job_id = ANY($1)",
        "-- name delete_logs
        DELETE FROM errand.logs WHERE job_id = ANY($1)",
        "-- name delete_keys
        DELETE FROM errand.keys WHERE job_id = ANY($1)",
    ];
    for statement in statements {
        transaction.execute(sqlx::query(statement).bind(ids)).await?;
    }
    Ok(())
}
