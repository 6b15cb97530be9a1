//! Random histories: whatever is done, all implementations answer alike.

use proptest::{prelude::*, test_runner::TestRunner};

use super::*;
use crate::{
    model::{Status, lifecycle::Failure},
    store::Due,
};

/// One thing that may happen: a kind, the job it happens to, and a number to vary it.
type Happening = (u8, u8, u8);

/// The step of one happening, from what the oracle has stored; some expect a version that is over.
async fn step_of(store: &dyn Store, (kind, number, variant): Happening, now: Timestamp) -> Option<Step> {
    let job = loaded(store, u128::from(number)).await;
    let Some(job) = job else {
        return Some(fresh(number, variant, now));
    };
    let attempt = job.attempt;
    let error = Failure { error: "x".into(), permanent: variant.is_multiple_of(5), ..Failure::default() };
    let input = match kind % 12 {
        0 => return Some(fresh(number, variant, now)),
        // Parts are made as their parent fans out: none of a job that has ended.
        1 if job.broadcast && !job.status.is_terminal() => {
            return Some(create_part(id(u128::from(variant)), &job, "r1", now));
        }
        2..=4 => Input::Claim { runner_id: format!("r{}", variant % 3).into() },
        5 => Input::Complete { attempt, result: "1".into(), metadata: None },
        6 => Input::Fail { attempt, failure: error, metadata: None },
        7 => Input::Release { attempt },
        8 => Input::Cancel,
        9 => Input::Expire,
        10 => Input::Fanout { parts: 1 },
        _ => Input::Retried { new_id: id(99) },
    };
    let mut step = step(&job, input, now, u64::from(variant)).ok()?;
    if variant.is_multiple_of(11) {
        step.expected = step.expected.map(|version| version - 1);
    }
    Some(step)
}

/// What comes right behind the step that makes a job: a claim, or its end.
fn follower_of(made: &Step, now: Timestamp) -> Option<Step> {
    if made.expected.is_some() {
        return None;
    }
    let input = Input::Claim { runner_id: "r2".into() };
    step(&made.job, input, now, 0).or_else(|_| step(&made.job, Input::Cancel, now, 0)).ok()
}

fn fresh(number: u8, variant: u8, now: Timestamp) -> Step {
    let spec = JobSpec {
        start: if variant.is_multiple_of(3) { Start::In(u32::from(variant)) } else { Start::Now },
        priority: i32::from(variant % 4),
        broadcast: variant.is_multiple_of(3),
        max_exec_seconds: (variant.is_multiple_of(2)).then_some(20),
        idempotency_key: (variant.is_multiple_of(5)).then(|| format!("k{}", variant % 3).into()),
        ..spec(if variant.is_multiple_of(2) { "a" } else { "b" })
    };
    let owner = if variant.is_multiple_of(4) { "ann" } else { "bob" };
    create(id(u128::from(number)), spec, owner.into(), now).expect("a job")
}

/// Everything a store can be asked, as text.
async fn answers(store: &dyn Store, now: Timestamp) -> String {
    let mut texts = Vec::new();
    let mut query = ListQuery { count: true, ..everything() };
    for order in [OrderBy::Created, OrderBy::Modified, OrderBy::StartedAt, OrderBy::FinishedAt, OrderBy::RunAt] {
        query = ListQuery { order, descending: !query.descending, ..query };
        texts.push(format!("{:?}", store.list(&query).await));
    }
    for status in Status::ALL {
        let query = ListQuery { statuses: vec![status], owner: Some("bob".into()), ..query.clone() };
        texts.push(format!("{:?}", store.list(&query).await));
    }
    for query in choices() {
        for query in [query.clone(), ListQuery { descending: true, offset: 1, limit: 3, ..query.clone() }] {
            texts.push(format!("{:?}", store.list(&query).await));
            let query = ListQuery { order: OrderBy::FinishedAt, before: Some(id(9)), ..query };
            texts.push(format!("{:?}", store.list(&query).await));
        }
    }
    for channel in ["a", "b", "@r1"] {
        let ready = store.ready(channel, now, None, 5).await.expect("jobs");
        texts.push(format!("{:?}", store.ready(channel, now, ready.get(1), 3).await));
        texts.push(format!("{ready:?}"));
    }
    for due in [Due::Expiry, Due::Overrun, Due::Broadcast, Due::Parent] {
        texts.push(format!("{:?}", store.due(due, now, 4).await));
    }
    for number in 0..12 {
        texts.push(format!("{:?}", store.events(id(number), 3).await));
        texts.push(format!("{:?} {:?}", store.parts(id(number)).await, store.unfinished_parts(id(number), 2).await));
        if let Some(job) = loaded(store, number).await {
            texts.push(format!("{job:?} {:?}", store.jobs_before(&job, now).await));
        }
    }
    texts.push(format!("{:?} {:?}", store.tally(now).await, store.pending_channels().await));
    texts.push(format!("{:?} {:?}", store.running(Some(id(2)), 3).await, store.agenda(now).await));
    texts.push(format!("{:?}", store.due_between(at(0), now, 4).await));
    texts.join("\n")
}

/// Lists with filters that have something to do with each other.
fn choices() -> Vec<ListQuery> {
    let all = || ListQuery { count: true, ..everything() };
    let unfinished = vec![Status::Pending, Status::Running];
    vec![
        ListQuery { channel: Some("a".into()), statuses: vec![Status::Completed, Status::Running], ..all() },
        ListQuery { runner_id: Some("r1".into()), ..all() },
        ListQuery { runner_id: Some("r2".into()), statuses: unfinished.clone(), ..all() },
        ListQuery { runner_id: Some("r0".into()), owner: Some("bob".into()), statuses: vec![Status::Failed], ..all() },
        ListQuery { broadcast: Some(false), statuses: vec![Status::Pending, Status::Canceled], ..all() },
        ListQuery { broadcast: Some(true), statuses: vec![Status::Running, Status::Expired], ..all() },
        ListQuery { search: Some("se".into()), statuses: unfinished, channel: Some("b".into()), ..all() },
        ListQuery { search: Some("0000000000000000000000000000000".into()), owner: Some("ann".into()), ..all() },
        ListQuery { func: Some("nobody's".into()), ..all() },
        ListQuery { parent_id: Some(id(3)), ..all() },
    ]
}

/// Tells a history to all stores and compares every answer with the oracle's.
async fn compare(history: Vec<Vec<Happening>>) {
    let folder = tempfile::tempdir().expect("a folder");
    let scratch = Scratch::new().await;
    let sqlite = SqliteStore::open(&folder.path().join("jobs.db")).await.expect("a store");
    let postgres = scratch.store().await;
    let stores: [&dyn Store; 2] = [&sqlite, &postgres];
    let memory = MemoryStore::new();
    let mut seconds = 0;
    for (index, batch) in history.into_iter().enumerate() {
        let mut steps = Vec::new();
        for happening in batch {
            seconds += u32::from(happening.2);
            let Some(step) = step_of(&memory, happening, at(seconds)).await else { continue };
            // Where another job has the id, what follows would not be about this one.
            let has_namesake = steps.iter().any(|other: &Step| other.job.id == step.job.id)
                || loaded(&memory, step.job.id.0.as_u128()).await.is_some();
            let follower = if happening.2 % 4 == 1 && !has_namesake { follower_of(&step, at(seconds)) } else { None };
            steps.extend([Some(step), follower].into_iter().flatten());
        }
        let all_or_nothing = index % 4 == 3;
        let outcomes = committed(&memory, &steps, all_or_nothing).await;
        let number = u128::from(seconds % 12);
        let version = loaded(&memory, number).await.map_or(1, |job| job.version);
        let deletes = index % 6 == 5;
        let deleted = deletes && memory.delete(id(number), version).await.expect("a deletion");
        let outdated = Outdated { jobs_max: 1 + u64::from(seconds % 3), ..before(seconds.saturating_sub(60)) };
        let forgets = index % 5 == 4;
        let removed = if forgets { forgotten(&memory, outdated, 2).await } else { 0 };
        let expected = answers(&memory, at(seconds)).await;
        for store in stores {
            assert_eq!(committed(store, &steps, all_or_nothing).await, outcomes);
            assert_eq!(deletes && store.delete(id(number), version).await.expect("a deletion"), deleted);
            assert_eq!(if forgets { forgotten(store, outdated, 2).await } else { 0 }, removed);
            assert_eq!(answers(store, at(seconds)).await, expected);
        }
    }
    for store in stores {
        store.close().await;
    }
}

async fn committed(store: &dyn Store, steps: &[Step], all_or_nothing: bool) -> Vec<Outcome> {
    let outcomes = if all_or_nothing { store.commit_all(steps).await } else { store.commit(steps).await };
    outcomes.expect("a commit")
}

#[test]
fn all_stores_answer_alike() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let config = ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() };
    let batch = prop::collection::vec((any::<u8>(), 0..12u8, any::<u8>()), 1..12);
    let history = prop::collection::vec(batch, 1..20);
    let outcome = TestRunner::new(config).run(&history, |history| {
        runtime.block_on(compare(history));
        Ok(())
    });
    outcome.expect("equal answers");
}
