//! Cases of what runs when.

use super::*;
use crate::{
    model::Parts,
    store::{Agenda, Due, Ready},
};

fn numbers(ready: &[Ready]) -> Vec<u128> {
    ready.iter().map(|job| job.id.0.as_u128()).collect()
}

fn delayed(number: u128, seconds: u32) -> Step {
    created(number, JobSpec { start: Start::In(seconds), ..spec("a") })
}

pub(super) async fn ready_jobs_come_in_order_and_continue(store: &dyn Store) {
    let prior = |number, priority| created(number, JobSpec { priority, ..spec("a") });
    let claimed_job = created(9, spec("a"));
    put(store, &[delayed(1, 5), prior(5, 0), prior(2, -3), prior(4, 0), prior(3, 7), delayed(6, 60), delayed(7, 2)])
        .await;
    put(store, &[created(8, spec("b")), created(10, JobSpec { broadcast: true, ..spec("a") }), claimed_job.clone()])
        .await;
    put(store, &[claimed(&claimed_job.job, at(0))]).await;
    let all = store.ready("a", at(10), None, 100).await.expect("jobs");
    assert_eq!(numbers(&all), [3, 4, 5, 7, 1, 2]);
    assert_eq!(all[0], Ready { id: id(3), channel: "a".into(), priority: 7, ready_at: at(0) });
    for (index, job) in all.iter().enumerate() {
        let rest = store.ready("a", at(10), Some(job), 100).await.expect("jobs");
        assert_eq!(rest, all[index + 1..]);
        assert_eq!(store.ready("a", at(10), Some(job), 2).await.expect("jobs"), rest[..rest.len().min(2)]);
    }
    assert_eq!(numbers(&store.ready("a", at(4), None, 3).await.expect("jobs")), [3, 4, 5]);
    assert_eq!(numbers(&store.ready("a", at(5), None, 9).await.expect("jobs")), [3, 4, 5, 7, 1, 2]);
    assert_eq!(store.ready("none", at(10), None, 9).await.expect("jobs"), []);
    let part = create_part(id(11), &created(10, spec("a")).job, "r1", at(1));
    put(store, &[part]).await;
    let channels = store.pending_channels().await.expect("channels");
    assert_eq!(channels, ["@r1", "a", "b"].map(Arc::<str>::from));
}

pub(super) async fn what_is_due_comes_longest_due_first(store: &dyn Store) {
    let expiring = |number, seconds| created(number, JobSpec { expiry: Expiry::In(seconds), ..spec("a") });
    let limited = |number, seconds| created(number, JobSpec { max_exec_seconds: Some(seconds), ..spec("a") });
    let broadcast = |number, seconds| {
        created(number, JobSpec { broadcast: true, start: Start::In(seconds), max_exec_seconds: Some(1), ..spec("a") })
    };
    put(store, &[expiring(1, 30), expiring(2, 20), expiring(3, 40), limited(4, 9), limited(5, 5), limited(6, 100)])
        .await;
    put(store, &[broadcast(7, 8), broadcast(8, 3), broadcast(9, 1), broadcast(10, 50)]).await;
    let mut starts = Vec::new();
    for number in [4, 5, 6] {
        starts.push(claimed(&loaded(store, number).await.expect("a job"), at(1)));
    }
    for number in [8, 9] {
        let job = loaded(store, number).await.expect("a job");
        starts.push(stepped(&job, Input::Fanout { parts: 2 }, at(4)));
    }
    put(store, &starts).await;
    let agenda = store.agenda(at(0)).await.expect("an agenda");
    let (expiry, overrun) = (Some(at(20)), Some(at(6)));
    let (broadcast, parent) = (Some(at(8)), Some(at(1)));
    assert_eq!(agenda, Agenda { ready: None, expiry, overrun, broadcast, parent });
    let due = async |due, seconds, limit| ids(&store.due(due, at(seconds), limit).await.expect("jobs"));
    assert_eq!(due(Due::Expiry, 30, 9).await, [2, 1]);
    assert_eq!(due(Due::Expiry, 30, 1).await, [2]);
    assert_eq!(due(Due::Expiry, 19, 9).await, []);
    assert_eq!(due(Due::Overrun, 10, 9).await, [5, 4]);
    assert_eq!(due(Due::Overrun, 9, 9).await, [5]);
    assert_eq!(due(Due::Broadcast, 49, 9).await, [7]);
    assert_eq!(due(Due::Broadcast, 50, 9).await, [7, 10]);
    assert_eq!(due(Due::Parent, 0, 9).await, [9, 8]);
    assert_eq!(due(Due::Parent, 0, 1).await, [9]);
    put(store, &[stepped(&loaded(store, 5).await.expect("a job"), Input::Overrun { attempt: 1 }, at(10))]).await;
    assert_eq!(due(Due::Overrun, 10, 9).await, [4]);
}

pub(super) async fn run_times_are_found(store: &dyn Store) {
    let broadcast = created(4, JobSpec { broadcast: true, start: Start::In(3), ..spec("b") });
    put(store, &[delayed(2, 10), delayed(1, 20), delayed(3, 10), broadcast, created(5, spec("a"))]).await;
    let next = async |seconds| store.agenda(at(seconds)).await.expect("an agenda").ready;
    assert_eq!(next(0).await, Some(at(10)), "the broadcast job has a line of its own");
    assert_eq!(next(10).await, Some(at(20)));
    assert_eq!(next(20).await, None);
    let due = async |after, until, limit| numbers(&store.due_between(at(after), at(until), limit).await.expect("jobs"));
    assert_eq!(due(0, 20, 9).await, [2, 3, 1]);
    assert_eq!(due(0, 20, 2).await, [2, 3]);
    assert_eq!(due(10, 19, 9).await, []);
    assert_eq!(due(9, 10, 9).await, [2, 3]);
}

pub(super) async fn running_jobs_are_paged(store: &dyn Store) {
    let steps: Vec<Step> = (1..=5).map(|number| created(number, spec("a"))).collect();
    put(store, &steps).await;
    let parent = stored(store, created(6, JobSpec { broadcast: true, ..spec("a") })).await;
    put(store, &[stepped(&parent, Input::Fanout { parts: 1 }, at(1))]).await;
    let claims: Vec<Step> = steps[1..].iter().map(|step| claimed(&step.job, at(1))).collect();
    put(store, &claims).await;
    put(store, &[completed(&claims[1].job, at(2))]).await;
    let running = async |after: Option<u128>, limit| ids(&store.running(after.map(id), limit).await.expect("jobs"));
    assert_eq!(running(None, 9).await, [2, 4, 5]);
    assert_eq!(running(None, 2).await, [2, 4]);
    assert_eq!(running(Some(4), 2).await, [5]);
    assert_eq!(running(Some(5), 2).await, []);
}

pub(super) async fn parts_are_counted_and_listed(store: &dyn Store) {
    let parent = stored(store, created(1, JobSpec { broadcast: true, ..spec("a") })).await;
    let other = stored(store, created(2, JobSpec { broadcast: true, ..spec("a") })).await;
    let parts: Vec<Step> = (11..=15).map(|number| create_part(id(number), &parent, "r1", at(1))).collect();
    put(store, &parts).await;
    put(store, &[create_part(id(20), &other, "r1", at(1))]).await;
    let claims: Vec<Step> = parts[..2].iter().map(|part| claimed(&part.job, at(2))).collect();
    put(store, &claims).await;
    put(store, &[completed(&claims[0].job, at(3)), stepped(&parts[2].job, Input::Cancel, at(3))]).await;
    put(store, &[stepped(&parts[3].job, Input::Expire, at(1_000))]).await;
    let counted = Parts { total: 5, completed: 1, failed: 0, canceled: 1, expired: 1 };
    assert_eq!(store.parts(id(1)).await.expect("parts"), counted);
    assert_eq!(store.parts(id(9)).await.expect("parts"), Parts::default());
    assert_eq!(ids(&store.unfinished_parts(id(1), 9).await.expect("jobs")), [12, 15]);
    assert_eq!(ids(&store.unfinished_parts(id(1), 1).await.expect("jobs")), [12]);
    assert_eq!(ids(&store.list(&everything()).await.expect("a page").jobs), [1, 2]);
    let of_parent = ListQuery { parent_id: Some(id(1)), count: true, limit: 2, ..everything() };
    let page = store.list(&of_parent).await.expect("a page");
    assert_eq!((ids(&page.jobs), page.total), (vec![11, 12], Some(crate::store::Total::exactly(5))));
}

pub(super) async fn a_place_in_line_is_counted(store: &dyn Store) {
    let prior = created(2, JobSpec { priority: 5, ..spec("a") });
    let other = created(4, spec("b"));
    put(store, &[created(1, spec("a")), prior.clone(), created(3, spec("a")), other.clone(), delayed(5, 9)]).await;
    let before = async |number| {
        let job = loaded(store, number).await.expect("a job");
        store.jobs_before(&job, at(0)).await.expect("a count")
    };
    assert_eq!((before(2).await, before(1).await, before(3).await, before(5).await), (0, 1, 2, 3));
    assert_eq!(before(4).await, 0);
    let early = loaded(store, 5).await.expect("a job");
    assert_eq!(store.jobs_before(&early, at(10)).await.expect("a count"), 3, "due by then, and of lower priority");
    put(store, &[claimed(&prior.job, at(0))]).await;
    assert_eq!((before(1).await, before(3).await), (0, 1));
}
