//! What every fleet must keep, whatever is behind it. Each case gets handles of two nodes, `a` and `b`, that share nothing
//! but the fleet; a runner is silent after [`SILENT_AFTER`].

use std::{sync::Arc, time::Duration};

use super::{
    Admission, Arrival, Beat, ChannelReport, Fleet, Letter, NodeReport, Order, Removals, Stream,
    redis::{FleetSettings, RedisFleet},
};
use crate::{
    clock::{Dice, SystemDice},
    drain::Drain,
    model::{
        EventKind, JobEvent, JobId, Lease, Timestamp,
        runner::{Command, CommandKind, InterruptReason, Presence, Reply},
    },
    redis_link::{LinkSettings, RedisLink, servers},
};

pub const SILENT_AFTER: Duration = Duration::from_secs(10);

fn presence(runner_id: &str, node_id: &str) -> Presence {
    Presence {
        runner_id: runner_id.into(),
        channels: vec!["mails".into()],
        jobs_processed: 0,
        jobs_failed: 0,
        started: Timestamp(5),
        last_heartbeat: Timestamp(7),
        alive: true,
        paused: false,
        hostname: "hóst".into(),
        client: "test".into(),
        capacity: 4,
        running: 0,
        node_id: node_id.into(),
    }
}

fn arrival(runner_id: &str, node_id: &str, session_id: &str, stream: u64) -> Arrival {
    let presence = presence(runner_id, node_id);
    Arrival { presence, session_id: session_id.into(), resumes: false, stream }
}

fn beat(presence: Presence, session_id: &str, stream: u64) -> Beat {
    Beat { presence, session_id: session_id.into(), stream, heard_ago: Duration::ZERO }
}

fn report(node_id: &str) -> NodeReport {
    NodeReport { node_id: node_id.into(), watches: false, channels: Vec::new(), removals: Removals::default() }
}

async fn announce(fleet: &dyn Fleet, node_id: &str, beats: Vec<Beat>) {
    fleet.announce(Some(report(node_id)), beats).await;
}

async fn both_are_there(a: &dyn Fleet, b: &dyn Fleet) {
    announce(a, "a", Vec::new()).await;
    announce(b, "b", Vec::new()).await;
}

async fn names(fleet: &dyn Fleet) -> Vec<(String, bool)> {
    fleet.roster().await.into_iter().map(|runner| (runner.runner_id.to_string(), runner.alive)).collect()
}

pub async fn both_nodes_see_the_same_runners(a: &dyn Fleet, b: &dyn Fleet) {
    both_are_there(a, b).await;
    assert_eq!(a.admit(arrival("r2", "a", "s2", 1)).await, Admission::Fresh);
    assert_eq!(b.admit(arrival("r1", "b", "s1", 2)).await, Admission::Fresh);
    for fleet in [a, b] {
        assert_eq!(names(fleet).await, [("r1".into(), true), ("r2".into(), true)]);
        assert_eq!(fleet.find("r2").await.expect("an answer"), Some(presence("r2", "a")));
        assert_eq!(fleet.find("r3").await.expect("an answer"), None);
    }
}

pub async fn a_beat_renews_what_is_known(a: &dyn Fleet, b: &dyn Fleet) {
    both_are_there(a, b).await;
    a.admit(arrival("r1", "a", "s1", 1)).await;
    let busy = Presence { running: 3, jobs_processed: 8, paused: true, ..presence("r1", "a") };
    announce(a, "a", vec![beat(busy.clone(), "s1", 1)]).await;
    assert_eq!(b.find("r1").await.expect("an answer"), Some(busy));
    // A beat of somebody the fleet does not know, as after it lost its memory.
    announce(a, "a", vec![beat(presence("r2", "a"), "s2", 9)]).await;
    assert_eq!(b.find("r2").await.expect("an answer"), Some(presence("r2", "a")));
}

pub async fn a_silent_runner_is_listed_and_not_alive(a: &dyn Fleet, b: &dyn Fleet) {
    both_are_there(a, b).await;
    a.admit(arrival("r1", "a", "s1", 1)).await;
    let silent = Beat { heard_ago: SILENT_AFTER + Duration::from_secs(1), ..beat(presence("r1", "a"), "s1", 1) };
    announce(a, "a", vec![silent]).await;
    assert_eq!(names(b).await, [("r1".into(), false)]);
    assert!(!b.find("r1").await.expect("an answer").expect("a runner").alive);
    announce(a, "a", vec![beat(presence("r1", "a"), "s1", 1)]).await;
    assert_eq!(names(b).await, [("r1".into(), true)]);
}

pub async fn a_runner_that_left_is_listed_and_not_alive(a: &dyn Fleet, b: &dyn Fleet) {
    both_are_there(a, b).await;
    a.admit(arrival("r1", "a", "s1", 1)).await;
    let last = Presence { jobs_processed: 5, running: 2, ..presence("r1", "a") };
    assert!(a.depart(beat(last.clone(), "s1", 1)).await);
    let seen = b.find("r1").await.expect("an answer").expect("a runner");
    assert_eq!(seen, Presence { alive: false, running: 0, ..last });
    // A late beat of the stream that closed does not bring it back.
    announce(a, "a", vec![beat(presence("r1", "a"), "s1", 1)]).await;
    assert_eq!(names(b).await, [("r1".into(), false)]);
}

pub async fn a_session_goes_on_at_another_node(a: &dyn Fleet, b: &dyn Fleet) {
    both_are_there(a, b).await;
    a.admit(arrival("r1", "a", "s1", 1)).await;
    let worked = Presence { jobs_processed: 5, jobs_failed: 2, ..presence("r1", "a") };
    announce(a, "a", vec![beat(worked, "s1", 1)]).await;
    let back = Arrival { resumes: true, ..arrival("r1", "b", "s1", 2) };
    let back = Arrival { presence: Presence { started: Timestamp(99), ..back.presence }, ..back };
    let earlier = Stream { node_id: "a".into(), stream: 1, attached: true };
    let resumed = Admission::Resumed { earlier, jobs_processed: 5, jobs_failed: 2, started: Timestamp(5) };
    assert_eq!(b.admit(back).await, resumed);
    let seen = a.find("r1").await.expect("an answer").expect("a runner");
    assert_eq!((seen.jobs_processed, seen.started, &*seen.node_id), (5, Timestamp(5), "b"));
    // The earlier stream is no longer the runner's.
    announce(a, "a", vec![beat(presence("r1", "a"), "s1", 1)]).await;
    assert!(!a.depart(beat(presence("r1", "a"), "s1", 1)).await);
    let seen = a.find("r1").await.expect("an answer").expect("a runner");
    assert_eq!((&*seen.node_id, seen.alive), ("b", true));
    assert!(b.depart(beat(seen, "s1", 2)).await);
    let again = Arrival { resumes: true, ..arrival("r1", "a", "s1", 3) };
    let Admission::Resumed { earlier, .. } = a.admit(again).await else { panic!("not resumed") };
    assert_eq!(earlier, Stream { node_id: "b".into(), stream: 2, attached: false });
}

pub async fn a_living_runners_id_is_taken(a: &dyn Fleet, b: &dyn Fleet) {
    both_are_there(a, b).await;
    a.admit(arrival("r1", "a", "s1", 1)).await;
    assert_eq!(b.admit(arrival("r1", "b", "s2", 2)).await, Admission::Taken);
    let claims = Arrival { resumes: true, ..arrival("r1", "b", "another", 2) };
    assert_eq!(b.admit(claims).await, Admission::Taken, "a session that is not the runner's");
    assert_eq!(a.find("r1").await.expect("an answer"), Some(presence("r1", "a")), "and nothing changed");
    a.depart(beat(presence("r1", "a"), "s1", 1)).await;
    let earlier = Stream { node_id: "a".into(), stream: 1, attached: false };
    let replaced = Admission::Replaced { earlier, session_id: "s1".into() };
    assert_eq!(b.admit(arrival("r1", "b", "s2", 2)).await, replaced);
}

pub async fn a_silent_runners_id_is_free(a: &dyn Fleet, b: &dyn Fleet) {
    both_are_there(a, b).await;
    a.admit(arrival("r1", "a", "s1", 1)).await;
    let silent = Beat { heard_ago: SILENT_AFTER + Duration::from_secs(1), ..beat(presence("r1", "a"), "s1", 1) };
    announce(a, "a", vec![silent]).await;
    let earlier = Stream { node_id: "a".into(), stream: 1, attached: true };
    let replaced = Admission::Replaced { earlier, session_id: "s1".into() };
    assert_eq!(b.admit(arrival("r1", "b", "s2", 2)).await, replaced);
}

pub async fn runners_of_a_node_that_left_are_not_alive(a: &dyn Fleet, b: &dyn Fleet) {
    both_are_there(a, b).await;
    a.admit(arrival("r1", "a", "s1", 1)).await;
    a.leave().await;
    assert_eq!(names(b).await, [("r1".into(), false)]);
    assert!(!b.send("a", vec![Letter::Watching { node_id: "b".into() }]).await);
    assert!(matches!(b.admit(arrival("r1", "b", "s2", 2)).await, Admission::Replaced { .. }));
}

pub async fn nodes_are_known_by_their_reports(a: &dyn Fleet, b: &dyn Fleet) {
    let channel = ChannelReport { channel: "mails".into(), ended: 4, succeeded: 3, duration_ms: 20 };
    let removals = Removals { jobs: 7, last: Some(Timestamp(1)) };
    let of_b = NodeReport { watches: true, channels: vec![channel], removals, ..report("b") };
    announce(a, "a", Vec::new()).await;
    b.announce(Some(of_b.clone()), Vec::new()).await;
    for fleet in [a, b] {
        assert_eq!(fleet.nodes().await, [report("a"), of_b.clone()]);
    }
    b.leave().await;
    assert_eq!(a.nodes().await, [report("a")]);
}

pub async fn letters_arrive_whole_and_in_order(a: &dyn Fleet, b: &dyn Fleet) {
    both_are_there(a, b).await;
    let lease = Lease { job_id: JobId(uuid::Uuid::from_u128(7)), attempt: 2 };
    let order = |order| Letter::Order { runner_id: "r1".into(), order };
    let command = Command { command_id: "c".into(), kind: CommandKind::Pause, data: "{}".into(), graceful: true };
    let event = JobEvent {
        seq: 1,
        job_id: lease.job_id,
        channel: "mails".into(),
        kind: EventKind::Completed,
        at: Timestamp(4),
        runner_id: Some("r1".into()),
        attempt: 2,
        details: r#"{"a":"ü"}"#.into(),
    };
    let letters = vec![
        order(Order::Command { command, reply_to: "a".into() }),
        order(Order::Interrupt { lease, reason: InterruptReason::TimedOut }),
        order(Order::Lost(lease)),
        order(Order::Supersede { stream: u64::MAX }),
        Letter::Reply {
            command_id: "c".into(),
            reply: Reply { runner_id: "r1".into(), data: "{}".into(), error: String::new() },
        },
        Letter::Watching { node_id: "a".into() },
        Letter::Events(vec![event]),
    ];
    let (first, second) = letters.split_at(3);
    assert!(a.send("b", first.to_vec()).await);
    assert!(a.send("b", second.to_vec()).await);
    let mut received = Vec::new();
    while received.len() < letters.len() {
        let more = tokio::time::timeout(Duration::from_secs(5), b.receive()).await.expect("letters in time");
        received.extend(more);
    }
    assert_eq!(received, letters);
    assert!(!a.send("nowhere", letters).await);
}

pub async fn a_node_writes_to_itself(a: &dyn Fleet, b: &dyn Fleet) {
    both_are_there(a, b).await;
    let letter = Letter::Watching { node_id: "b".into() };
    assert!(a.send("a", vec![letter.clone()]).await);
    let received = tokio::time::timeout(Duration::from_secs(5), a.receive()).await.expect("a letter in time");
    assert_eq!(received, [letter]);
}

pub async fn one_node_leads_at_a_time(a: &dyn Fleet, b: &dyn Fleet) {
    both_are_there(a, b).await;
    let ttl = Duration::from_secs(30);
    assert_eq!(a.leader().await, None);
    assert!(a.lead(ttl).await);
    assert!(!b.lead(ttl).await);
    assert!(a.lead(ttl).await, "it goes on");
    assert_eq!(b.leader().await, Some(Arc::from("a")));
    a.leave().await;
    assert_eq!(b.leader().await, None);
    assert!(b.lead(ttl).await);
    assert_eq!(a.leader().await, Some(Arc::from("b")));
}

pub async fn a_leader_that_is_not_heard_of_is_followed_by_another(a: &dyn Fleet, b: &dyn Fleet) {
    both_are_there(a, b).await;
    assert!(a.lead(Duration::from_millis(30)).await);
    let followed = async {
        while !b.lead(Duration::from_secs(30)).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), followed).await.expect("a leader in time");
    assert!(!a.lead(Duration::from_secs(30)).await);
}

/// One node's handle on a Redis.
async fn joined(url: String, node_id: &str, prefix: &str, drain: &Drain) -> RedisFleet {
    let link = RedisLink::open(LinkSettings { url, prefix: prefix.into() }, drain).await.expect("a link");
    let settings = FleetSettings { database_id: "tests".into(), node_id: node_id.into(), silent_after: SILENT_AFTER };
    RedisFleet::join(link, settings).await
}

macro_rules! contract {
    ($($case:ident,)*) => {
        mod memory {
            $(#[tokio::test]
            async fn $case() {
                let hub = super::super::memory::Hub::new(super::SILENT_AFTER);
                super::$case(&hub.join("a".into()), &hub.join("b".into())).await;
            })*
        }
        on_redis!(redis, one_server, $($case),*);
        on_redis!(cluster, cluster, $($case),*);
        on_redis!(redis_over_tls, over_tls, $($case),*);
        on_redis!(valkey, valkey, $($case),*);
    };
}

macro_rules! on_redis {
    ($module:ident, $server:ident, $($case:ident),*) => {
        mod $module {
            use super::{Dice, Drain, SystemDice, joined, servers::$server as url};

            $(#[tokio::test]
            async fn $case() {
                let drain = Drain::new();
                let prefix = format!("test-{:016x}", SystemDice::new().roll());
                super::$case(&joined(url(), "a", &prefix, &drain).await, &joined(url(), "b", &prefix, &drain).await).await;
                drain.stop().await;
            })*
        }
    };
}

contract! {
    both_nodes_see_the_same_runners,
    a_beat_renews_what_is_known,
    a_silent_runner_is_listed_and_not_alive,
    a_runner_that_left_is_listed_and_not_alive,
    a_session_goes_on_at_another_node,
    a_living_runners_id_is_taken,
    a_silent_runners_id_is_free,
    runners_of_a_node_that_left_are_not_alive,
    nodes_are_known_by_their_reports,
    letters_arrive_whole_and_in_order,
    a_node_writes_to_itself,
    one_node_leads_at_a_time,
    a_leader_that_is_not_heard_of_is_followed_by_another,
}
