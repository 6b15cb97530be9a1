//! The contract of [`Store`], told once and run on every implementation.
//!
//! Each case starts on an empty store. The cases on SQLite's file itself stand at the end; `random` holds the
//! implementations to each other over random histories.

mod lists;
mod queues;
mod random;
mod retention;
mod writes;

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use super::{
    Forgotten, ListQuery, OrderBy, Outcome, Outdated, Store,
    memory::MemoryStore,
    postgres::scratch::Scratch,
    sqlite::{OpenError, SqliteStore},
};
use crate::model::{
    Expiry, Input, Job, JobId, JobSpec, Start, Step, Timestamp, create,
    lifecycle::{create_part, step},
    log::{JobLog, LogKind},
};

macro_rules! contract {
    ($($module:ident::$case:ident,)*) => {
        mod memory {
            $(#[tokio::test]
            async fn $case() {
                super::$module::$case(&super::MemoryStore::new()).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test]
            async fn $case() {
                let folder = tempfile::tempdir().expect("a folder");
                let store = super::SqliteStore::open(&folder.path().join("jobs.db")).await.expect("a store");
                super::$module::$case(&store).await;
                super::Store::close(&store).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $case() {
                let scratch = super::Scratch::new().await;
                let store = scratch.store().await;
                super::$module::$case(&store).await;
                super::Store::close(&store).await;
            })*
        }
    };
}

contract! {
    writes::every_field_returns_as_it_was_stored,
    writes::a_step_from_another_version_changes_nothing,
    writes::a_used_key_names_its_job,
    writes::steps_of_one_job_apply_in_order,
    writes::all_or_nothing_stores_nothing_where_one_is_refused,
    writes::a_batch_of_any_size_is_stored,
    writes::events_are_the_latest_in_order,
    writes::logs_are_paged_and_filtered,
    writes::deletion_takes_everything_with_it,
    writes::a_closed_store_is_unavailable,
    queues::ready_jobs_come_in_order_and_continue,
    queues::what_is_due_comes_longest_due_first,
    queues::run_times_are_found,
    queues::running_jobs_are_paged,
    queues::parts_are_counted_and_listed,
    queues::a_place_in_line_is_counted,
    lists::every_filter_filters,
    lists::every_order_orders,
    lists::pages_follow_each_other,
    lists::more_than_are_counted_are_told_from_kept_counts_or_estimated,
    lists::a_search_has_no_special_characters,
    lists::tallies_follow_each_change,
    retention::what_ended_long_ago_goes_with_all_that_is_its_own,
    retention::unfinished_and_recent_jobs_stay,
    retention::each_look_is_bounded_and_the_next_goes_on,
    retention::parts_go_with_their_parent,
    retention::the_oldest_go_first_and_no_more_than_asked,
    retention::a_look_ends_where_ids_are_too_young,
}

/// Seconds after the start of the story.
fn at(seconds: u32) -> Timestamp {
    Timestamp(1_700_000_000_000_000).plus_seconds(seconds)
}

fn id(number: u128) -> JobId {
    JobId(Uuid::from_u128(number))
}

fn spec(channel: &str) -> JobSpec {
    JobSpec { channel: channel.into(), max_retries: 3, ..JobSpec::sample() }
}

fn created(number: u128, spec: JobSpec) -> Step {
    create(id(number), spec, "ann".into(), at(0)).expect("a job")
}

fn keyed(number: u128, key: &str) -> Step {
    created(number, JobSpec { idempotency_key: Some(key.into()), ..spec("a") })
}

fn stepped(job: &Job, input: Input, now: Timestamp) -> Step {
    step(job, input, now, 0).expect("a step")
}

fn claimed(job: &Job, now: Timestamp) -> Step {
    stepped(job, Input::Claim { runner_id: "r1".into() }, now)
}

fn completed(job: &Job, now: Timestamp) -> Step {
    let input = Input::Complete { attempt: job.attempt, result: r#""ok""#.into(), metadata: Some(r#"{"a":1}"#.into()) };
    stepped(job, input, now)
}

/// Stores steps that must all apply.
async fn put(store: &dyn Store, steps: &[Step]) {
    let outcomes = store.commit(steps).await.expect("a commit");
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Applied), "{outcomes:?}");
}

/// Stores a step that must apply and returns its job.
async fn stored(store: &dyn Store, step: Step) -> Arc<Job> {
    put(store, std::slice::from_ref(&step)).await;
    step.job
}

async fn loaded(store: &dyn Store, number: u128) -> Option<Job> {
    store.load(&[id(number)]).await.expect("a load").remove(0)
}

fn log_line(job: &Job, kind: LogKind, message: &str) -> JobLog {
    JobLog {
        id: 0,
        job_id: job.id,
        channel: job.channel.clone(),
        created: at(1),
        kind,
        message: message.into(),
        meta: r#"{"k":"ü"}"#.into(),
    }
}

/// All jobs that are no parts, oldest first.
pub fn everything() -> ListQuery {
    ListQuery {
        owner: None,
        channel: None,
        statuses: Vec::new(),
        func: None,
        runner_id: None,
        created_from: None,
        created_to: None,
        search: None,
        broadcast: None,
        parent_id: None,
        order: OrderBy::Created,
        descending: false,
        offset: 0,
        limit: 100,
        before: None,
        count: false,
    }
}

fn ids(jobs: &[Job]) -> Vec<u128> {
    jobs.iter().map(|job| job.id.0.as_u128()).collect()
}

fn before(seconds: u32) -> Outdated {
    Outdated { finished_before: at(seconds), leisure: Duration::ZERO, jobs_max: u64::MAX }
}

/// Walks over all jobs, some at a time; tells how many were removed.
async fn forgotten(store: &dyn Store, outdated: Outdated, limit: u32) -> u64 {
    let (mut jobs, mut after) = (0, None);
    while jobs < outdated.jobs_max {
        let rest = Outdated { jobs_max: outdated.jobs_max - jobs, ..outdated };
        let looked = store.forget(rest, after, limit).await.expect("a look");
        jobs += looked.jobs;
        assert!(looked.next.is_none_or(|next| after.is_none_or(|after| next > after)), "it goes on");
        after = looked.next;
        if after.is_none() {
            break;
        }
    }
    jobs
}

#[tokio::test]
async fn a_reopened_file_has_everything() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("jobs.db");
    let store = SqliteStore::open(&path).await.expect("a store");
    let job = stored(&store, created(1, spec("a"))).await;
    let job = stored(&store, claimed(&job, at(1))).await;
    let job = stored(&store, completed(&job, at(2))).await;
    store.append_logs(&[log_line(&job, LogKind::Info, "hello")]).await.expect("a line");
    let events = store.events(job.id, 10).await.expect("events");
    store.close().await;

    let store = SqliteStore::open(&path).await.expect("the store again");
    assert_eq!(loaded(&store, 1).await.as_ref(), Some(&*job));
    assert_eq!(store.events(job.id, 10).await.expect("events"), events);
    assert_eq!(store.logs(job.id, &[], 0, 10).await.expect("lines").len(), 1);
    assert_eq!(store.tally(at(3)).await.expect("a tally").completed, 1);
    store.ping().await.expect("a ping");
}

/// What a process that was killed leaves behind: its files as they lie on the disk, with what was answered as stored.
#[tokio::test]
async fn what_a_killed_process_stored_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, copy) = (folder.path().join("jobs.db"), folder.path().join("copy.db"));
    let store = SqliteStore::open(&path).await.expect("a store");
    let first = stored(&store, keyed(1, "k")).await;
    // In the tables by now, for a list shows everything.
    assert_eq!(store.list(&everything()).await.expect("a page").jobs.len(), 1);
    let claim = stored(&store, claimed(&first, at(1))).await;
    let ended = stored(&store, completed(&claim, at(2))).await;
    let second = stored(&store, keyed(2, "l")).await;
    let events = store.events(id(1), 10).await.expect("events");
    for side in ["", "-wal"] {
        let file = |path: &std::path::Path| format!("{}{side}", path.display());
        std::fs::copy(file(&path), file(&copy)).expect("a copy");
    }
    store.close().await;

    let store = SqliteStore::open(&copy).await.expect("the copy");
    assert_eq!(loaded(&store, 1).await.as_ref(), Some(&*ended));
    assert_eq!(loaded(&store, 2).await.as_ref(), Some(&*second));
    assert_eq!(store.events(id(1), 10).await.expect("events"), events);
    assert_eq!(events.len(), 3);
    let tally = store.tally(at(3)).await.expect("a tally");
    assert_eq!((tally.completed, tally.channels[&Arc::from("a")].ready), (1, 1));
    let outcomes = store.commit(&[keyed(3, "l"), keyed(4, "m")]).await.expect("a commit");
    assert_eq!(outcomes, [Outcome::Duplicate(id(2)), Outcome::Applied]);
    store.close().await;
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("jobs.db");
    SqliteStore::open(&path).await.expect("a store").close().await;
    let file = rusqlite::Connection::open(&path).expect("a connection");
    file.pragma_update(None, "user_version", 77).expect("a later version");
    drop(file);
    let error = SqliteStore::open(&path).await.err().expect("a refusal");
    assert!(matches!(error, OpenError::SchemaTooNew { found: 77, .. }), "{error}");
}

#[tokio::test]
async fn a_file_of_another_program_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("jobs.db");
    std::fs::write(&path, "something else, and long enough to have a header. ".repeat(100)).expect("a file");
    let error = SqliteStore::open(&path).await.err().expect("a refusal");
    assert!(matches!(error, OpenError::Corrupt(_)), "{error:?}");
}

#[cfg(unix)]
#[tokio::test]
async fn the_files_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let store = SqliteStore::open(&folder.path().join("jobs.db")).await.expect("a store");
    stored(&store, created(1, spec("a"))).await;
    for entry in std::fs::read_dir(folder.path()).expect("a folder") {
        let entry = entry.expect("a file");
        let mode = entry.metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", entry.path());
    }
}
