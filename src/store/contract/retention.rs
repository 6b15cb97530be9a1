//! Removing jobs whose time is over.

use super::*;
use crate::{
    model::{Status, lifecycle::Failure},
    store::Tally,
};

/// A job that ended so many seconds after the start of the story.
async fn ended(store: &dyn Store, creation: Step, seconds: u32) -> Arc<Job> {
    let job = stored(store, creation).await;
    let job = stored(store, claimed(&job, job.created)).await;
    stored(store, completed(&job, at(seconds))).await
}

async fn there(store: &dyn Store) -> Vec<u128> {
    ids(&store.list(&everything()).await.expect("a page").jobs)
}

pub(super) async fn what_ended_long_ago_goes_with_all_that_is_its_own(store: &dyn Store) {
    let mut job = stored(store, created(1, JobSpec { max_retries: 40, ..keyed_spec("k") })).await;
    for attempt in 1..=20 {
        job = stored(store, claimed(&job, at(attempt * 100))).await;
        let failure = Failure { error: "x".into(), permanent: attempt == 20, ..Failure::default() };
        let input = Input::Fail { attempt, failure, metadata: None };
        job = stored(store, stepped(&job, input, at(attempt * 100 + 1))).await;
    }
    assert_eq!(job.status, Status::Failed);
    store.append_logs(&vec![log_line(&job, LogKind::Info, "x"); 1_203]).await.expect("lines");
    let other = ended(store, keyed(2, "l"), 2_001).await;
    store.append_logs(&[log_line(&other, LogKind::Info, "y")]).await.expect("a line");
    assert_eq!(store.tally(at(1)).await.expect("a tally").oldest_ended, Some(at(0)));

    assert_eq!(forgotten(store, before(2_001), 10).await, 0);
    assert_eq!(forgotten(store, Outdated { jobs_max: 1, ..before(2_002) }, 10).await, 1);
    assert_eq!(loaded(store, 1).await, None);
    assert_eq!(store.events(id(1), 99).await.expect("events"), []);
    assert_eq!(store.logs(id(1), &[], 0, 9).await.expect("lines"), []);
    assert_eq!(there(store).await, [2]);
    assert_eq!(store.events(id(2), 9).await.expect("events").len(), 3);
    assert_eq!(store.logs(id(2), &[], 0, 9).await.expect("lines").len(), 1);
    let outcomes = store.commit(&[keyed(3, "l"), keyed(4, "k")]).await.expect("a commit");
    assert_eq!(outcomes, [Outcome::Duplicate(id(2)), Outcome::Applied]);
    let note = stepped(&job, Input::Retried { new_id: id(9) }, at(30_000));
    assert_eq!(store.commit(&[note]).await.expect("a commit"), [Outcome::Stale]);

    assert_eq!(forgotten(store, before(2_002), 10).await, 1);
    let tally = store.tally(at(1)).await.expect("a tally");
    assert_eq!(tally, Tally { channels: tally.channels.clone(), ..Tally::default() });
}

fn keyed_spec(key: &str) -> JobSpec {
    JobSpec { idempotency_key: Some(key.into()), ..spec("a") }
}

pub(super) async fn unfinished_and_recent_jobs_stay(store: &dyn Store) {
    stored(store, created(1, JobSpec { start: Start::In(1_000_000), ..spec("a") })).await;
    let running = stored(store, created(2, spec("a"))).await;
    stored(store, claimed(&running, at(1))).await;
    ended(store, created(3, spec("a")), 49).await;
    ended(store, created(4, spec("a")), 50).await;
    let canceled = stored(store, created(5, spec("a"))).await;
    let canceled = stored(store, stepped(&canceled, Input::Cancel, at(40))).await;
    // A note on a job that has ended does not make it younger.
    stored(store, stepped(&canceled, Input::Retried { new_id: id(9) }, at(60))).await;
    assert_eq!(forgotten(store, before(50), 3).await, 2);
    assert_eq!(there(store).await, [1, 2, 4]);
    let tally = store.tally(at(60)).await.expect("a tally");
    assert_eq!((tally.ended(), tally.completed, tally.oldest_ended), (1, 1, Some(at(0))));
    assert_eq!(forgotten(store, before(50), 3).await, 0);
}

pub(super) async fn each_look_is_bounded_and_the_next_goes_on(store: &dyn Store) {
    for number in 1..=7 {
        ended(store, created(number, spec("a")), 1).await;
    }
    let first = store.forget(before(2), None, 3).await.expect("a look");
    assert_eq!(first, Forgotten { jobs: 3, next: Some(id(3)) });
    let second = store.forget(before(2), first.next, 3).await.expect("a look");
    assert_eq!(second, Forgotten { jobs: 3, next: Some(id(6)) });
    assert_eq!(forgotten(store, before(2), 3).await, 1);
    assert_eq!(there(store).await, [0; 0]);
    assert_eq!(store.forget(before(2), None, 3).await.expect("a look"), Forgotten { jobs: 0, next: None });
}

pub(super) async fn parts_go_with_their_parent(store: &dyn Store) {
    let broadcast = |number| created(number, JobSpec { broadcast: true, ..spec("a") });
    let mut parents = Vec::new();
    let mut parts = Vec::new();
    for number in [1, 2, 3] {
        let parent = stored(store, broadcast(number)).await;
        let parent = stored(store, stepped(&parent, Input::Fanout { parts: 2 }, at(1))).await;
        for part in [10 * number, 10 * number + 1] {
            parts.push(stored(store, create_part(id(part), &parent, "r1", at(1))).await);
        }
        parents.push(parent);
    }
    // All parts but one have ended; so have the first parent and, which cannot be, the one with the unfinished part.
    let mut last = None;
    for part in &parts {
        let part = stored(store, claimed(part, at(2))).await;
        store.append_logs(&[log_line(&part, LogKind::Info, "x")]).await.expect("a line");
        if part.id == id(31) {
            last = Some(part);
        } else {
            stored(store, completed(&part, at(3))).await;
        }
    }
    let settled = crate::model::Parts { total: 2, completed: 2, ..crate::model::Parts::default() };
    for parent in [&parents[0], &parents[2]] {
        stored(store, stepped(parent, Input::Settle { parts: settled }, at(4))).await;
    }
    assert_eq!(forgotten(store, before(5), 2).await, 1);
    assert_eq!(there(store).await, [2, 3]);
    // What has to stay takes nobody's place among those that may go.
    ended(store, created(4, spec("a")), 4).await;
    assert_eq!(forgotten(store, Outdated { jobs_max: 1, ..before(5) }, 9).await, 1);
    assert_eq!(there(store).await, [2, 3]);
    let all: Vec<JobId> = [10, 11, 20, 21, 30, 31].map(id).into();
    let left = async || {
        let jobs = store.load(&all).await.expect("a load");
        ids(&jobs.into_iter().flatten().collect::<Vec<Job>>())
    };
    assert_eq!(left().await, [20, 21, 30, 31]);
    assert_eq!(store.logs(id(11), &[], 0, 9).await.expect("lines"), []);
    assert_eq!(store.logs(id(30), &[], 0, 9).await.expect("lines").len(), 1);
    stored(store, completed(&last.expect("the last part"), at(6))).await;
    assert_eq!(forgotten(store, before(7), 2).await, 1);
    assert_eq!(left().await, [20, 21]);
    assert_eq!(there(store).await, [2]);
}

pub(super) async fn the_oldest_go_first_and_no_more_than_asked(store: &dyn Store) {
    stored(store, created(1, spec("a"))).await;
    for number in 2..=6 {
        ended(store, created(number, spec("a")), 10 - number as u32).await;
    }
    assert_eq!(forgotten(store, Outdated { jobs_max: 3, ..before(100) }, 2).await, 3);
    assert_eq!(there(store).await, [1, 5, 6]);
    assert_eq!(forgotten(store, Outdated { jobs_max: 0, ..before(100) }, 2).await, 0);
    assert_eq!(forgotten(store, Outdated { jobs_max: 9, ..before(100) }, 9).await, 2);
}

pub(super) async fn a_look_ends_where_ids_are_too_young(store: &dyn Store) {
    let creation = |at| create(JobId::first_made_at(at), spec("a"), "ann".into(), at).expect("a job");
    for seconds in [1, 2, 3] {
        ended(store, creation(at(seconds)), 3).await;
    }
    // Nothing that is made at a time can have ended before it.
    assert_eq!(forgotten(store, before(3), 2).await, 0);
    assert_eq!(forgotten(store, before(4), 2).await, 3);
}
