//! Jobs that `errand.publish` left for the nodes to take in.
//!
//! An arrival is its own token: the commit that stores the job locks the arrival's row and deletes it. So an arrival becomes a
//! job once, however many nodes see it and whenever one of them dies, and no commit waits for another over it.

use std::collections::HashSet;

use sqlx::postgres::PgRow;

use super::{
    connections::{Connections, Failure, Kind, Transaction},
    row::Fields,
};
use crate::{
    model::{JobId, JobSpec, Start},
    store::{Arrival, ArrivalPage, StoreError, codes::expiry_of},
};

const TABLE: &str = "errand.arrivals";

pub(super) async fn read(readers: &Connections, page: ArrivalPage) -> Result<Vec<Arrival>, StoreError> {
    let query = sqlx::query(
        "-- name arrivals
        SELECT * FROM (
            SELECT *, sum(octet_length(payload)) OVER (ORDER BY id) - octet_length(payload) AS bytes_before
            FROM (SELECT * FROM errand.arrivals ORDER BY id LIMIT $1) AS first
        ) AS page WHERE bytes_before < $2 ORDER BY id",
    );
    let bytes_max = i64::try_from(page.bytes_max).unwrap_or(i64::MAX);
    let mut transaction = readers.begin(Kind::Read).await?;
    let rows = transaction.rows(query.bind(i64::from(page.arrivals_max)).bind(bytes_max)).await?;
    transaction.commit().await?;
    rows.iter().map(arrival).collect()
}

/// The columns hold texts as they are, unlike those of a job.
fn arrival(row: &PgRow) -> Result<Arrival, StoreError> {
    let row = Fields::new(TABLE, "id", row);
    let text = |column| row.get::<&str>(column);
    let start = match (row.time_or_null("run_at")?, row.number_or_null("delay")?) {
        (Some(at), _) => Start::At(at),
        (None, Some(seconds)) => Start::In(seconds),
        (None, None) => Start::Now,
    };
    let expiry =
        expiry_of(row.get("expiry_kind")?, row.get("expiry_value")?).ok_or_else(|| row.corrupt("expiry_kind"))?;
    Ok(Arrival {
        id: row.id("id")?,
        owner: text("owner")?.into(),
        made: row.time("made")?,
        spec: JobSpec {
            func: text("func")?.into(),
            payload: text("payload")?.into(),
            channel: text("channel")?.into(),
            start,
            expiry,
            max_retries: row.number("max_retries")?,
            backoff_base: row.get("backoff_base")?,
            backoff_max_seconds: row.number("backoff_max_seconds")?,
            broadcast: row.get("broadcast")?,
            max_exec_seconds: row.number_or_null("max_exec_seconds")?,
            idempotency_key: row.get::<Option<&str>>("idempotency_key")?.map(Into::into),
            priority: row.get("priority")?,
            traceparent: text("traceparent")?.to_owned(),
            fingerprint: [0; 16],
        },
    })
}

/// Locks these arrivals; tells which are there and in nobody else's hands.
pub(super) async fn hold(transaction: &mut Transaction, ids: Vec<JobId>) -> Result<HashSet<JobId>, Failure> {
    let query = sqlx::query(
        "-- name hold_arrivals
        SELECT id FROM errand.arrivals WHERE id = ANY($1) FOR UPDATE SKIP LOCKED",
    );
    let rows = transaction.rows(query.bind(uuids(ids))).await?;
    Ok(rows.iter().map(|row| Fields::new(TABLE, "id", row).id("id")).collect::<Result<_, _>>()?)
}

/// Removes arrivals that this transaction holds.
pub(super) async fn remove(transaction: &mut Transaction, ids: Vec<JobId>) -> Result<(), Failure> {
    let query = sqlx::query(
        "-- name remove_arrivals
        DELETE FROM errand.arrivals WHERE id = ANY($1)",
    );
    transaction.execute(query.bind(uuids(ids))).await.map(drop)
}

fn uuids(ids: Vec<JobId>) -> Vec<uuid::Uuid> {
    ids.into_iter().map(|id| id.0).collect()
}

/// Tells the database which payloads `errand.publish` takes: as large as the node that was started last does.
pub(super) async fn set_payload_max(writers: &Connections, bytes_max: usize) -> Result<(), StoreError> {
    let query = sqlx::query(
        "-- name set_payload_max
        UPDATE errand.limits SET payload_max_bytes = $1 WHERE payload_max_bytes <> $1",
    );
    let mut transaction = writers.begin(Kind::Write).await?;
    transaction.execute(query.bind(i64::try_from(bytes_max).unwrap_or(i64::MAX))).await?;
    Ok(transaction.commit().await?)
}
