//! The store in Postgres 15 and later, which any number of equal nodes may share. All of it is in the schema `errand`.
//!
//! Unfinished jobs are in one table and finished ones in another, a partition a day, so that what runs jobs never wades
//! through history. Each batch is one transaction with one statement for each kind of change, durable before its answer.
//! Calls for different jobs do not wait for each other; of two for the same version of one job, one applies.
//!
//! Every call has a deadline. One that meets it, or loses its connection, answers as unavailable; a commit that does may
//! have been stored all the same. Nothing outside this folder sees a type of the driver.

mod arrivals;
mod attendance;
mod columns;
mod connections;
mod days;
mod events;
mod forget;
mod keys;
mod list;
mod listener;
mod partitions;
mod read;
mod remove;
mod row;
mod schema;
#[cfg(test)]
pub(in crate::store) mod scratch;
mod tally;
#[cfg(test)]
mod tests;
mod text;
mod write;

use std::{
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{Connection, PgConnection, Row, postgres::PgConnectOptions};

use super::{
    Agenda, Arrival, ArrivalPage, Bell, Due, Forgotten, Lanes, ListQuery, Outcome, Outdated, Page, Ready, Store,
    StoreError, Tally,
};
use crate::model::{
    Job, JobEvent, JobId, Parts, Step, Timestamp,
    log::{JobLog, LogKind},
};
pub use attendance::Attendance;
use attendance::Attendant;
use connections::{Connections, Failure, Kind};
use listener::Listener;
use partitions::Day;

/// While one commit waits for the disk, another is prepared.
const LANES: Lanes = Lanes { max: 2, steps_min: 128 };
/// Connections that write: more than lanes that commit, so that a deletion or a log line does not wait for them.
const WRITERS: usize = 4;
/// Connections that read.
const READERS: usize = 4;
/// Connections of their own for what must not wait for others: a ping that queues behind lists would call the database ill.
const WATCHERS: usize = 1;
/// How long the first connection may take.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);
/// A ping must have failed before whoever watches the store's health loses patience.
const PING_PATIENCE: Duration = Duration::from_secs(1);
/// `server_version_num` of the oldest Postgres that has all that is used here.
const SERVER_MIN: i32 = 150_000;
/// Slots that a channel's counts are spread over, against commits that wait for each other.
const SLOTS: i32 = 8;
/// Days whose partitions are made in advance.
const DAYS_AHEAD: i64 = 7;
/// Where no more days than this are left, the next ones are made.
const DAYS_LEFT_MIN: i64 = 4;

/// Keeps everything in one database.
pub struct PostgresStore {
    writers: Connections,
    readers: Connections,
    watchers: Connections,
    /// Grows with each commit; its remainder is the slot that the commit counts in.
    commits: AtomicI32,
    /// The last day whose partitions are made, or were tried to make.
    last_day: AtomicI64,
    bell: Arc<Bell>,
    /// For the connection that listens.
    options: PgConnectOptions,
    /// Holds the lock that says how this node uses the database.
    attendant: Attendant,
}

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("is no Postgres URL such as postgres://USER:PASSWORD@HOST/DATABASE")]
    Url(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Nobody answers, or refuses the connection.
    #[error("the database at {server} cannot be reached: {why}")]
    Unreachable { server: String, why: String },
    #[error("{}", match .0 {
        Attendance::Alone => "another errand node uses this database: give every node the same redis_url",
        Attendance::Shared => "a node without redis_url uses this database: stop it, or give it the same redis_url",
    })]
    Attended(Attendance),
    #[error("the database server is too old: errand needs Postgres 15 or later")]
    ServerTooOld,
    #[error("the database has encoding {0}, but errand needs UTF8: make a database with ENCODING 'UTF8'")]
    Encoding(String),
    /// A newer version of this service changed it.
    #[error(
        "the database has schema version {found}, but this version of errand knows only up to {known}: \
         start a newer errand, or restore a backup from before the update"
    )]
    SchemaTooNew { found: i64, known: i64 },
    /// The schema could not be made or read.
    #[error("the database's schema \"errand\" cannot be made or read: {0}")]
    Schema(StoreError),
}

impl From<Failure> for OpenError {
    fn from(failure: Failure) -> OpenError {
        OpenError::Schema(failure.into())
    }
}

impl PostgresStore {
    /// Connects, and makes the schema or brings it up to date.
    pub async fn open(url: &str, attendance: Attendance) -> Result<PostgresStore, OpenError> {
        let options = PgConnectOptions::from_str(url).map_err(|error| OpenError::Url(error.into()))?;
        let options = match options.get_application_name() {
            Some(_) => options,
            None => options.application_name("errand"),
        };
        check_server(&options).await?;
        let attendant = match Attendant::arrive(&options, attendance).await.map_err(OpenError::Schema)? {
            Some(attendant) => attendant,
            None => return Err(OpenError::Attended(attendance)),
        };
        let store = PostgresStore {
            writers: Connections::new(options.clone(), WRITERS),
            readers: Connections::new(options.clone(), READERS),
            watchers: Connections::new(options.clone(), WATCHERS),
            commits: AtomicI32::new(0),
            last_day: AtomicI64::new(0),
            bell: Arc::default(),
            options,
            attendant,
        };
        schema::migrate(&store.writers).await?;
        let today = Day::of(store.time().await?);
        store.make_days(today.plus(-1), today.plus(DAYS_AHEAD)).await;
        Ok(store)
    }

    /// What tells this database from every other.
    pub async fn identity(&self) -> Result<Arc<str>, StoreError> {
        let query = sqlx::query(
            "-- name identity
            SELECT id::text AS id FROM errand.identity",
        );
        let mut transaction = self.readers.begin(Kind::Read).await?;
        let row = transaction.row(query).await?;
        transaction.commit().await?;
        row::Fields::new("errand.identity", "id", &row).text("id")
    }

    /// Waits until other nodes have the database in a way that leaves this one out. From then on nothing is stored here.
    pub async fn ousted(&self) -> OpenError {
        self.attendant.ousted().await;
        OpenError::Attended(self.attendant.attendance)
    }

    async fn attend_again(&self) -> Result<(), StoreError> {
        let attended = tokio::time::timeout(PING_PATIENCE, self.attendant.attend_again()).await;
        if self.attendant.is_ousted() {
            self.writers.close().await;
        }
        attended.map_err(|late| StoreError::Unavailable(late.into()))?
    }

    /// Makes [`Store::bell`] ring by itself for as long as this runs, which is until it is dropped. Without it arrivals have to
    /// be looked for. `node_id` is no other node's.
    pub fn listen(&self, node_id: Arc<str>) -> impl Future<Output = ()> + Send + 'static {
        let (options, writers, bell) = (self.options.clone(), self.writers.clone(), self.bell.clone());
        Listener { options, writers, bell, node_id }.run()
    }

    /// Tells `errand.publish` how large a payload may be.
    pub async fn set_payload_max(&self, bytes_max: usize) -> Result<(), StoreError> {
        arrivals::set_payload_max(&self.writers, bytes_max).await
    }

    /// The time as the server has it.
    async fn time(&self) -> Result<Timestamp, Failure> {
        let query = sqlx::query(
            "-- name time
            SELECT (extract(epoch FROM now()) * 1000000)::bigint AS now",
        );
        let mut transaction = self.writers.begin(Kind::Read).await?;
        let row = transaction.row(query).await?;
        transaction.commit().await?;
        Ok(row::Fields::new("errand.schema", "version", &row).time("now")?)
    }

    fn slot(&self) -> i32 {
        self.commits.fetch_add(1, Ordering::Relaxed).rem_euclid(SLOTS)
    }

    async fn commit_steps(&self, steps: &[Step], mode: write::Mode) -> Result<Vec<Outcome>, StoreError> {
        let outcomes = write::commit(&self.writers, steps, mode, self.slot()).await?;
        let created = steps.iter().filter(|step| step.expected.is_none()).map(|step| step.job.created);
        if let Some(newest) = created.max() {
            self.prepare_days_after(Day::of(newest)).await;
        }
        Ok(outcomes)
    }

    /// Makes further days once a job is created near the last one: an idle store has nothing to prepare for.
    async fn prepare_days_after(&self, day: Day) {
        let last_day = self.last_day.load(Ordering::Relaxed);
        // A clock that is far ahead gets no partitions; its jobs go to the rest.
        let is_near = (last_day - DAYS_LEFT_MIN..=last_day + DAYS_AHEAD).contains(&day.0);
        let next = day.plus(DAYS_AHEAD);
        let mine = || self.last_day.compare_exchange(last_day, next.0, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_near && mine() {
            self.make_days(day, next).await;
        }
    }

    async fn make_days(&self, first: Day, last: Day) {
        let reached = match partitions::make(&self.writers, first, last).await.map_err(StoreError::from) {
            Ok(()) => last,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "partitions for days to come could not be made; tomorrow they are tried again");
                last.plus(DAYS_LEFT_MIN + 1 - DAYS_AHEAD)
            }
        };
        self.last_day.store(reached.0, Ordering::Relaxed);
    }
}

/// Refuses a server that the store cannot work on, before anything is changed there.
async fn check_server(options: &PgConnectOptions) -> Result<(), OpenError> {
    let unreachable = |why: String| {
        let server = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        };
        OpenError::Unreachable { server, why }
    };
    let check = async {
        let mut connection = PgConnection::connect_with(options).await?;
        // Without a prepared statement, for outside of a transaction a pooler may run it elsewhere than it was prepared.
        let query = sqlx::raw_sql(
            "-- name check_server
            SELECT current_setting('server_version_num')::integer, current_setting('server_encoding')",
        );
        let row = query.fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok::<_, sqlx::Error>((row.try_get::<i32, _>(0)?, row.try_get::<String, _>(1)?))
    };
    let checked = tokio::time::timeout(OPEN_PATIENCE, check).await;
    let checked = checked.map_err(|_| unreachable(format!("no answer within {} s", OPEN_PATIENCE.as_secs())))?;
    let (version, encoding) = checked.map_err(|error| unreachable(in_few_words(&error)))?;
    if version < SERVER_MIN {
        return Err(OpenError::ServerTooOld);
    }
    if encoding != "UTF8" {
        return Err(OpenError::Encoding(encoding));
    }
    Ok(())
}

/// What the operator can act on.
fn in_few_words(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) => error.kind().to_string(),
        other => other.to_string(),
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn commit(&self, steps: &[Step]) -> Result<Vec<Outcome>, StoreError> {
        self.commit_steps(steps, write::Mode::Each).await
    }

    async fn commit_all(&self, steps: &[Step]) -> Result<Vec<Outcome>, StoreError> {
        self.commit_steps(steps, write::Mode::AllOrNothing).await
    }

    async fn load(&self, ids: &[JobId]) -> Result<Vec<Option<Job>>, StoreError> {
        read::load(&self.readers, ids).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        list::list(&self.readers, query).await
    }

    async fn events(&self, job_id: JobId, limit: u32) -> Result<Vec<JobEvent>, StoreError> {
        read::events(&self.readers, job_id, limit).await
    }

    async fn append_logs(&self, logs: &[JobLog]) -> Result<(), StoreError> {
        write::append_logs(&self.writers, logs).await
    }

    async fn logs(&self, job_id: JobId, kinds: &[LogKind], after: u64, limit: u32) -> Result<Vec<JobLog>, StoreError> {
        list::logs(&self.readers, job_id, kinds, after, limit).await
    }

    async fn ready(
        &self,
        channel: &str,
        now: Timestamp,
        after: Option<&Ready>,
        limit: u32,
    ) -> Result<Vec<Ready>, StoreError> {
        read::ready(&self.readers, channel, now, after, limit).await
    }

    async fn pending_channels(&self) -> Result<Vec<Arc<str>>, StoreError> {
        read::pending_channels(&self.readers).await
    }

    async fn agenda(&self, now: Timestamp) -> Result<Agenda, StoreError> {
        read::agenda(&self.readers, now).await
    }

    async fn due_between(&self, after: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Ready>, StoreError> {
        read::due_between(&self.readers, after, until, limit).await
    }

    async fn due(&self, due: Due, now: Timestamp, limit: u32) -> Result<Vec<Job>, StoreError> {
        read::due(&self.readers, due, now, limit).await
    }

    async fn running(&self, after: Option<JobId>, limit: u32) -> Result<Vec<Job>, StoreError> {
        read::running(&self.readers, after, limit).await
    }

    async fn parts(&self, parent_id: JobId) -> Result<Parts, StoreError> {
        read::parts(&self.readers, parent_id).await
    }

    async fn unfinished_parts(&self, parent_id: JobId, limit: u32) -> Result<Vec<Job>, StoreError> {
        read::unfinished_parts(&self.readers, parent_id, limit).await
    }

    async fn jobs_before(&self, job: &Job, now: Timestamp) -> Result<u64, StoreError> {
        read::jobs_before(&self.readers, job, now).await
    }

    async fn tally(&self, now: Timestamp) -> Result<Tally, StoreError> {
        tally::tally(&self.readers, now).await
    }

    async fn delete(&self, id: JobId, version: u32) -> Result<bool, StoreError> {
        remove::delete(&self.writers, id, version, self.slot()).await
    }

    async fn forget(&self, outdated: Outdated, after: Option<JobId>, limit: u32) -> Result<Forgotten, StoreError> {
        Ok(forget::forget(&self.writers, outdated, after, (limit, self.slot())).await?)
    }

    async fn arrivals(&self, page: ArrivalPage) -> Result<Vec<Arrival>, StoreError> {
        arrivals::read(&self.readers, page).await
    }

    fn bell(&self) -> Option<Arc<Bell>> {
        Some(self.bell.clone())
    }

    fn lanes(&self) -> Lanes {
        LANES
    }

    async fn ping(&self) -> Result<(), StoreError> {
        // One statement, for an idle node pings, too. Its bound for locks is set while it runs, before it takes one.
        let statement = format!(
            "-- name ping
            UPDATE errand.pulse SET beats = beats + 1 WHERE set_config('lock_timeout', '{}', true) IS NOT NULL
            RETURNING {} AS is_attended",
            PING_PATIENCE.as_millis(),
            self.attendant.is_held()
        );
        let row = self.watchers.tell(statement, PING_PATIENCE).await?;
        let is_attended: bool = row::Fields::new("errand.pulse", "beats", &row).get("is_attended")?;
        if is_attended { Ok(()) } else { self.attend_again().await }
    }

    async fn close(&self) {
        for connections in [&self.writers, &self.readers, &self.watchers] {
            connections.close().await;
        }
    }
}
