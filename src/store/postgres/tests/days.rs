//! Days that go whole.

use std::{
    sync::atomic::{AtomicBool, AtomicU64},
    time::Duration,
};

use sqlx::PgConnection;

use super::*;
use crate::{
    model::{
        Parts, Status,
        lifecycle::create_part,
        log::{JobLog, LogKind},
    },
    store::{
        ListQuery, Outdated, StoreError,
        contract::everything,
        postgres::{
            days::{self, Left},
            partitions::{self, Day},
        },
    },
};

const DAY: u32 = 24 * 3_600;

/// The day of the story, whose start is `at(0)` here.
fn day() -> Day {
    Day::of(super::at(0))
}

fn at(seconds: u32) -> Timestamp {
    day().start().plus_seconds(seconds)
}

fn before(seconds: u32) -> Outdated {
    Outdated { finished_before: at(seconds), leisure: Duration::ZERO, jobs_max: u64::MAX }
}

fn id(seconds: u32, number: u128) -> JobId {
    JobId(uuid::Uuid::from_u128(JobId::first_made_at(at(seconds)).0.as_u128() + number))
}

fn spec() -> JobSpec {
    JobSpec { expiry: Expiry::At(Timestamp::MAX), ..super::spec() }
}

/// A store that has partitions for the day and the one after it.
async fn two_days(scratch: &Scratch) -> PostgresStore {
    let store = scratch.store().await;
    partitions::make(&store.writers, day(), day().plus(1)).await.map_err(StoreError::from).expect("days");
    store
}

async fn put(store: &PostgresStore, step: crate::model::Step) -> Arc<Job> {
    assert_eq!(store.commit(std::slice::from_ref(&step)).await.expect("a commit"), [Outcome::Applied]);
    step.job
}

async fn created(store: &PostgresStore, id: JobId, spec: JobSpec, seconds: u32) -> Arc<Job> {
    put(store, create(id, spec, "ann".into(), at(seconds)).expect("a job")).await
}

/// A job that was made on the first day and fails after so many executions.
async fn failed(store: &PostgresStore, id: JobId, spec: JobSpec, (executions, seconds): (u32, u32)) -> Arc<Job> {
    let mut job = created(store, id, spec, 1).await;
    for attempt in 1..=executions {
        let when = if attempt == executions { at(seconds) } else { job.ready_at };
        let when = when.max(job.ready_at);
        job = put(store, step(&job, Input::Claim { runner_id: "r".into() }, when, 0).expect("a claim")).await;
        let failure = crate::model::lifecycle::Failure {
            permanent: attempt == executions,
            retry_after: Some(Duration::from_millis(1)),
            ..Default::default()
        };
        let input = Input::Fail { attempt, failure, metadata: None };
        job = put(store, step(&job, input, when, 0).expect("a failure")).await;
    }
    job
}

fn keyed(key: &str) -> JobSpec {
    JobSpec { idempotency_key: Some(key.into()), ..spec() }
}

async fn log(store: &PostgresStore, job: &Job) {
    let line = JobLog {
        id: 0,
        job_id: job.id,
        channel: job.channel.clone(),
        created: at(1),
        kind: LogKind::Info,
        message: "x".into(),
        meta: String::new(),
    };
    store.append_logs(&[line]).await.expect("a line");
}

async fn number(connection: &mut PgConnection, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(connection).await.expect(query)
}

/// Tables of the first day, whatever they are called.
async fn tables(connection: &mut PgConnection) -> i64 {
    let count = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname LIKE '%\\_' || $1";
    sqlx::query_scalar(count).bind(day().suffix()).fetch_one(connection).await.expect("a count")
}

async fn forgotten(store: &PostgresStore, outdated: Outdated, limit: u32) -> u64 {
    let (mut jobs, mut after) = (0, None);
    loop {
        let looked = store.forget(outdated, after, limit).await.expect("a look");
        jobs += looked.jobs;
        after = looked.next;
        if after.is_none() {
            return jobs;
        }
    }
}

#[tokio::test]
async fn a_day_of_old_jobs_goes_whole() {
    let scratch = Scratch::new().await;
    let store = two_days(&scratch).await;
    let mut connection = scratch.connect().await;
    for n in 0..5 {
        let job = failed(&store, id(1, n), keyed(&format!("k{n}")), (9, 100)).await;
        log(&store, &job).await;
    }
    let young = failed(&store, id(DAY + 1, 0), keyed("young"), (1, DAY + 10)).await;
    assert!(number(&mut connection, "SELECT count(*) FROM errand.late_events").await > 0);
    // The day may still get jobs from slow clocks; its rows go one by one.
    assert_eq!(forgotten(&store, Outdated { jobs_max: 0, ..before(DAY + 20) }, 1).await, 0);
    assert_eq!(tables(&mut connection).await, 2);
    // A limit of one: it cannot be the rows that go.
    let look = store.forget(before(2 * DAY), Some(JobId(day_before_first())), 1).await.expect("a look");
    assert_eq!(look.jobs, 5);
    assert_eq!(tables(&mut connection).await, 0);
    assert_eq!(number(&mut connection, "SELECT count(*) FROM errand.late_events").await, 0);
    assert_eq!(number(&mut connection, "SELECT count(*) FROM errand.keys").await, 1);
    assert_eq!(number(&mut connection, "SELECT count(*) FROM errand.logs").await, 0);
    let tally = store.tally(at(3 * DAY)).await.expect("a tally");
    assert_eq!((tally.ended(), tally.failed, tally.oldest_ended), (1, 1, Some(young.created)));
    assert_eq!(loaded(&store, young.id).await.status, Status::Failed);
    created(&store, id(2 * DAY, 7), keyed("k1"), 2 * DAY).await;
    // Jobs of that day may still come, late; they are among the rest, and go one by one.
    failed(&store, id(1, 77), keyed("k0"), (1, 2 * DAY)).await;
    assert_eq!(forgotten(&store, before(4 * DAY), 10).await, 2);
    assert_eq!(store.tally(at(3 * DAY)).await.expect("a tally").ended(), 0);
    store.close().await;
}

fn day_before_first() -> uuid::Uuid {
    uuid::Uuid::from_u128(day().first_id().as_u128() - 1)
}

#[tokio::test]
async fn a_day_waits_for_what_must_stay() {
    let scratch = Scratch::new().await;
    let store = two_days(&scratch).await;
    let mut connection = scratch.connect().await;
    for n in 0..5 {
        failed(&store, id(1, n), spec(), (1, 100)).await;
    }
    let late = created(&store, id(1, 9), spec(), 1).await;
    assert_eq!(forgotten(&store, before(2 * DAY), 2).await, 5);
    assert_eq!(tables(&mut connection).await, 2);
    let canceled = put(&store, step(&late, Input::Cancel, at(2 * DAY + 5), 0).expect("an end")).await;
    assert_eq!(forgotten(&store, before(2 * DAY + 5), 2).await, 0);
    assert_eq!(loaded(&store, late.id).await, *canceled);
    assert_eq!(tables(&mut connection).await, 2);
    assert_eq!(forgotten(&store, Outdated { jobs_max: 1, ..before(2 * DAY + 6) }, 2).await, 1);
    assert_eq!(tables(&mut connection).await, 0);
    assert_eq!(store.tally(at(0)).await.expect("a tally").ended(), 0);
    store.close().await;
}

#[tokio::test]
async fn no_more_jobs_go_than_may() {
    let scratch = Scratch::new().await;
    let store = two_days(&scratch).await;
    let mut connection = scratch.connect().await;
    for n in 0..5 {
        failed(&store, id(1, n), spec(), (1, 100)).await;
    }
    let look = store.forget(Outdated { jobs_max: 2, ..before(3 * DAY) }, Some(JobId(day_before_first())), 9).await;
    assert_eq!(look.expect("a look").jobs, 2);
    assert_eq!(tables(&mut connection).await, 2);
    assert_eq!(store.tally(at(0)).await.expect("a tally").ended(), 3);
    store.close().await;
}

/// Their time is over, but in a day they go with all others of theirs.
#[tokio::test]
async fn jobs_wait_for_their_day_where_there_is_leisure() {
    let scratch = Scratch::new().await;
    let store = two_days(&scratch).await;
    failed(&store, id(1, 0), spec(), (1, 100)).await;
    let leisure = Duration::from_secs(26 * 3_600);
    assert_eq!(forgotten(&store, Outdated { leisure, ..before(DAY + 3_599) }, 9).await, 0);
    assert_eq!(forgotten(&store, Outdated { leisure, ..before(DAY + 3_601) }, 9).await, 1);
    // What is in no day's partition goes when the leisure is over.
    failed(&store, id(1, 1), spec(), (1, 100)).await;
    assert_eq!(forgotten(&store, Outdated { leisure, ..before(DAY + 3_601) }, 9).await, 0);
    assert_eq!(forgotten(&store, Outdated { leisure, ..before(DAY + 7_401) }, 9).await, 1);
    store.close().await;
}

#[tokio::test]
async fn parts_in_another_day_go_with_their_parent() {
    let scratch = Scratch::new().await;
    let store = two_days(&scratch).await;
    let mut connection = scratch.connect().await;
    let broadcast = JobSpec { broadcast: true, ..spec() };
    // One whose parts are of the next day, and one of the next day's that has a part in this one, by a slow clock.
    let mut parents = Vec::new();
    for (of_parent, of_part) in [(id(1, 1), id(DAY + 1, 1)), (id(DAY + 2, 2), id(2, 2))] {
        let parent = created(&store, of_parent, broadcast.clone(), 1).await;
        let parent = put(&store, step(&parent, Input::Fanout { parts: 1 }, at(DAY), 0).expect("a fan-out")).await;
        let part = put(&store, create_part(of_part, &parent, "r", at(DAY))).await;
        log(&store, &part).await;
        let claim = step(&part, Input::Claim { runner_id: "r".into() }, at(DAY), 0).expect("a claim");
        let part = put(&store, claim).await;
        parents.push((parent, part));
    }
    let end = async |(parent, part): &(Arc<Job>, Arc<Job>), seconds| {
        let complete = Input::Complete { attempt: 1, result: String::new(), metadata: None };
        put(&store, step(part, complete, at(seconds), 0).expect("an end")).await;
        let parts = Parts { total: 1, completed: 1, ..Parts::default() };
        put(&store, step(parent, Input::Settle { parts }, at(seconds), 0).expect("an end")).await;
    };
    assert_eq!(forgotten(&store, before(3 * DAY), 9).await, 0);
    end(&parents[0], DAY + 10).await;
    assert_eq!(forgotten(&store, before(3 * DAY), 9).await, 1);
    // The other one's part is in this day still.
    assert_eq!(tables(&mut connection).await, 2);
    end(&parents[1], DAY + 10).await;
    forgotten(&store, before(3 * DAY), 9).await;
    assert_eq!(forgotten(&store, before(3 * DAY), 9).await, 0);
    let ids: Vec<JobId> = parents.iter().flat_map(|(parent, part)| [parent.id, part.id]).collect();
    assert_eq!(store.load(&ids).await.expect("a load"), [None, None, None, None]);
    assert_eq!(tables(&mut connection).await, 0);
    assert_eq!(number(&mut connection, "SELECT count(*) FROM errand.logs").await, 0);
    assert_eq!(store.tally(at(0)).await.expect("a tally").ended(), 0);
    store.close().await;
}

/// A node detached the day and died; one of its jobs must stay after all.
#[tokio::test]
async fn what_a_dead_node_began_is_ended() {
    let scratch = Scratch::new().await;
    let store = two_days(&scratch).await;
    let mut connection = scratch.connect().await;
    for n in 0..3 {
        failed(&store, id(1, n), spec(), (1, 100)).await;
    }
    let (left, jobs) =
        days::leave(&store.writers, day(), before(2 * DAY), 0).await.map_err(StoreError::from).expect("a day");
    assert_eq!((left, jobs), (Left::Gone, 0));
    assert_eq!(store.load(&[id(1, 0)]).await.expect("a load"), [None]);
    assert_eq!(store.tally(at(0)).await.expect("a tally").ended(), 3);
    let suffix = day().suffix();
    let late = format!("UPDATE errand.leaving_{suffix} SET finished_at = $1 WHERE id = $2");
    let late = sqlx::query(sqlx::AssertSqlSafe(late)).bind(at(9 * DAY).0).bind(id(1, 2).0);
    late.execute(&mut connection).await.expect("an update");
    store.close().await;

    let store = scratch.store().await;
    assert_eq!(forgotten(&store, before(2 * DAY), 9).await, 2);
    assert_eq!(tables(&mut connection).await, 0);
    assert_eq!(loaded(&store, id(1, 2)).await.finished_at, Some(at(9 * DAY)));
    assert_eq!(store.tally(at(0)).await.expect("a tally").ended(), 1);
    assert_eq!(forgotten(&store, before(2 * DAY), 9).await, 0);
    store.close().await;
}

/// Two nodes drop the same days while others work: nobody notices, and all counts are right.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_work_on_while_a_day_goes() {
    let scratch = Scratch::new().await;
    let store = Arc::new(two_days(&scratch).await);
    let mut connection = scratch.connect().await;
    for n in 0..50 {
        failed(&store, id(1, n), spec(), (1, 100)).await;
    }
    let over = Arc::new(AtomicBool::new(false));
    let made = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..4 {
        let (store, over, made) = (store.clone(), over.clone(), made.clone());
        tasks.spawn(async move {
            let mut number = 0;
            while !over.load(Ordering::Relaxed) {
                number += 1;
                let job = created(&store, id(5 * DAY + task, number), spec(), 5 * DAY).await;
                put(&store, step(&job, Input::Cancel, at(5 * DAY), 0).expect("an end")).await;
                made.fetch_add(1, Ordering::Relaxed);
                store.load(&[job.id, id(1, 0)]).await.expect("a load");
                store
                    .list(&ListQuery { descending: true, limit: 20, count: true, ..everything() })
                    .await
                    .expect("a page");
            }
        });
    }
    let others = [scratch.store().await, scratch.store().await];
    let gone = async {
        let mut jobs = 0;
        while tables(&mut connection).await > 0 {
            let (one, two) =
                tokio::join!(forgotten(&others[0], before(3 * DAY), 10), forgotten(&others[1], before(3 * DAY), 10));
            jobs += one + two;
        }
        jobs
    };
    let jobs = tokio::time::timeout(Duration::from_secs(60), gone).await.expect("the day goes");
    over.store(true, Ordering::Relaxed);
    while let Some(done) = tasks.join_next().await {
        done.expect("a task that ends well");
    }
    assert_eq!(jobs, 50);
    assert_eq!(store.tally(at(0)).await.expect("a tally").ended(), made.load(Ordering::Relaxed));
    store.close().await;
}
