//! The schema `errand`: made, brought up to date, and refused where it is too new.
//!
//! `errand.schema` has a row for each migration, with the oldest version that can still work on the schema it leaves. So the
//! nodes of a fleet may be upgraded one after the other: the first new one migrates, and the old ones stay as long as
//! `works_with` reaches back to them. All of it is one transaction under a lock, so nodes may start at the same time.

use std::time::Duration;

use super::{
    OpenError,
    connections::{Connections, Failure, Kind, Transaction},
    row::Fields,
};

struct Migration {
    version: i64,
    /// The oldest version whose binaries can work on the schema that this leaves.
    works_with: i64,
    sql: &'static str,
}

/// In order of version, without a gap.
const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, works_with: 1, sql: include_str!("migrations/0001_initial.sql") },
    // Nodes that know nothing of arrivals leave them to those that do.
    Migration { version: 2, works_with: 1, sql: include_str!("migrations/0002_arrivals.sql") },
    // Older nodes keep the indexes without knowing of them.
    Migration { version: 3, works_with: 1, sql: include_str!("migrations/0003_reading.sql") },
];

/// The newest version that this binary knows.
pub(super) const KNOWN: i64 = MIGRATIONS[MIGRATIONS.len() - 1].version;

/// How long all migrations may take together, the wait for another node that makes them included.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whoever changes the schema holds this advisory lock: the bytes of "errand".
pub(super) const LOCK: &str = "-- name lock_schema
    SET LOCAL statement_timeout = 0; SELECT pg_advisory_xact_lock(111542219664996)";

pub(super) async fn migrate(connections: &Connections) -> Result<(), OpenError> {
    let mut transaction = connections.begin_within(Kind::Write, PATIENCE).await.map_err(Failure::from)?;
    transaction.script(LOCK).await?;
    let (found, works_with) = version(&mut transaction).await?;
    if found > KNOWN && works_with > KNOWN {
        return Err(OpenError::SchemaTooNew { found, known: KNOWN });
    }
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > found) {
        if migration.version == 1 {
            transaction.script(PREPARE).await?;
        }
        transaction.script(migration.sql).await?;
        let query = sqlx::query(
            "-- name note_migration
            INSERT INTO errand.schema (version, works_with) VALUES ($1, $2)",
        );
        transaction.execute(query.bind(migration.version).bind(migration.works_with)).await?;
        tracing::info!(version = migration.version, "the database's schema was brought up to date");
    }
    transaction.commit().await?;
    Ok(())
}

/// The schema may be there already, made by somebody who may make one.
const PREPARE: &str = "-- name prepare_schema
    DO $$ BEGIN
        IF to_regnamespace('errand') IS NULL THEN CREATE SCHEMA errand; END IF;
    END $$;
    CREATE TABLE errand.schema (
        version    bigint NOT NULL PRIMARY KEY,
        works_with bigint NOT NULL,
        since      timestamptz NOT NULL DEFAULT now()
    )";

/// The schema's version and the oldest one that works with it; 0 where there is no schema.
async fn version(transaction: &mut Transaction) -> Result<(i64, i64), Failure> {
    let query = sqlx::query(
        "-- name find_schema
        SELECT to_regclass('errand.schema') IS NOT NULL AS is_there",
    );
    let row = transaction.row(query).await?;
    if !Fields::new("errand.schema", "version", &row).get::<bool>("is_there")? {
        return Ok((0, 0));
    }
    let query = sqlx::query(
        "-- name read_schema
        SELECT version, works_with FROM errand.schema ORDER BY version DESC LIMIT 1",
    );
    let row = transaction.row(query).await?;
    let row = Fields::new("errand.schema", "version", &row);
    Ok((row.get("version")?, row.get("works_with")?))
}
