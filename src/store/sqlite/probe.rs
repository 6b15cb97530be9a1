//! How fast SQLite takes rows here, with nothing around it: what a store could do at all.

use std::{path::Path, time::Duration};

use rusqlite::Connection;
use tokio::time::Instant;

use super::{connect, row::Parameters, unavailable};
use crate::store::StoreError;

/// Rows in one statement, which is one commit.
const ROWS: usize = 1_024;
/// The columns of a job that say something before it has run.
const COLUMNS: usize = 16;

/// Rows a second into a table like that of the jobs, without its indexes, each statement on the disk before the next.
/// The file must not be there.
pub fn insert_rate(file: &Path, time: Duration) -> Result<f64, StoreError> {
    Connection::open(file).map_err(unavailable)?;
    let connection = connect(file, false).map_err(unavailable)?;
    let table = "-- name probe_table
        CREATE TABLE jobs (id BLOB NOT NULL PRIMARY KEY, channel TEXT, func TEXT, payload TEXT, owner TEXT,
            fingerprint BLOB, version INTEGER, status INTEGER, ready_at INTEGER, expires_at INTEGER, attempt INTEGER,
            max_retries INTEGER, priority INTEGER, created INTEGER, modified INTEGER, backoff_base REAL)";
    connection.execute_batch(table).map_err(unavailable)?;
    let row = format!("({})", ["?"; COLUMNS].join(", "));
    let insert = format!("-- name probe_insert\nINSERT INTO jobs VALUES {}", vec![row; ROWS].join(", "));
    let mut insert = connection.prepare(&insert).map_err(unavailable)?;
    let payload = "x".repeat(100);
    let begin = Instant::now();
    let mut rows = 0i64;
    while begin.elapsed() < time {
        let mut values = Parameters::of(&mut insert);
        for _ in 0..ROWS {
            let id = i128::from(rows).to_be_bytes();
            values.bind(id)?.bind("default")?.bind("bench.run")?.bind(payload.as_str())?.bind("bench")?.bind(id)?;
            for number in 0..COLUMNS as i64 - 7 {
                values.bind(rows + number)?;
            }
            values.bind(2.0)?;
            rows += 1;
        }
        insert.raw_execute().map_err(unavailable)?;
    }
    Ok(rows as f64 / begin.elapsed().as_secs_f64())
}
