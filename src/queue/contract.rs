//! What every queue must keep, whatever is behind it. Each case gets a fresh queue whose windows hold four jobs.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use super::{Lapsed, Offer, Queue, Waiter};
use crate::model::{JobId, Lease, Timestamp, job::Ready};

const TTL: Duration = Duration::from_secs(10);

fn channel(name: &str) -> Arc<str> {
    name.into()
}

fn id(number: u128) -> JobId {
    JobId(uuid::Uuid::from_u128(number))
}

fn offer(number: u128, name: &str, priority: i32, ready_at: i64) -> Offer {
    Offer {
        ready: Ready { id: id(number), channel: channel(name), priority, ready_at: Timestamp(ready_at) },
        job: None,
    }
}

fn waiter(number: u64) -> Waiter {
    Waiter { number, notify: Arc::new(Notify::new()) }
}

fn is_woken(waiter: &Waiter) -> bool {
    use futures::FutureExt;
    waiter.notify.notified().now_or_never().is_some()
}

async fn taken(queue: &dyn Queue, names: &[&str], max: usize, waiter: &Waiter) -> Vec<u128> {
    let channels: Vec<Arc<str>> = names.iter().map(|name| channel(name)).collect();
    let offers = queue.take(&channels, max, waiter).await;
    offers.iter().map(|offer| offer.ready.id.0.as_u128()).collect()
}

pub async fn jobs_are_taken_by_priority_then_time_then_age(queue: &dyn Queue) {
    queue.offer(vec![offer(3, "a", 0, 5), offer(2, "a", 0, 5), offer(1, "a", 0, 9), offer(4, "a", 7, 9)]).await;
    assert_eq!(taken(queue, &["a"], 9, &waiter(1)).await, [4, 2, 3, 1]);
    assert!(taken(queue, &["a"], 9, &waiter(1)).await.is_empty(), "each is taken once");
}

pub async fn among_channels_the_longest_waiting_comes_first(queue: &dyn Queue) {
    queue.offer(vec![offer(1, "a", 0, 9), offer(2, "b", 0, 3), offer(3, "c", 0, 1)]).await;
    assert_eq!(taken(queue, &["a", "b"], 9, &waiter(1)).await, [2, 1], "and no other channel's jobs");
}

pub async fn a_repeated_offer_is_one_job(queue: &dyn Queue) {
    queue.offer(vec![offer(1, "a", 0, 1), offer(1, "a", 0, 1), offer(1, "a", 0, 2)]).await;
    assert_eq!(taken(queue, &["a"], 9, &waiter(1)).await, [1]);
}

pub async fn a_forgotten_job_is_not_taken(queue: &dyn Queue) {
    queue.offer(vec![offer(1, "a", 0, 1), offer(2, "a", 0, 2)]).await;
    queue.forget(&[id(1)]).await;
    assert_eq!(taken(queue, &["a"], 9, &waiter(1)).await, [2]);
}

pub async fn an_offer_wakes_one_who_waits_for_its_channel(queue: &dyn Queue) {
    let (first, second, elsewhere) = (waiter(1), waiter(2), waiter(3));
    taken(queue, &["a"], 1, &first).await;
    taken(queue, &["a"], 1, &second).await;
    taken(queue, &["b"], 1, &elsewhere).await;
    queue.offer(vec![offer(1, "a", 0, 1)]).await;
    assert!(is_woken(&first) && !is_woken(&second) && !is_woken(&elsewhere));
}

pub async fn one_who_leaves_passes_its_turn_on(queue: &dyn Queue) {
    let (first, second) = (waiter(1), waiter(2));
    taken(queue, &["a"], 1, &first).await;
    taken(queue, &["a"], 1, &second).await;
    queue.offer(vec![offer(1, "a", 0, 1)]).await;
    queue.leave(&[channel("a")], &first).await;
    assert!(is_woken(&second), "the job is still to be had");
}

pub async fn what_finds_no_room_is_left_to_a_refill(queue: &dyn Queue) {
    queue.offer((1..=6).map(|number| offer(number, "a", 0, 1)).collect()).await;
    assert!(queue.hungry().await.is_empty(), "the window is full");
    assert_eq!(taken(queue, &["a"], 9, &waiter(1)).await, [1, 2, 3, 4]);
    assert_eq!(queue.hungry().await, [channel("a")]);
    assert!(queue.hungry().await.is_empty(), "one look at a time");
    queue.refill(&channel("a"), vec![offer(5, "a", 0, 1), offer(6, "a", 0, 1)], true).await;
    assert_eq!(taken(queue, &["a"], 9, &waiter(1)).await, [5, 6]);
    assert!(queue.hungry().await.is_empty(), "the store holds no more");
}

pub async fn later_jobs_do_not_overtake_those_in_the_store(queue: &dyn Queue) {
    queue.offer((1..=5).map(|number| offer(number, "a", 0, 1)).collect()).await;
    assert_eq!(taken(queue, &["a"], 4, &waiter(1)).await, [1, 2, 3, 4]);
    queue.offer(vec![offer(9, "a", 0, 8)]).await;
    assert!(taken(queue, &["a"], 4, &waiter(1)).await.is_empty(), "5 is before it");
    queue.hungry().await;
    queue.refill(&channel("a"), vec![offer(5, "a", 0, 1), offer(9, "a", 0, 8)], true).await;
    assert_eq!(taken(queue, &["a"], 4, &waiter(1)).await, [5, 9]);
}

pub async fn an_offer_turned_away_during_a_look_keeps_the_channel_hungry(queue: &dyn Queue) {
    queue.suspect(&[channel("a")]).await;
    assert_eq!(queue.hungry().await, [channel("a")]);
    queue.offer(vec![offer(1, "a", 0, 1)]).await;
    queue.refill(&channel("a"), Vec::new(), true).await;
    assert_eq!(queue.hungry().await, [channel("a")], "the look may have missed it");
}

fn lease(number: u128) -> Lease {
    Lease { job_id: id(number), attempt: 1 }
}

pub async fn a_lease_lapses_once_and_tells_whether_it_was_accepted(queue: &dyn Queue) {
    let holder: Arc<str> = "s1".into();
    queue.hold(&[lease(1), lease(2)], &holder, TTL).await;
    queue.renew(&[lease(1)], &holder, TTL).await;
    tokio::time::advance(TTL - Duration::from_millis(1)).await;
    assert!(queue.lapsed(9).await.is_empty());
    tokio::time::advance(Duration::from_millis(2)).await;
    let lapsed = queue.lapsed(9).await;
    let expected = |number, accepted| Lapsed { lease: lease(number), holder: holder.clone(), accepted };
    assert_eq!(lapsed.len(), 2);
    assert!(lapsed.contains(&expected(1, true)) && lapsed.contains(&expected(2, false)));
    assert!(queue.lapsed(9).await.is_empty());
}

pub async fn only_its_holder_renews_a_lease(queue: &dyn Queue) {
    queue.hold(&[lease(1)], &"s1".into(), TTL).await;
    tokio::time::advance(TTL / 2).await;
    queue.renew(&[lease(1)], &"s2".into(), TTL).await;
    assert_eq!(queue.holder(lease(1)).await, Some("s1".into()));
    tokio::time::advance(TTL).await;
    queue.renew(&[lease(2)], &"s1".into(), TTL).await;
    assert_eq!(queue.lapsed(9).await.len(), 1);
    assert_eq!(queue.holder(lease(2)).await, None, "a renewal makes no lease");
}

pub async fn a_closed_stream_shortens_its_leases_and_never_lengthens_one(queue: &dyn Queue) {
    let holder: Arc<str> = "s1".into();
    queue.hold(&[lease(1)], &holder, TTL).await;
    queue.hold(&[lease(2)], &holder, TTL / 10).await;
    queue.shorten(&holder, TTL / 5).await;
    tokio::time::advance(TTL / 10).await;
    assert_eq!(queue.lapsed(9).await.iter().map(|lapsed| lapsed.lease).collect::<Vec<_>>(), [lease(2)]);
    tokio::time::advance(TTL / 10).await;
    assert_eq!(queue.lapsed(9).await.iter().map(|lapsed| lapsed.lease).collect::<Vec<_>>(), [lease(1)]);
}

pub async fn a_released_lease_never_lapses(queue: &dyn Queue) {
    let holder: Arc<str> = "s1".into();
    queue.hold(&[lease(1), lease(2)], &holder, TTL).await;
    queue.release(&[lease(1)]).await;
    assert_eq!(queue.held_by(&holder).await, [lease(2)]);
    tokio::time::advance(TTL).await;
    assert_eq!(queue.lapsed(9).await.len(), 1);
}

/// Runs each case on a fresh queue of each kind.
macro_rules! on_every_queue {
    ($($case:ident),* $(,)?) => {
        mod memory {
            use crate::queue::memory::MemoryQueue;

            $(
                #[tokio::test(start_paused = true)]
                async fn $case() {
                    super::$case(&MemoryQueue::new(4)).await;
                }
            )*
        }
    };
}

on_every_queue!(
    jobs_are_taken_by_priority_then_time_then_age,
    among_channels_the_longest_waiting_comes_first,
    a_repeated_offer_is_one_job,
    a_forgotten_job_is_not_taken,
    an_offer_wakes_one_who_waits_for_its_channel,
    one_who_leaves_passes_its_turn_on,
    what_finds_no_room_is_left_to_a_refill,
    later_jobs_do_not_overtake_those_in_the_store,
    an_offer_turned_away_during_a_look_keeps_the_channel_hungry,
    a_lease_lapses_once_and_tells_whether_it_was_accepted,
    only_its_holder_renews_a_lease,
    a_closed_stream_shortens_its_leases_and_never_lengthens_one,
    a_released_lease_never_lapses,
);
