//! Databases that tests make for themselves, and drop.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, postgres::PgConnectOptions};

use super::{Attendance, PostgresStore, schema};
use crate::{
    clock::{Dice, SystemDice},
    store::Store,
};

/// A database of its own on the server of the tests, copied from one that has the schema already. Dropped with this.
pub(in crate::store) struct Scratch {
    name: String,
    server: String,
}

impl Scratch {
    pub(in crate::store) async fn new() -> Scratch {
        let server = std::env::var("ERRAND_TEST_POSTGRES_URL")
            .expect("no ERRAND_TEST_POSTGRES_URL: run the tests as scripts/with-servers cargo nextest run");
        let name = format!("errand_test_{:016x}", SystemDice::new().roll());
        let scratch = Scratch { name, server };
        let mut connection = scratch.administer().await;
        let template = template(&mut connection, &scratch).await;
        execute(&mut connection, format!("CREATE DATABASE {} TEMPLATE {template}", scratch.name)).await;
        connection.close().await.expect("a farewell");
        scratch
    }

    /// One that has no schema yet.
    pub(in crate::store) async fn empty() -> Scratch {
        let scratch = Scratch::new().await;
        let mut connection = scratch.connect().await;
        execute(&mut connection, "DROP SCHEMA errand CASCADE".into()).await;
        connection.close().await.expect("a farewell");
        scratch
    }

    pub(in crate::store) fn url(&self) -> String {
        self.url_of(&self.name)
    }

    fn url_of(&self, name: &str) -> String {
        let (server, _) = self.server.rsplit_once('/').expect("a URL that ends with a database");
        format!("{server}/{name}")
    }

    pub(in crate::store) async fn store(&self) -> PostgresStore {
        PostgresStore::open(&self.url(), Attendance::Shared).await.expect("a store")
    }

    /// What another program does in the same database.
    pub(in crate::store) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.expect("a connection")
    }

    async fn administer(&self) -> PgConnection {
        let options: PgConnectOptions = self.server.parse().expect("a URL");
        PgConnection::connect_with(&options).await.expect("the server of the tests")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let dropped = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                    runtime.block_on(async {
                        let mut connection = self.administer().await;
                        execute(&mut connection, format!("DROP DATABASE {} WITH (FORCE)", self.name)).await;
                    });
                })
                .join()
        });
        if dropped.is_err() {
            eprintln!("the database {} is left behind", self.name);
        }
    }
}

/// The database that others are copied from; the first test makes it. A name for each day and version of the schema, because
/// its partitions are those of the days to come.
async fn template(connection: &mut PgConnection, scratch: &Scratch) -> String {
    let (day,): (String,) = sqlx::query_as("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')")
        .fetch_one(&mut *connection)
        .await
        .expect("a day");
    let template = format!("errand_template_{}_{day}", schema::KNOWN);
    execute(connection, "SELECT pg_advisory_lock(1)".into()).await;
    let found =
        sqlx::query("SELECT 1 FROM pg_database WHERE datname = $1").bind(&template).fetch_optional(&mut *connection);
    if found.await.expect("an answer").is_none() {
        // Under another name until it is whole.
        execute(connection, format!("DROP DATABASE IF EXISTS {template}_unfinished")).await;
        execute(connection, format!("CREATE DATABASE {template}_unfinished")).await;
        let url = scratch.url_of(&format!("{template}_unfinished"));
        PostgresStore::open(&url, Attendance::Shared).await.expect("a store").close().await;
        execute(connection, format!("ALTER DATABASE {template}_unfinished RENAME TO {template}")).await;
    }
    execute(connection, "SELECT pg_advisory_unlock(1)".into()).await;
    template
}

async fn execute(connection: &mut PgConnection, statement: String) {
    connection.execute(AssertSqlSafe(statement.as_str())).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
}
