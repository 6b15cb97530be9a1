//! The schema and its versions. Each migration is one transaction, and the file says which was the last.

use rusqlite::{Connection, TransactionBehavior};

use super::{OpenError, open_error};

/// "Errd": tells a database of this service from any other.
const APPLICATION: i64 = 0x4572_7264;

/// In order; the first makes version 1.
const MIGRATIONS: [&str; 1] = [include_str!("migrations/0001_initial.sql")];

/// Brings the schema up to date.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), OpenError> {
    let known = MIGRATIONS.len() as i64;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(open_error)?;
    let number = |pragma| transaction.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).map_err(open_error);
    let (found, application) = (number("user_version")?, number("application_id")?);
    let tables = transaction.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
    if application != APPLICATION && tables.map_err(open_error)? > 0 {
        return Err(OpenError::Corrupt("it has tables, and is not marked as this service's".into()));
    }
    if found > known {
        return Err(OpenError::SchemaTooNew { found, known });
    }
    for migration in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        transaction.execute_batch(migration).map_err(open_error)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION).map_err(open_error)?;
    transaction.pragma_update(None, "user_version", known).map_err(open_error)?;
    transaction.commit().map_err(open_error)
}
