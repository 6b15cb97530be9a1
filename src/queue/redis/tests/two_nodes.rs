//! Nodes that share one Redis, of whichever kind.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::{any_prefix, bench, node, node_with, settings};
use crate::{
    model::{JobId, Lease},
    queue::{
        Lapsed, Queue,
        contract::{Bench, PATIENCE, channel, id, is_woken, offer, still_waits, waiter},
        redis::{RedisQueue, RedisSettings},
    },
};

struct Pair {
    a: Arc<RedisQueue>,
    b: Arc<RedisQueue>,
    on_a: Bench,
    on_b: Bench,
}

async fn pair(url: &str) -> Pair {
    let prefix = any_prefix();
    let (a, b) = (node(url, &prefix, "a").await, node(url, &prefix, "b").await);
    let (on_a, on_b) = (bench(&a), bench(&b));
    Pair { a, b, on_a, on_b }
}

async fn a_job_offered_on_one_node_is_taken_on_the_other(url: &str) {
    let pair = pair(url).await;
    pair.on_a.offer(vec![offer(1, "mail", 0, 1), offer(2, "@runner-7", 0, 2)]).await;
    assert_eq!(pair.on_b.take(&["mail", "@runner-7"], 9, &waiter(1)).await, [1, 2]);
    assert!(pair.on_a.all_of("mail").await.is_empty());
}

async fn an_offer_wakes_who_waits_on_another_node(url: &str) {
    let pair = pair(url).await;
    let (here, there) = (waiter(1), waiter(2));
    assert!(pair.on_b.take(&["a", "@r"], 1, &there).await.is_empty());
    pair.on_a.offer(vec![offer(1, "a", 0, 1)]).await;
    assert!(is_woken(&there).await);
    assert_eq!(pair.on_b.take(&["a", "@r"], 1, &there).await, [1]);
    assert!(pair.on_b.take(&["a", "@r"], 1, &there).await.is_empty());
    assert!(pair.on_a.take(&["a"], 1, &here).await.is_empty());
    pair.on_a.offer(vec![offer(2, "@r", 0, 1)]).await;
    assert!(is_woken(&there).await && still_waits(&here));
}

async fn nodes_whose_runners_wait_are_all_told_and_wait_on_in_vain(url: &str) {
    let pair = pair(url).await;
    let (here, there) = (waiter(1), waiter(2));
    for number in 1..=20 {
        assert!(pair.on_a.take(&["a"], 1, &here).await.is_empty());
        assert!(pair.on_b.take(&["a"], 1, &there).await.is_empty());
        pair.on_a.offer(vec![offer(number, "a", 0, 1)]).await;
        assert!(is_woken(&here).await && is_woken(&there).await);
        let mut taken = pair.on_b.take(&["a"], 1, &there).await;
        taken.extend(pair.on_a.take(&["a"], 1, &here).await);
        assert_eq!(taken, [number]);
    }
}

/// Takers on two nodes against publishers on both; nobody is told of a job but by its waking.
async fn each_job_is_taken_once_and_no_waking_is_lost(url: &str) {
    const JOBS: u128 = 2_000;
    let prefix = any_prefix();
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        nodes.push(node_with(url, &prefix, RedisSettings { window_max: 10_000, ..settings(name) }).await);
    }
    let (found, mut finds) = tokio::sync::mpsc::channel(64);
    for (number, queue) in nodes.iter().cycle().take(6).enumerate() {
        let (queue, found) = (queue.clone(), found.clone());
        tokio::spawn(async move {
            let channels = [channel("a"), channel(&format!("@{number}"))];
            let waiter = waiter(number as u64);
            loop {
                let taken = queue.take(&channels, 3, &waiter).await;
                for offer in &taken {
                    if found.send(offer.ready.id).await.is_err() {
                        return;
                    }
                }
                if taken.len() < 3 {
                    waiter.notify.notified().await;
                }
            }
        });
    }
    for (number, queue) in nodes.iter().enumerate() {
        let queue = queue.clone();
        tokio::spawn(async move {
            for job in (1..=JOBS).filter(|job| job % 2 == number as u128) {
                queue.offer(vec![offer(job, "a", (job % 3) as i32, job as i64)]).await;
                if job % 50 < 2 {
                    sleep(Duration::from_millis(2)).await;
                }
            }
        });
    }
    let mut seen: HashSet<JobId> = HashSet::new();
    while seen.len() < JOBS as usize {
        let next = timeout(PATIENCE, finds.recv()).await;
        let id = next.unwrap_or_else(|_| panic!("{} of {JOBS} jobs were taken", seen.len())).expect("takers go on");
        assert!(seen.insert(id), "{id} was taken twice");
    }
}

async fn one_node_at_a_time_looks_into_the_store(url: &str) {
    let pair = pair(url).await;
    pair.on_a.offer((1..=6).map(|number| offer(number, "a", 0, 1)).collect()).await;
    assert_eq!(pair.on_a.take(&["a"], 2, &waiter(1)).await, [1, 2]);
    assert_eq!(pair.on_b.take(&["a"], 2, &waiter(2)).await, [3, 4]);
    assert_eq!(pair.on_b.hungry().await, [channel("a")]);
    assert!(pair.on_a.hungry().await.is_empty());
    pair.b.refill(&channel("a"), vec![offer(5, "a", 0, 1), offer(6, "a", 0, 1)], true).await;
    assert_eq!(pair.on_a.all_of("a").await, [5, 6]);
    assert!(pair.on_a.hungry().await.is_empty() && pair.on_b.hungry().await.is_empty());
}

async fn a_look_that_took_too_long_changes_nothing_of_a_later_one(url: &str) {
    let pair = pair(url).await;
    pair.on_a.suspect("a").await;
    assert_eq!(pair.on_a.hungry().await, [channel("a")]);
    // As if its time were over.
    pair.on_b.suspect("a").await;
    assert_eq!(pair.on_b.hungry().await, [channel("a")]);
    pair.a.refill(&channel("a"), Vec::new(), true).await;
    pair.on_a.offer(vec![offer(9, "a", 0, 9)]).await;
    assert!(pair.on_a.all_of("a").await.is_empty(), "the later look is not over");
    pair.b.refill(&channel("a"), vec![offer(1, "a", 0, 1)], true).await;
    assert_eq!(pair.on_a.all_of("a").await, [1, 9]);
}

fn lease(number: u128) -> Lease {
    Lease { job_id: id(number), attempt: 1 }
}

const TTL: Duration = Duration::from_secs(600);

async fn leases_are_everybodys(url: &str) {
    let pair = pair(url).await;
    let (s1, s2) = ("s1".into(), "s2".into());
    assert_eq!(pair.a.hold(&[lease(1), lease(2), lease(3)], &s1, TTL).await.map(|held| held.len()), Ok(3));
    assert_eq!(pair.b.hold(&[lease(1)], &s2, TTL).await, Ok(Vec::new()));
    assert!(pair.b.renew(&[lease(1)], &s1, TTL).await.is_empty(), "the runner came back on another node");
    pair.b.release(&[lease(3)]).await;
    pair.b.flushed().await;
    pair.b.shorten(&s1, TTL / 2).await;
    assert_eq!(pair.a.held_by(&s1).await, [lease(1), lease(2)]);
    pair.on_a.backstage.pass(TTL / 2).await;
    pair.on_b.backstage.pass(Duration::ZERO).await;
    let (mut lapsed, rest) = (pair.b.lapsed(1).await, pair.a.lapsed(9).await);
    assert_eq!((lapsed.len(), rest.len()), (1, 1), "each is told to one node");
    lapsed.extend(rest);
    lapsed.sort_by_key(|lapsed| lapsed.lease);
    let told = |number, accepted| Lapsed { lease: lease(number), holder: s1.clone(), accepted };
    assert_eq!(lapsed, [told(1, true), told(2, false)]);
    assert_eq!(pair.a.holders(&[lease(1), lease(3)]).await, Ok(vec![None, None]));
}

async fn a_lease_lapses_by_the_clock_of_redis_and_is_told_to_one_node(url: &str) {
    const SHORT: Duration = Duration::from_millis(700);
    let pair = pair(url).await;
    let began = Instant::now();
    pair.a.hold(&[lease(1)], &"s1".into(), SHORT).await.expect("redis is there");
    let (mut told, end) = (0, began + PATIENCE);
    // And for a while longer: nobody else must be told.
    while (told == 0 && Instant::now() < end) || began.elapsed() < SHORT * 3 {
        let lapsed = pair.a.lapsed(9).await.len() + pair.b.lapsed(9).await.len();
        assert!(lapsed == 0 || began.elapsed() >= SHORT, "too early");
        told += lapsed;
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(told, 1);
}

macro_rules! on_every_redis {
    ($($case:ident),* $(,)?) => {
        on_redis!(one_server, $($case),*);
        on_redis!(cluster, $($case),*);
        on_redis!(over_tls, $($case),*);
        on_redis!(valkey, $($case),*);
    };
}

macro_rules! on_redis {
    ($server:ident, $($case:ident),*) => {
        mod $server {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$case(&crate::redis_link::servers::$server()).await;
                }
            )*
        }
    };
}

on_every_redis!(
    a_job_offered_on_one_node_is_taken_on_the_other,
    an_offer_wakes_who_waits_on_another_node,
    nodes_whose_runners_wait_are_all_told_and_wait_on_in_vain,
    each_job_is_taken_once_and_no_waking_is_lost,
    one_node_at_a_time_looks_into_the_store,
    a_look_that_took_too_long_changes_nothing_of_a_later_one,
    leases_are_everybodys,
    a_lease_lapses_by_the_clock_of_redis_and_is_told_to_one_node,
);
