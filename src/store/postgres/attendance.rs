//! Which nodes use a database: one alone, or several that share a Redis.
//!
//! A node that is alone keeps its leases to itself, and would take the running jobs of every other node for orphans. So it
//! holds a lock of the database for as long as it runs, which nodes that share a Redis hold together.
//!
//! The lock belongs to a transaction that stays open, so that it also works behind a pooler, and goes when its connection does:
//! when the server restarts, say. Each ping looks whether it is still held. A node that has lost it takes it again, and is
//! ousted where another node was faster: it stores nothing more, and ends. What it stored before it looked does no harm, for
//! the other waits a lease's time for runners to come back before it takes jobs from them.

use std::sync::{Mutex, PoisonError};

use sqlx::{Connection, Executor, PgConnection, postgres::PgConnectOptions};
use tokio::sync::watch;

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

impl Attendance {
    fn try_lock(self) -> &'static str {
        match self {
            Attendance::Alone => {
                "-- name attend_alone
                SELECT pg_try_advisory_xact_lock($1) AS is_held,
                    pg_backend_pid() AS backend, pg_postmaster_start_time()::text AS server_since"
            }
            Attendance::Shared => {
                "-- name attend_shared
                SELECT pg_try_advisory_xact_lock_shared($1) AS is_held,
                    pg_backend_pid() AS backend, pg_postmaster_start_time()::text AS server_since"
            }
        }
    }
}

/// The lock's key: "errandno" in ASCII, which no other program is likely to use.
const LOCK: i64 = i64::from_be_bytes(*b"errandno");

/// The transaction may stay idle for ever; it holds no snapshot, so nothing waits for it. A node whose machine lost its power
/// is missed within 25 s instead of two hours. Servers older than 17 do not know the last setting.
const BEGIN: &str = "-- name begin_attendance
    BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0;
    SET LOCAL tcp_keepalives_idle = 10; SET LOCAL tcp_keepalives_interval = 5; SET LOCAL tcp_keepalives_count = 3;
    SELECT set_config('transaction_timeout', '0', true) WHERE current_setting('transaction_timeout', true) IS NOT NULL";

/// A node's lock.
pub(super) struct Attendant {
    options: PgConnectOptions,
    pub attendance: Attendance,
    held: Mutex<Held>,
    is_ousted: watch::Sender<bool>,
}

/// The lock as it was taken, and how to find it again.
struct Held {
    _connection: PgConnection,
    backend: i32,
    /// Another server, or the same one after a restart, may give the number of the backend to somebody else.
    server_since: String,
}

impl Attendant {
    /// Takes the lock; `None` where other nodes stand in the way.
    pub(super) async fn arrive(
        options: &PgConnectOptions,
        attendance: Attendance,
    ) -> Result<Option<Attendant>, StoreError> {
        let held = attend(options, attendance).await?;
        Ok(held.map(|held| Attendant {
            options: options.clone(),
            attendance,
            held: Mutex::new(held),
            is_ousted: watch::Sender::new(false),
        }))
    }

    /// A condition of SQL that is true while the lock is held.
    pub(super) fn is_held(&self) -> String {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let (high, low) = (LOCK >> 32, LOCK & 0xffff_ffff);
        format!(
            "pg_postmaster_start_time()::text = '{}' AND EXISTS (
                SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = {}
                    AND classid = {high}::oid AND objid = {low}::oid AND objsubid = 1
            )",
            held.server_since, held.backend
        )
    }

    /// Takes the lock again that was lost. From the moment that it cannot be had, this node is ousted for good.
    pub(super) async fn attend_again(&self) -> Result<(), StoreError> {
        let held = if self.is_ousted() { None } else { attend(&self.options, self.attendance).await? };
        let Some(held) = held else {
            self.is_ousted.send_replace(true);
            return Err(StoreError::Unavailable("another node has the database".into()));
        };
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
        tracing::warn!("the connection that held this node's lock of the database was lost; the lock is held again");
        Ok(())
    }

    pub(super) fn is_ousted(&self) -> bool {
        *self.is_ousted.borrow()
    }

    /// Waits until another node has taken this node's place.
    pub(super) async fn ousted(&self) {
        // `self` keeps the sender alive, so the channel cannot close while this waits.
        let _ = self.is_ousted.subscribe().wait_for(|is_ousted| *is_ousted).await;
    }
}

async fn attend(options: &PgConnectOptions, attendance: Attendance) -> Result<Option<Held>, StoreError> {
    let unavailable = |error: sqlx::Error| StoreError::Unavailable(error.into());
    let mut connection = PgConnection::connect_with(options).await.map_err(unavailable)?;
    connection.execute(BEGIN).await.map_err(unavailable)?;
    let query = sqlx::query(attendance.try_lock()).bind(LOCK);
    let row = query.fetch_one(&mut connection).await.map_err(unavailable)?;
    let row = Fields::new("pg_locks", "objid", &row);
    let (is_held, backend, server_since) = (row.get("is_held")?, row.get("backend")?, row.get("server_since")?);
    Ok(if is_held { Some(Held { _connection: connection, backend, server_since }) } else { None })
}
