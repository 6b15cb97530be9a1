//! A Redis that dies, stalls or forgets.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{any_prefix, bench, node, node_with, server::Server, settings, until};
use crate::{
    model::Lease,
    queue::{
        Queue, Unreachable,
        contract::{PATIENCE, channel, id, is_woken, offer, waiter},
        redis::{RedisQueue, RedisSettings},
    },
};

/// No call may take longer, whatever has become of Redis: the time for an answer, and some for a slow machine.
const BOUND: Duration = Duration::from_secs(3);

fn lease(number: u128) -> Lease {
    Lease { job_id: id(number), attempt: 1 }
}

/// Every call ends in time, and those that must tell do.
async fn answers_without_redis(queue: &Arc<RedisQueue>) {
    let holder: Arc<str> = "s1".into();
    let began = Instant::now();
    assert_eq!(queue.hold(&[lease(9)], &holder, PATIENCE).await, Err(Unreachable));
    assert!(began.elapsed() < BOUND, "the first call finds out");
    let began = Instant::now();
    for round in 0..100 {
        assert_eq!(queue.holders(&[lease(9)]).await, Err(Unreachable));
        assert!(queue.take(&[channel("a")], 9, &waiter(round)).await.is_empty());
        assert!(queue.lapsed(9).await.is_empty());
        assert!(queue.renew(&[lease(9)], &holder, PATIENCE).await.is_empty());
        assert!(queue.held_by(&holder).await.is_empty() && queue.hungry().await.is_empty());
        queue.offer(vec![offer(9, "a", 0, 1)]).await;
        queue.release(&[lease(9)]).await;
        queue.suspect(&[channel("a")]).await;
        queue.refill(&channel("a"), vec![offer(9, "a", 0, 1)], true).await;
    }
    queue.flushed().await;
    assert!(began.elapsed() < BOUND, "the others know");
    assert!(!queue.is_well());
}

#[tokio::test]
async fn a_redis_that_was_killed_is_filled_anew() {
    let mut server = Server::start().await;
    let queue = node(&server.url(), &any_prefix(), "node").await;
    let on = bench(&queue);
    let (holder, waiting): (Arc<str>, _) = ("s1".into(), waiter(1));
    queue.hold(&[lease(1)], &holder, PATIENCE).await.expect("redis is there");
    assert!(on.take(&["b"], 1, &waiting).await.is_empty());
    on.offer(vec![offer(1, "a", 0, 1)]).await;
    assert!(queue.is_well() && !queue.has_forgotten());

    server.kill();
    answers_without_redis(&queue).await;
    server.start_again().await;

    until("the return", async || queue.is_well()).await;
    assert!(is_woken(&waiting).await, "it may have missed an offer");
    until("the look through everything", async || queue.has_forgotten()).await;
    assert!(queue.lapsed(9).await.is_empty(), "nobody could renew");
    assert_eq!(queue.holders(&[lease(1)]).await, Ok(vec![None]));
    assert_eq!(queue.renew(&[lease(1)], &holder, PATIENCE).await, [lease(1)]);
    assert_eq!(queue.holders(&[lease(1)]).await, Ok(vec![Some(holder)]));

    on.suspect("a").await;
    let channels: Vec<_> = queue.hungry().await.into_iter().map(|look| look.channel).collect();
    assert_eq!(channels, [channel("a")]);
    queue.refill(&channel("a"), vec![offer(1, "a", 0, 1)], true).await;
    assert_eq!(on.take(&["a"], 9, &waiter(2)).await, [1]);
    assert!(on.take(&["b"], 1, &waiting).await.is_empty());
    // Messages are heard again, on a connection of their own.
    until("an announcement", async || {
        queue.forget(&[offer(2, "b", 0, 2).ready]).await;
        on.offer(vec![offer(2, "b", 0, 2)]).await;
        !crate::queue::contract::still_waits(&waiting)
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_stalls_costs_its_leases_nothing() {
    let server = Server::start().await;
    let queue = node(&server.url(), &any_prefix(), "node").await;
    let ttl = Duration::from_millis(2_500);
    queue.hold(&[lease(1)], &"s1".into(), ttl).await.expect("redis is there");
    let held = Instant::now();
    assert!(queue.lapsed(9).await.is_empty());

    server.stall();
    answers_without_redis(&queue).await;
    while held.elapsed() < ttl + Duration::from_secs(1) {
        sleep(Duration::from_millis(50)).await;
    }
    server.go_on();

    until("the return", async || queue.is_well()).await;
    // Its time is over; but nobody could renew it.
    assert!(queue.lapsed(9).await.is_empty());
    assert!(queue.renew(&[lease(1)], &"s1".into(), ttl).await.is_empty(), "its holder still has it");
    assert!(queue.has_forgotten());
    until("the end of the lease", async || !queue.lapsed(9).await.is_empty()).await;
}

#[tokio::test]
async fn a_flush_is_noticed_by_every_node() {
    let server = Server::start().await;
    let (url, prefix) = (server.url(), any_prefix());
    let (a, b) = (node(&url, &prefix, "a").await, node(&url, &prefix, "b").await);
    let (on_a, on_b) = (bench(&a), bench(&b));
    let waiting = waiter(1);
    assert!(on_b.take(&["a"], 1, &waiting).await.is_empty());
    a.hold(&[lease(1)], &"s1".into(), PATIENCE).await.expect("redis is there");

    a.access.link.query::<()>(&redis::cmd("FLUSHALL")).await.expect("redis is there");
    for queue in [&a, &b] {
        until("the look through everything", async || {
            assert!(queue.lapsed(9).await.is_empty());
            queue.has_forgotten()
        })
        .await;
    }
    assert!(a.is_well() && b.is_well());
    assert_eq!(b.renew(&[lease(1)], &"s1".into(), PATIENCE).await, [lease(1)]);
    on_a.offer(vec![offer(1, "a", 0, 1)]).await;
    assert!(is_woken(&waiting).await, "who waits is remembered by its node");
    assert_eq!(on_b.take(&["a"], 1, &waiting).await, [1]);
}

#[tokio::test]
async fn a_redis_that_another_database_took_over_is_left_alone() {
    let server = Server::start().await;
    let (url, prefix) = (server.url(), any_prefix());
    let queue = node(&url, &prefix, "node").await;
    queue.access.link.query::<()>(&redis::cmd("FLUSHALL")).await.expect("redis is there");
    let other = RedisSettings { database_id: "database-2".into(), ..settings("other") };
    let other = node_with(&url, &prefix, other).await;

    until("the bar", async || {
        assert!(queue.lapsed(9).await.is_empty());
        !queue.is_well()
    })
    .await;
    assert_eq!(queue.hold(&[lease(1)], &"s1".into(), PATIENCE).await, Err(Unreachable));
    bench(&queue).offer(vec![offer(1, "a", 0, 1)]).await;
    assert!(other.take(&[channel("a")], 1, &waiter(1)).await.is_empty());

    other.access.link.query::<()>(&redis::cmd("FLUSHALL")).await.expect("redis is there");
    until("the end of the bar", async || {
        assert!(queue.lapsed(9).await.is_empty());
        queue.is_well()
    })
    .await;
    assert!(queue.has_forgotten());
}
