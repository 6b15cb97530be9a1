//! Cases of storing, and of what was stored.

use super::*;
use crate::{
    model::{EventKind, Status, lifecycle::Failure},
    store::StoreError,
};

pub(super) async fn every_field_returns_as_it_was_stored(store: &dyn Store) {
    let full = created(
        1,
        JobSpec {
            func: "versende_ß🚀".into(),
            payload: r#"{"n":12345678901234567890123, "t": "é\u0000", "🚀":1.0}"#.into(),
            start: Start::At(Timestamp(253_402_300_000_000_000)),
            expiry: Expiry::At(Timestamp::MAX),
            max_retries: u32::MAX,
            backoff_base: 1.1e300,
            backoff_max_seconds: u32::MAX,
            broadcast: true,
            max_exec_seconds: Some(u32::MAX),
            idempotency_key: Some("'; DROP TABLE jobs; --".into()),
            priority: i32::MIN,
            traceparent: "00-1-2-03".into(),
            fingerprint: *b"\x00\xff23456789abcdef",
            ..spec("a")
        },
    );
    let mut job = (*full.job).clone();
    job.expiry = Expiry::In(u32::MAX);
    job.id = id(u128::MAX);
    job.idempotency_key = None;
    job.priority = i32::MAX;
    let mut other = Step { job: Arc::new(job), event: None, ..full.clone() };
    let job = Arc::make_mut(&mut other.job);
    job.parent_id = Some(id(1));
    job.cancel_requested = true;
    (job.version, job.attempt, job.releases, job.event_seq) = (u32::MAX, u32::MAX, u32::MAX, u32::MAX);
    (job.started_at, job.finished_at) = (Some(at(1)), Some(at(2)));
    job.runner_id = Some("r".into());
    (job.last_error, job.stack_trace) = ("a\nb".repeat(5_000), "…".into());
    (job.metadata, job.result) = (r#"{"m":"ü"}"#.into(), "null".into());
    put(store, &[full.clone(), other.clone(), created(2, spec("a"))]).await;
    let jobs = store.load(&[other.job.id, id(9), id(1), id(1)]).await.expect("a load");
    let full = Some((*full.job).clone());
    assert_eq!(jobs, [Some((*other.job).clone()), None, full.clone(), full]);
    assert_eq!(store.load(&[]).await.expect("a load"), []);
}

pub(super) async fn a_step_from_another_version_changes_nothing(store: &dyn Store) {
    let first = stored(store, created(1, spec("a"))).await;
    let claim = claimed(&first, at(1));
    let cancel = stepped(&first, Input::Cancel, at(1));
    let absent = claimed(&created(2, spec("a")).job, at(1));
    let same_id = created(1, spec("b"));
    let outcomes =
        store.commit(&[claim.clone(), cancel, absent, same_id, created(3, spec("a"))]).await.expect("a commit");
    assert_eq!(outcomes, [Outcome::Applied, Outcome::Stale, Outcome::Stale, Outcome::Stale, Outcome::Applied]);
    assert_eq!(loaded(store, 1).await.as_ref(), Some(&*claim.job));
    assert_eq!(loaded(store, 2).await, None);
    assert_eq!(store.events(id(1), 10).await.expect("events").len(), 2);
    assert_eq!(store.events(id(2), 10).await.expect("events"), []);
}

pub(super) async fn a_used_key_names_its_job(store: &dyn Store) {
    let mut of_bob = keyed(4, "k");
    Arc::make_mut(&mut of_bob.job).owner = "bob".into();
    let outcomes = store.commit(&[keyed(1, "k"), keyed(2, "k"), keyed(3, "l"), of_bob]).await.expect("a commit");
    assert_eq!(outcomes, [Outcome::Applied, Outcome::Duplicate(id(1)), Outcome::Applied, Outcome::Applied]);
    let outcomes = store.commit(&[keyed(5, "l"), created(6, spec("a")), keyed(1, "k")]).await.expect("a commit");
    assert_eq!(outcomes, [Outcome::Duplicate(id(3)), Outcome::Applied, Outcome::Duplicate(id(1))]);
    assert_eq!(loaded(store, 2).await, None);
    assert_eq!(store.events(id(5), 10).await.expect("events"), []);
    assert!(store.delete(id(1), 1).await.expect("a deletion"));
    put(store, &[keyed(7, "k")]).await;
}

pub(super) async fn steps_of_one_job_apply_in_order(store: &dyn Store) {
    let create = created(1, spec("a"));
    let claim = claimed(&create.job, at(1));
    let complete = completed(&claim.job, at(2));
    let late = stepped(&claim.job, Input::Cancel, at(2));
    let batch = [create, created(2, spec("a")), claim, complete.clone(), late, created(3, spec("a"))];
    let outcomes = store.commit(&batch).await.expect("a commit");
    let applied = Outcome::Applied;
    assert_eq!(outcomes, [applied, applied, applied, applied, Outcome::Stale, applied]);
    assert_eq!(loaded(store, 1).await.as_ref(), Some(&*complete.job));
    let kinds: Vec<EventKind> = store.events(id(1), 9).await.expect("events").iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Created, EventKind::Running, EventKind::Completed]);
}

pub(super) async fn all_or_nothing_stores_nothing_where_one_is_refused(store: &dyn Store) {
    put(store, &[keyed(1, "k")]).await;
    let outcomes = store.commit_all(&[created(2, spec("a")), keyed(3, "k")]).await.expect("a commit");
    assert_eq!(outcomes, [Outcome::Applied, Outcome::Duplicate(id(1))]);
    assert_eq!(loaded(store, 2).await, None);
    assert_eq!(store.events(id(2), 10).await.expect("events"), []);
    let outcomes = store.commit_all(&[created(2, spec("a")), created(3, spec("a"))]).await.expect("a commit");
    assert_eq!(outcomes, [Outcome::Applied; 2]);
    assert!(loaded(store, 3).await.is_some());
    assert_eq!(store.commit_all(&[]).await.expect("a commit"), []);
}

pub(super) async fn a_batch_of_any_size_is_stored(store: &dyn Store) {
    let steps: Vec<Step> = (1..=1_003).map(|number| created(number, spec("a"))).collect();
    put(store, &steps).await;
    let claims: Vec<Step> = steps.iter().map(|step| claimed(&step.job, at(1))).collect();
    put(store, &claims).await;
    let wanted: Vec<JobId> = (1..=1_003).map(id).collect();
    let jobs = store.load(&wanted).await.expect("a load");
    assert!(jobs.iter().zip(&claims).all(|(job, claim)| job.as_ref() == Some(&*claim.job)));
    assert_eq!(store.commit(&[]).await.expect("a commit"), []);
}

pub(super) async fn events_are_the_latest_in_order(store: &dyn Store) {
    let create = created(1, spec("a"));
    let claim = claimed(&create.job, at(1));
    let failure = Failure { error: "no \"luck\" ü".into(), ..Failure::default() };
    let fail = stepped(&claim.job, Input::Fail { attempt: 1, failure, metadata: None }, at(2));
    let progress = stepped(&claim.job, Input::Progress { attempt: 1, metadata: "{}".into() }, at(2));
    assert_eq!(progress.event, None);
    let expected: Vec<_> = [&create, &claim, &fail].into_iter().filter_map(|step| step.event.clone()).collect();
    put(store, &[create, claim, fail]).await;
    assert_eq!(store.events(id(1), 10).await.expect("events"), expected);
    assert_eq!(store.events(id(1), 2).await.expect("events"), expected[1..]);
    assert_eq!(store.events(id(1), 0).await.expect("events"), []);
}

pub(super) async fn logs_are_paged_and_filtered(store: &dyn Store) {
    let job = stored(store, created(1, spec("a"))).await;
    let other = stored(store, created(2, spec("a"))).await;
    let gone = created(3, spec("a")).job;
    let kinds = [LogKind::Debug, LogKind::Info, LogKind::Warn, LogKind::Error];
    let mut lines: Vec<JobLog> = kinds.iter().map(|kind| log_line(&job, *kind, kind_name(*kind))).collect();
    lines.insert(2, log_line(&other, LogKind::Info, "other"));
    lines.insert(3, log_line(&gone, LogKind::Info, "gone"));
    store.append_logs(&lines).await.expect("lines");
    store.append_logs(&[log_line(&job, LogKind::Info, "last")]).await.expect("a line");
    store.append_logs(&[]).await.expect("no line");
    let all = store.logs(job.id, &[], 0, 100).await.expect("lines");
    assert!(all.is_sorted_by(|a, b| a.id < b.id) && all[0].id > 0);
    let messages: Vec<&str> = all.iter().map(|line| line.message.as_str()).collect();
    assert_eq!(messages, ["debug", "info", "warn", "error", "last"]);
    assert_eq!(JobLog { id: 0, ..all[1].clone() }, lines[1]);
    assert_eq!(store.logs(job.id, &[], all[1].id, 2).await.expect("lines"), all[2..4]);
    let chosen = store.logs(job.id, &[LogKind::Info, LogKind::Error], all[1].id, 9).await.expect("lines");
    assert_eq!(chosen, all[3..]);
    assert_eq!(store.logs(gone.id, &[], 0, 9).await.expect("lines"), []);
    assert_eq!(store.logs(job.id, &[], u64::MAX, 9).await.expect("lines"), []);
}

fn kind_name(kind: LogKind) -> &'static str {
    match kind {
        LogKind::Debug => "debug",
        LogKind::Info => "info",
        LogKind::Warn => "warn",
        LogKind::Error => "error",
    }
}

pub(super) async fn deletion_takes_everything_with_it(store: &dyn Store) {
    let parent = stored(store, created(1, JobSpec { broadcast: true, ..spec("a") })).await;
    let part = stored(store, create_part(id(2), &parent, "r1", at(1))).await;
    let other = stored(store, created(3, spec("a"))).await;
    for job in [&parent, &part, &other] {
        store.append_logs(&[log_line(job, LogKind::Info, "x")]).await.expect("a line");
    }
    assert!(!store.delete(id(1), 2).await.expect("no deletion"));
    assert!(!store.delete(id(9), 1).await.expect("no deletion"));
    assert!(store.delete(id(1), 1).await.expect("a deletion"));
    for gone in [id(1), id(2)] {
        assert_eq!(store.load(&[gone]).await.expect("a load"), [None]);
        assert_eq!(store.events(gone, 9).await.expect("events"), []);
        assert_eq!(store.logs(gone, &[], 0, 9).await.expect("lines"), []);
    }
    assert_eq!(loaded(store, 3).await.map(|job| job.status), Some(Status::Pending));
    assert_eq!(store.events(id(3), 9).await.expect("events").len(), 1);
    assert_eq!(store.logs(id(3), &[], 0, 9).await.expect("lines").len(), 1);
}

pub(super) async fn a_closed_store_is_unavailable(store: &dyn Store) {
    store.ping().await.expect("a ping");
    store.close().await;
    let unavailable = |error| matches!(error, StoreError::Unavailable(_));
    assert!(store.ping().await.is_err_and(unavailable));
    assert!(store.commit(&[created(1, spec("a"))]).await.is_err_and(unavailable));
    assert!(store.load(&[id(1)]).await.is_err_and(unavailable));
}
