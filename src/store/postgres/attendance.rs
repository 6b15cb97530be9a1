//! Which nodes use a database: one alone, or several that share a Redis.
//!
//! A node that is alone keeps its leases to itself, and would take the running jobs of every other node for orphans. So it
//! holds a lock of the database for as long as it is connected, which nodes that share a Redis hold together.

use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};

use super::row::Fields;
use crate::store::StoreError;

/// How a node uses the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attendance {
    /// No other node may.
    Alone,
    /// Any number of nodes that share a Redis may.
    Shared,
}

/// The lock's key: "errandno" in ASCII, which no other program is likely to use.
const LOCK: i64 = i64::from_be_bytes(*b"errandno");

/// The connection that holds the lock; `None` where other nodes stand in the way.
pub(super) async fn attend(
    options: &PgConnectOptions,
    attendance: Attendance,
) -> Result<Option<PgConnection>, StoreError> {
    let unavailable = |error: sqlx::Error| StoreError::Unavailable(error.into());
    let statement = match attendance {
        Attendance::Alone => {
            "-- name attend_alone
            SELECT pg_try_advisory_lock($1) AS is_held"
        }
        Attendance::Shared => {
            "-- name attend_shared
            SELECT pg_try_advisory_lock_shared($1) AS is_held"
        }
    };
    let mut connection = PgConnection::connect_with(options).await.map_err(unavailable)?;
    let row = sqlx::query(statement).bind(LOCK).fetch_one(&mut connection).await.map_err(unavailable)?;
    Ok(Fields::new("pg_locks", "objid", &row).get::<bool>("is_held")?.then_some(connection))
}
