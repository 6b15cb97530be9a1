//! How fast SQLite takes rows here, with nothing around it: what a store could do at all.

use std::{path::Path, time::Duration};

use sqlx::{
    AssertSqlSafe, Connection,
    sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous},
};
use tokio::time::Instant;

use super::unavailable;
use crate::store::StoreError;

/// Rows in one statement, which is one commit.
const ROWS: usize = 1_024;
/// The columns of a job that say something before it has run; those of every other kind have a value of their own as well.
const COLUMNS: usize = 16;

/// Rows a second into a table like that of the jobs, without its indexes, each statement on the disk before the next.
pub async fn insert_rate(file: &Path, time: Duration) -> Result<f64, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut connection = SqliteConnection::connect_with(&options).await.map_err(unavailable)?;
    let table = "-- name probe_table
        CREATE TABLE jobs (id BLOB NOT NULL PRIMARY KEY, channel TEXT, func TEXT, payload TEXT, owner TEXT,
            fingerprint BLOB, version INTEGER, status INTEGER, ready_at INTEGER, expires_at INTEGER, attempt INTEGER,
            max_retries INTEGER, priority INTEGER, created INTEGER, modified INTEGER, backoff_base REAL)";
    sqlx::query(table).execute(&mut connection).await.map_err(unavailable)?;
    let row = format!("({})", ["?"; COLUMNS].join(", "));
    let insert = format!("-- name probe_insert\nINSERT INTO jobs VALUES {}", vec![row; ROWS].join(", "));
    let payload = "x".repeat(100);
    let begin = Instant::now();
    let mut rows = 0;
    while begin.elapsed() < time {
        let mut query = sqlx::query(AssertSqlSafe(insert.as_str()));
        for _ in 0..ROWS {
            let id = i128::from(rows).to_be_bytes();
            query = query.bind(id.to_vec()).bind("default").bind("bench.run").bind(payload.as_str()).bind("bench");
            query = query.bind(id.to_vec());
            for number in 0..COLUMNS as i64 - 7 {
                query = query.bind(rows + number);
            }
            query = query.bind(2.0);
            rows += 1;
        }
        query.execute(&mut connection).await.map_err(unavailable)?;
    }
    let rate = rows as f64 / begin.elapsed().as_secs_f64();
    connection.close().await.map_err(unavailable)?;
    Ok(rate)
}
