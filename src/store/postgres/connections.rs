//! Connections to the server, and the transactions on them.
//!
//! A connection is lent for one transaction and comes back only after a good end: whatever an error, a deadline or a caller
//! that went away leaves half done is closed with its socket, and the server rolls it back. So no call waits for a server
//! that has stopped longer than its deadline, and nothing has to be cleaned up first.
//!
//! The driver's pool is not used: it asks the server once more whenever a connection comes back, without a deadline, so that
//! each call makes a round trip more, and a server that hangs keeps the connection for ever.
//!
//! Nothing is set for a whole session, so the store works behind a pooler that lends server connections by the transaction.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, Connection, Executor, PgConnection, Postgres,
    postgres::{PgArguments, PgConnectOptions, PgRow},
    query::Query,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::store::StoreError;

/// As SET does it for [`Kind::Write`], in one statement.
macro_rules! settings_of_reads {
    () => {
        "SELECT set_config('statement_timeout', '5000', true), set_config('jit', 'off', true),
            set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true),
            set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true);"
    };
}

/// How a transaction that writes begins.
macro_rules! begin_write {
    () => {
        "BEGIN; SET LOCAL statement_timeout = 5000; SET LOCAL jit = off; SET LOCAL plan_cache_mode = force_generic_plan;
            SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"
    };
}

/// How transactions begin.
///
/// The settings give the same plan whatever the statistics say: every statement is a walk along an index, and a plan that was
/// right for an empty table would read a full one from end to end. Compiling a plan takes longer than running it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Writes that look rows up by what identifies them, many at once.
    ///
    /// A table whose jobs come and go may have been empty when Postgres last counted it, and to find a row among none every
    /// way is cheap: it once went through all of them for each row of a commit. So the ways that can do without a condition
    /// are closed here, and what is left is a look-up for each row, by a bitmap.
    Commit,
    Write,
    /// Reads along an index.
    Read,
    /// Reads whose best plan depends on what they are asked, all of one moment. They walk along indexes all the same: a table of
    /// jobs that came and went is large and empty, and a bitmap is made of all matches where a page wants a few.
    Survey,
}

impl Kind {
    pub(super) fn begin(self) -> &'static str {
        match self {
            Kind::Commit => concat!(
                "-- name begin_commit\n",
                begin_write!(),
                "; SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off"
            ),
            Kind::Write => concat!("-- name begin_write\n", begin_write!()),
            // An idle node reads, too, so these are few statements; SET is quicker.
            Kind::Read => concat!("-- name begin_read\nBEGIN READ ONLY; ", settings_of_reads!()),
            Kind::Survey => {
                "-- name begin_survey
                BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 15000; SET LOCAL jit = off;
                SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_seqscan = off;
                SET LOCAL enable_bitmapscan = off"
            }
        }
    }

    /// How long a transaction may take, getting a connection included. Longer than the server's own limit for a statement, so
    /// that a slow statement is stopped by the server, and a silent server by us.
    fn patience(self) -> Duration {
        match self {
            Kind::Commit | Kind::Write | Kind::Read => Duration::from_secs(6),
            Kind::Survey => Duration::from_secs(16),
        }
    }
}

/// Why a transaction did not go through.
#[derive(Debug)]
pub(super) enum Failure {
    /// Others were in the way, and nothing of it happened: the same may succeed at once.
    Conflict(Box<dyn std::error::Error + Send + Sync>),
    Store(StoreError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Store(error)
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> StoreError {
        match failure {
            Failure::Conflict(error) => StoreError::Unavailable(error),
            Failure::Store(error) => error,
        }
    }
}

fn failure(error: sqlx::Error) -> Failure {
    /// serialization_failure, deadlock_detected, lock_not_available, and undefined_table, which is a day that was dropped.
    const CONFLICTS: [&str; 4] = ["40001", "40P01", "55P03", "42P01"];
    let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default();
    if CONFLICTS.contains(&&*code) { Failure::Conflict(error.into()) } else { unavailable(error).into() }
}

/// Whatever the driver says, but for values it cannot decode, means that the database cannot serve at the moment.
pub(super) fn unavailable(error: sqlx::Error) -> StoreError {
    StoreError::Unavailable(error.into())
}

fn late() -> StoreError {
    StoreError::Unavailable("the database did not answer in time".into())
}

/// So many connections at most; they are made when they are needed, and stay. Clones share them.
#[derive(Clone)]
pub(super) struct Connections {
    options: PgConnectOptions,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<PgConnection>>>,
}

impl Connections {
    pub(super) fn new(options: PgConnectOptions, connections_max: usize) -> Connections {
        Connections { options, permits: Arc::new(Semaphore::new(connections_max)), idle: Arc::default() }
    }

    pub(super) async fn begin(&self, kind: Kind) -> Result<Transaction, StoreError> {
        self.begin_within(kind, kind.patience()).await
    }

    /// Begins a transaction that must end within `patience`.
    pub(super) async fn begin_within(&self, kind: Kind, patience: Duration) -> Result<Transaction, StoreError> {
        let (transaction, _) = self.lend(kind.begin().to_owned(), patience).await?;
        Ok(transaction)
    }

    /// The row of a statement without parameters that reads along an index: a whole transaction in one round trip, for what is
    /// asked again and again.
    pub(super) async fn glance(&self, statement: &str) -> Result<PgRow, StoreError> {
        let script = format!("{}\n{statement}", settings_of_reads!());
        self.tell(script, Kind::Read.patience()).await
    }

    /// The last row that these statements answer, of which there must be one. They are one transaction by themselves.
    pub(super) async fn tell(&self, script: String, patience: Duration) -> Result<PgRow, StoreError> {
        let (transaction, rows) = self.lend(script, patience).await?;
        transaction.give_back();
        rows.into_iter().next_back().ok_or_else(|| unavailable(sqlx::Error::RowNotFound))
    }

    /// A connection on which `script` went well, with what it answered.
    async fn lend(&self, script: String, patience: Duration) -> Result<(Transaction, Vec<PgRow>), StoreError> {
        let deadline = Instant::now() + patience;
        let permit = timeout_at(deadline, self.permits.clone().acquire_owned()).await.map_err(|_| late())?;
        let permit = permit.map_err(|closed| StoreError::Unavailable(closed.into()))?;
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let is_fresh = idle.is_none();
            let begin = async {
                let mut connection = match idle {
                    Some(connection) => connection,
                    None => PgConnection::connect_with(&self.options).await?,
                };
                let rows = connection.fetch_all(AssertSqlSafe(script.as_str())).await?;
                Ok::<_, sqlx::Error>((connection, rows))
            };
            match timeout_at(deadline, begin).await.map_err(|_| late())? {
                Ok((connection, rows)) => {
                    return Ok((Transaction { connection, deadline, permit, idle: self.idle.clone() }, rows));
                }
                // The server closed it while it lay idle, as in a restart. There are finitely many of these.
                Err(sqlx::Error::Io(_) | sqlx::Error::Database(_)) if !is_fresh => {}
                Err(error) => return Err(unavailable(error)),
            }
        }
    }

    /// No transaction begins any more; idle connections are closed, and those that are lent once they come back.
    pub(super) async fn close(&self) {
        self.permits.close();
        let idle = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        for connection in idle {
            // The server notices a closed socket too; the farewell only keeps its log clean.
            let _ = tokio::time::timeout(Duration::from_secs(1), connection.close()).await;
        }
    }
}

/// One transaction. Dropped without an end, it is rolled back, and its connection is closed.
pub(super) struct Transaction {
    connection: PgConnection,
    deadline: Instant,
    permit: OwnedSemaphorePermit,
    idle: Arc<Mutex<Vec<PgConnection>>>,
}

/// A statement with its values.
pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

impl Transaction {
    pub(super) async fn rows(&mut self, query: Statement<'_>) -> Result<Vec<PgRow>, Failure> {
        timeout_at(self.deadline, query.fetch_all(&mut self.connection)).await.map_err(|_| late())?.map_err(failure)
    }

    /// The only row of an answer that always has one.
    pub(super) async fn row(&mut self, query: Statement<'_>) -> Result<PgRow, Failure> {
        timeout_at(self.deadline, query.fetch_one(&mut self.connection)).await.map_err(|_| late())?.map_err(failure)
    }

    /// Tells how many rows it changed.
    pub(super) async fn execute(&mut self, query: Statement<'_>) -> Result<u64, Failure> {
        let done = timeout_at(self.deadline, query.execute(&mut self.connection)).await.map_err(|_| late())?;
        Ok(done.map_err(failure)?.rows_affected())
    }

    /// Statements without parameters, as many as the text has.
    pub(super) async fn script(&mut self, statements: &'static str) -> Result<(), Failure> {
        timeout_at(self.deadline, self.connection.execute(statements)).await.map_err(|_| late())?.map_err(failure)?;
        Ok(())
    }

    /// Like [`Transaction::script`], for statements that this folder put together, with no value in them from elsewhere.
    pub(super) async fn assembled(&mut self, statements: String) -> Result<(), Failure> {
        let script = self.connection.execute(AssertSqlSafe(statements));
        timeout_at(self.deadline, script).await.map_err(|_| late())?.map_err(failure)?;
        Ok(())
    }

    /// Durable, and seen by all, once this returns. After an error it may be so or not.
    pub(super) async fn commit(mut self) -> Result<(), Failure> {
        self.script("COMMIT").await?;
        self.give_back();
        Ok(())
    }

    pub(super) async fn roll_back(mut self) -> Result<(), Failure> {
        self.script("ROLLBACK").await?;
        self.give_back();
        Ok(())
    }

    fn give_back(self) {
        if !self.permit.semaphore().is_closed() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(self.connection);
        }
    }
}
