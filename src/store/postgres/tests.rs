//! What the contract of stores cannot ask: several nodes on one database.

mod arrivals;
mod days;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use super::{
    Attendance, OpenError, PostgresStore,
    connections::Kind,
    scratch::Scratch,
    write::{FINISH_JOBS, UPDATE_JOBS},
};
use crate::{
    model::{Expiry, Input, Job, JobId, JobSpec, Timestamp, create, step},
    store::{Outcome, Store},
};

/// Tasks that commit at the same time.
const TASKS: u64 = 16;
/// Steps that each of them tries.
const TRIES: u64 = 40;

fn at(seconds: u32) -> Timestamp {
    Timestamp(1_700_000_000_000_000).plus_seconds(seconds)
}

fn spec() -> JobSpec {
    JobSpec { max_retries: 1_000, backoff_base: 1.0, backoff_max_seconds: 1, ..JobSpec::sample() }
}

async fn loaded(store: &PostgresStore, id: JobId) -> Job {
    store.load(&[id]).await.expect("a load").pop().flatten().expect("a job")
}

/// Claims a pending job and releases a running one: it never ends.
async fn moved_on(store: &PostgresStore, id: JobId, who: u64) -> bool {
    let job = loaded(store, id).await;
    let input = match job.runner_id {
        None => Input::Claim { runner_id: format!("r{who}").into() },
        Some(_) => Input::Release { attempt: job.attempt },
    };
    let Ok(step) = step(&job, input, at(5), 0) else { return false };
    store.commit(&[step]).await.expect("a commit") == [Outcome::Applied]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_version_is_taken_once_whoever_asks() {
    let scratch = Scratch::new().await;
    let stores = [Arc::new(scratch.store().await), Arc::new(scratch.store().await)];
    let ids: Vec<JobId> = (1..=3).map(|number| JobId(uuid::Uuid::from_u128(number))).collect();
    let steps: Vec<_> = ids.iter().map(|id| create(*id, spec(), "ann".into(), at(0)).expect("a job")).collect();
    assert_eq!(stores[0].commit(&steps).await.expect("a commit"), [Outcome::Applied; 3]);
    let applied = Arc::new([AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0)]);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let (store, ids, applied) = (stores[(task % 2) as usize].clone(), ids.clone(), applied.clone());
        tasks.spawn(async move {
            for turn in 0..TRIES {
                let which = ((task + turn) % 3) as usize;
                if moved_on(&store, ids[which], task).await {
                    applied[which].fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a task that ends well");
    }
    for (id, applied) in ids.iter().zip(applied.iter()) {
        let applied = applied.load(Ordering::Relaxed);
        let job = loaded(&stores[0], *id).await;
        assert!(applied > 0);
        assert_eq!(job.version, steps[0].job.version + applied, "a version for each step that was told to be stored");
        let events = stores[1].events(*id, u32::MAX).await.expect("events");
        let moves = events.iter().filter(|event| event.attempt > 0).count();
        assert_eq!(moves, applied as usize, "and an event");
    }
    for store in stores {
        store.close().await;
    }
}

#[tokio::test]
async fn nodes_may_make_the_schema_at_the_same_time() {
    let scratch = Scratch::empty().await;
    let url = scratch.url();
    let open = || PostgresStore::open(&url, Attendance::Shared);
    let (one, two, three) = tokio::join!(open(), open(), open());
    let ids = [
        one.expect("a store").identity().await.expect("an id"),
        two.expect("a store").identity().await.expect("an id"),
        three.expect("a store").identity().await.expect("an id"),
    ];
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[0], ids[2]);
}

#[tokio::test]
async fn a_schema_that_asks_for_a_newer_version_is_refused() {
    let scratch = Scratch::new().await;
    let mut connection = scratch.connect().await;
    let note = "INSERT INTO errand.schema (version, works_with) VALUES (98, 1)";
    sqlx::query(note).execute(&mut connection).await.expect("a later version");
    scratch.store().await.close().await;
    let note = "INSERT INTO errand.schema (version, works_with) VALUES (99, 99)";
    sqlx::query(note).execute(&mut connection).await.expect("a later version");
    let error = PostgresStore::open(&scratch.url(), Attendance::Shared).await.err().expect("a refusal");
    assert!(matches!(error, OpenError::SchemaTooNew { found: 99, .. }), "{error}");
}

#[tokio::test]
async fn a_node_that_is_alone_stays_alone() {
    let scratch = Scratch::new().await;
    let open = async |attendance| PostgresStore::open(&scratch.url(), attendance).await;
    let refused = |opened: Result<PostgresStore, OpenError>| matches!(opened, Err(OpenError::Attended(_)));
    let alone = open(Attendance::Alone).await.expect("a store");
    assert!(refused(open(Attendance::Alone).await));
    assert!(refused(open(Attendance::Shared).await));
    drop(alone);
    let free = async {
        loop {
            match open(Attendance::Shared).await {
                Ok(store) => return store,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let shared =
        tokio::time::timeout(std::time::Duration::from_secs(10), free).await.expect("the lock goes with its node");
    open(Attendance::Shared).await.expect("another that shares");
    assert!(refused(open(Attendance::Alone).await));
    drop(shared);
}

/// Ends every connection to the database but this one, as a restart of the server does.
async fn cut(scratch: &Scratch) {
    let mut connection = scratch.connect().await;
    let cut = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    sqlx::query(cut).execute(&mut connection).await.expect("nobody else is connected");
}

#[tokio::test]
async fn a_lock_that_was_lost_is_taken_again() {
    for attendance in [Attendance::Alone, Attendance::Shared] {
        let scratch = Scratch::new().await;
        let store = PostgresStore::open(&scratch.url(), attendance).await.expect("a store");
        store.ping().await.expect("a ping");
        cut(&scratch).await;
        store.ping().await.expect("a ping that takes the lock again");
        let refused = PostgresStore::open(&scratch.url(), Attendance::Alone).await;
        assert!(matches!(refused, Err(OpenError::Attended(_))));
        store.ping().await.expect("a ping that finds it held");
        store.close().await;
    }
}

#[tokio::test]
async fn a_node_whose_place_was_taken_stores_nothing_more() {
    let scratch = Scratch::new().await;
    let ousted = PostgresStore::open(&scratch.url(), Attendance::Alone).await.expect("a store");
    let create = |number| create(JobId(uuid::Uuid::from_u128(number)), spec(), "ann".into(), at(0)).expect("a job");
    ousted.commit(&[create(1)]).await.expect("a commit");
    cut(&scratch).await;
    let other = PostgresStore::open(&scratch.url(), Attendance::Alone).await.expect("the faster one");
    assert!(ousted.ping().await.is_err());
    assert!(matches!(ousted.ousted().await, OpenError::Attended(Attendance::Alone)));
    assert!(ousted.commit(&[create(2)]).await.is_err());
    other.ping().await.expect("a ping");
    // For good: its runners are elsewhere.
    other.close().await;
    drop(other);
    assert!(ousted.ping().await.is_err() && ousted.commit(&[create(2)]).await.is_err());
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let error = PostgresStore::open("postgres://me:secret@127.0.0.1:1/none", Attendance::Shared).await.err();
    let sentence = error.expect("a refusal").to_string();
    assert!(sentence.contains("127.0.0.1:1") && !sentence.contains("secret"), "{sentence}");
}

/// How the server would carry a statement of a commit out, a line each.
async fn plan(connection: &mut PgConnection, statement: &str) -> Vec<String> {
    let script = [
        Kind::Commit.begin().to_owned(),
        format!("PREPARE commits (errand.job_change[]) AS {statement}"),
        "EXPLAIN EXECUTE commits ('{}')".to_owned(),
        "DEALLOCATE commits".to_owned(),
        "ROLLBACK".to_owned(),
    ];
    let rows = connection.fetch_all(AssertSqlSafe(script.join(";\n"))).await.expect("a plan");
    rows.iter().map(|row| row.get::<String, _>(0)).collect()
}

#[tokio::test]
async fn a_commit_looks_rows_up_also_in_a_table_that_was_counted_when_it_was_empty() {
    let scratch = Scratch::new().await;
    let store = scratch.store().await;
    let create = |number| create(JobId(uuid::Uuid::from_u128(number)), spec(), "ann".into(), at(0)).expect("a job");
    store.commit(&(1..=1_000).map(create).collect::<Vec<_>>()).await.expect("a commit");
    let mut connection = scratch.connect().await;
    let empty = "UPDATE pg_class SET reltuples = 0, relpages = 100 WHERE oid = 'errand.jobs'::regclass";
    connection.execute(empty).await.expect("a superuser");
    for statement in [UPDATE_JOBS, FINISH_JOBS] {
        let plan = plan(&mut connection, statement).await;
        let finds = plan.iter().filter(|line| line.contains("Scan") && line.contains("jobs")).count();
        let looks_up = plan.iter().filter(|line| line.contains("Index Cond: (id = v.job_id)")).count();
        // The bitmap's scans of the table and of the index.
        assert_eq!((finds, looks_up), (2, 1), "{}", plan.join("\n"));
    }
}
