//! Cases of lists and counts.

use super::*;
use crate::{
    model::Status,
    store::{COUNTED_MAX, ChannelTally, Page, Tally, Total},
};

/// Jobs 1 to 4 that differ in everything a filter can ask for. Their ids tell when they were created, as those of the service.
async fn fill(store: &dyn Store) {
    let made = |number, spec: JobSpec, owner: &str| {
        create(filled(number), spec, owner.into(), filled(number).made_at()).expect("a job")
    };
    let first = made(1, spec("a"), "ann");
    let second = made(2, JobSpec { func: "mail".into(), ..spec("b") }, "bob");
    let third = made(3, JobSpec { broadcast: true, ..spec("a") }, "ann");
    let fourth = made(4, JobSpec { start: Start::In(50), ..spec("a") }, "ann");
    put(store, &[first.clone(), second.clone(), third, fourth]).await;
    put(store, &[claimed(&first.job, at(40)), stepped(&second.job, Input::Cancel, at(35))]).await;
}

/// The id of a job of [`fill`]: they were created ten seconds after each other.
fn filled(number: u128) -> JobId {
    let first = JobId::first_made_at(at(10 * u32::try_from(number - 1).expect("a small number")));
    JobId(Uuid::from_u128(first.0.as_u128() + number))
}

/// The numbers of these jobs.
fn numbers(page: &Page) -> Vec<u128> {
    page.jobs.iter().map(|job| job.id.0.as_u128() & u128::from(u64::MAX)).collect()
}

async fn listed(store: &dyn Store, query: ListQuery) -> Vec<u128> {
    numbers(&store.list(&query).await.expect("a page"))
}

pub(super) async fn every_filter_filters(store: &dyn Store) {
    fill(store).await;
    let all = everything;
    assert_eq!(listed(store, all()).await, [1, 2, 3, 4]);
    assert_eq!(listed(store, ListQuery { owner: Some("ann".into()), ..all() }).await, [1, 3, 4]);
    assert_eq!(listed(store, ListQuery { channel: Some("b".into()), ..all() }).await, [2]);
    assert_eq!(listed(store, ListQuery { statuses: vec![Status::Pending], ..all() }).await, [3, 4]);
    let ended = vec![Status::Canceled, Status::Failed];
    assert_eq!(listed(store, ListQuery { statuses: ended, ..all() }).await, [2]);
    let either = vec![Status::Canceled, Status::Running];
    assert_eq!(listed(store, ListQuery { statuses: either, ..all() }).await, [1, 2]);
    assert_eq!(listed(store, ListQuery { func: Some("mail".into()), ..all() }).await, [2]);
    assert_eq!(listed(store, ListQuery { runner_id: Some("r1".into()), ..all() }).await, [1]);
    assert_eq!(listed(store, ListQuery { created_from: Some(at(10)), ..all() }).await, [2, 3, 4]);
    assert_eq!(listed(store, ListQuery { created_to: Some(at(10)), ..all() }).await, [1]);
    assert_eq!(listed(store, ListQuery { broadcast: Some(true), ..all() }).await, [3]);
    assert_eq!(listed(store, ListQuery { broadcast: Some(false), ..all() }).await, [1, 2, 4]);
    let both = ListQuery { owner: Some("ann".into()), statuses: vec![Status::Running], ..all() };
    assert_eq!(listed(store, both).await, [1]);
}

pub(super) async fn every_order_orders(store: &dyn Store) {
    fill(store).await;
    let expected = [
        (OrderBy::Created, [1, 2, 3, 4]),
        (OrderBy::Modified, [3, 4, 2, 1]),
        (OrderBy::StartedAt, [2, 3, 4, 1]),
        (OrderBy::FinishedAt, [1, 3, 4, 2]),
        (OrderBy::RunAt, [1, 2, 3, 4]),
    ];
    for (order, mut numbers) in expected {
        assert_eq!(listed(store, ListQuery { order, ..everything() }).await, numbers, "{order:?}");
        numbers.reverse();
        assert_eq!(listed(store, ListQuery { order, descending: true, ..everything() }).await, numbers, "{order:?}");
    }
}

pub(super) async fn pages_follow_each_other(store: &dyn Store) {
    fill(store).await;
    let newest = ListQuery { descending: true, limit: 2, count: true, ..everything() };
    let first = store.list(&newest).await.expect("a page");
    assert_eq!((numbers(&first), first.total), (vec![4, 3], Some(Total::exactly(4))));
    let second = store.list(&ListQuery { before: Some(filled(3)), ..newest.clone() }).await.expect("a page");
    assert_eq!((numbers(&second), second.total), (vec![2, 1], Some(Total::exactly(4))));
    let third = store.list(&ListQuery { offset: 3, count: false, ..newest.clone() }).await.expect("a page");
    assert_eq!((numbers(&third), third.total), (vec![1], None));
    assert_eq!(listed(store, ListQuery { offset: 9, ..newest }).await, []);
}

pub(super) async fn more_than_are_counted_are_told_from_kept_counts_or_estimated(store: &dyn Store) {
    let many = 11 + u128::from(COUNTED_MAX);
    let creations: Vec<Step> = (1..=many).map(|number| created(number, spec("a"))).collect();
    put(store, &creations).await;
    put(store, &[created(many + 1, JobSpec { func: "rare".into(), ..spec("b") })]).await;
    let total = async |query: ListQuery| {
        store.list(&ListQuery { count: true, limit: 1, ..query }).await.expect("a page").total.expect("a total")
    };
    let of = |func: &str| ListQuery { func: Some(func.into()), ..everything() };
    assert_eq!(total(of("rare")).await, Total::exactly(1));
    // A store may know better than it must.
    let may_be = |total: Total, jobs: u64| {
        total == Total::exactly(jobs) || (total.is_estimate && (COUNTED_MAX..=jobs).contains(&total.jobs))
    };
    let many = COUNTED_MAX + 11;
    assert!(may_be(total(of("send")).await, many));
    assert!(may_be(total(everything()).await, many + 1));
    let canceled: Vec<Step> = creations.iter().map(|made| stepped(&made.job, Input::Cancel, at(1))).collect();
    put(store, &canceled).await;
    assert_eq!(total(everything()).await, Total::exactly(many + 1));
    let all_but_running = vec![Status::Pending, Status::Completed, Status::Canceled];
    assert_eq!(total(ListQuery { statuses: all_but_running, ..everything() }).await, Total::exactly(many + 1));
    assert_eq!(total(ListQuery { statuses: vec![Status::Canceled], ..everything() }).await, Total::exactly(many));
    let of_channel = ListQuery { channel: Some("a".into()), ..everything() };
    assert!(may_be(total(of_channel).await, many));
}

pub(super) async fn a_search_has_no_special_characters(store: &dyn Store) {
    let named = |number, func: &str| created(number, JobSpec { func: func.into(), ..spec("a") });
    let big = 0xabcd_u128 << 112;
    put(store, &[named(1, "a%b"), named(2, "axb"), named(3, "a_b"), named(4, "Übung"), named(big, "Abc")]).await;
    let found = async |text: &str| {
        ids(&store.list(&ListQuery { search: Some(text.into()), ..everything() }).await.expect("a page").jobs)
    };
    assert_eq!(found("a%").await, [1]);
    assert_eq!(found("a_").await, [3]);
    assert_eq!(found("Üb").await, [4]);
    assert_eq!(found("üb").await, []);
    assert_eq!(found("Ab").await, [big]);
    assert_eq!(found("abcd0").await, [big]);
    assert_eq!(found("abcd1").await, []);
    assert_eq!(found("a").await, [1, 2, 3, big]);
    assert_eq!(found("").await.len(), 5);
    assert_eq!(found(&id(1).to_string()).await, [1]);
    assert_eq!(found(&format!("{}0", id(1))).await, []);
    assert_eq!(found("000000000000000000000000000000000000000").await, []);
}

pub(super) async fn tallies_follow_each_change(store: &dyn Store) {
    fill(store).await;
    let parent = store.load(&[filled(3)]).await.expect("an answer").remove(0).expect("a job");
    let part = stored(store, create_part(id(9), &parent, "r1", at(40))).await;
    put(store, &[stepped(&part, Input::Cancel, at(41))]).await;
    let tally = store.tally(at(50)).await.expect("a tally");
    let a = ChannelTally { ready: 1, scheduled: 1, running: 1 };
    let oldest_ended = Some(at(10));
    assert_eq!(tally, Tally { channels: [("a".into(), a)].into(), canceled: 1, oldest_ended, ..Tally::default() });

    let second = store.load(&[filled(2)]).await.expect("an answer").remove(0).expect("a job");
    let note = stored(store, stepped(&second, Input::Retried { new_id: id(5) }, at(60))).await;
    assert_eq!(store.tally(at(60)).await.expect("a tally").canceled, 1);
    let running = store.load(&[filled(1)]).await.expect("an answer").remove(0).expect("a job");
    put(store, &[completed(&running, at(61))]).await;
    let a = ChannelTally { ready: 2, scheduled: 0, running: 0 };
    let tally = store.tally(at(90)).await.expect("a tally");
    let expected = Tally {
        channels: [("a".into(), a)].into(),
        canceled: 1,
        completed: 1,
        oldest_ended: Some(at(0)),
        ..Tally::default()
    };
    assert_eq!(tally, expected);
    assert!(store.delete(filled(2), note.version).await.expect("a deletion"));
    assert!(store.delete(filled(4), 1).await.expect("a deletion"));
    let tally = store.tally(at(90)).await.expect("a tally");
    assert_eq!((tally.canceled, tally.completed), (0, 1));
}
