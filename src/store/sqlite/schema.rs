//! The schema and its versions. Each migration is one transaction, and the file says which was the last.

use rusqlite::{Connection, TransactionBehavior};

use super::{OpenError, open_error};

/// "Errd": tells a database of this service from any other.
const APPLICATION: i64 = 0x4572_7264;

/// In order; the first makes version 1.
const MIGRATIONS: [&str; 2] =
    [include_str!("migrations/0001_initial.sql"), include_str!("migrations/0002_buckets.sql")];

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Input, JobId, JobSpec, Status, Timestamp, create, step},
        store::{ListQuery, Outcome, Page, Store, contract::everything, sqlite::SqliteStore},
    };

    /// Takes a file back to how version 1 had it.
    const BACK_TO_1: &str = "
        DROP INDEX jobs_bucket;
        ALTER TABLE jobs DROP COLUMN bucket;
        DROP TABLE buckets;
        CREATE INDEX jobs_owner ON jobs (owner, id);
        CREATE INDEX jobs_channel ON jobs (channel, id);
        CREATE INDEX jobs_unsuccessful ON jobs (status, id) WHERE status > 2;
        PRAGMA user_version = 1";

    async fn pages(store: &SqliteStore) -> Vec<Page> {
        let all = ListQuery { descending: true, limit: 9, count: true, ..everything() };
        let queries = [
            all.clone(),
            ListQuery { owner: Some("bob".into()), ..all.clone() },
            ListQuery { statuses: vec![Status::Pending], ..all.clone() },
            ListQuery { statuses: vec![Status::Running, Status::Canceled], ..all.clone() },
            ListQuery { runner_id: Some("r".into()), ..all },
        ];
        let mut pages = Vec::new();
        for query in &queries {
            pages.push(store.list(query).await.expect("a page"));
        }
        pages
    }

    #[tokio::test]
    async fn jobs_of_the_first_version_are_found_as_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("jobs.db");
        let store = SqliteStore::open(&path).await.expect("a store");
        let now = Timestamp(1_700_000_000_000_000);
        let made = |number, owner: &str| {
            create(JobId(uuid::Uuid::from_u128(number)), JobSpec::sample(), owner.into(), now).expect("a job")
        };
        let (first, second, third) = (made(1, "ann"), made(2, "bob"), made(3, "bob"));
        let claimed = step(&second.job, Input::Claim { runner_id: "r".into() }, now, 0).expect("a claim");
        let canceled = step(&third.job, Input::Cancel, now, 0).expect("an end");
        let steps = [first, second, third, claimed.clone(), canceled];
        assert_eq!(store.commit(&steps).await.expect("a commit"), [Outcome::Applied; 5]);
        let before = pages(&store).await;
        assert_eq!(before.iter().map(|page| page.jobs.len()).collect::<Vec<_>>(), [3, 2, 1, 2, 1]);
        store.close().await;
        Connection::open(&path).expect("a connection").execute_batch(BACK_TO_1).expect("the first version");

        let store = SqliteStore::open(&path).await.expect("a store");
        assert_eq!(pages(&store).await, before);
        // And they are counted on from there.
        let completed = Input::Complete { attempt: 1, result: String::new(), metadata: None };
        let ended = step(&claimed.job, completed, now, 0).expect("an end");
        assert_eq!(store.commit(&[ended]).await.expect("a commit"), [Outcome::Applied]);
        let totals: Vec<u64> = pages(&store).await.iter().map(|page| page.total.expect("a total").jobs).collect();
        assert_eq!(totals, [3, 2, 1, 1, 1]);
    }
}
