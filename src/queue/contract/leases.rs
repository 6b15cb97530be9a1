//! Who holds a job, and for how long.

use std::{sync::Arc, time::Duration};

use super::{Bench, id};
use crate::{model::Lease, queue::Lapsed};

const TTL: Duration = Duration::from_secs(600);
/// Longer than a test takes between two steps, and short beside [`TTL`].
const MARGIN: Duration = Duration::from_secs(60);

fn lease(number: u128) -> Lease {
    Lease { job_id: id(number), attempt: 1 }
}

fn lapsed(number: u128, holder: &str, accepted: bool) -> Lapsed {
    Lapsed { lease: lease(number), holder: holder.into(), accepted }
}

impl Bench {
    async fn hold(&self, leases: &[Lease], holder: &str, ttl: Duration) -> Vec<Lease> {
        self.queue.hold(leases, &holder.into(), ttl).await.expect("the queue is there")
    }

    async fn renew(&self, leases: &[Lease], holder: &str) -> Vec<Lease> {
        self.queue.renew(leases, &holder.into(), TTL).await
    }

    async fn holders(&self, leases: &[Lease]) -> Vec<Option<Arc<str>>> {
        self.queue.holders(leases).await.expect("the queue is there")
    }

    /// In order of the lease.
    async fn lapsed(&self) -> Vec<Lapsed> {
        self.backstage.pass(Duration::ZERO).await;
        let mut lapsed = self.queue.lapsed(9).await;
        lapsed.sort_by_key(|lapsed| lapsed.lease);
        lapsed
    }
}

pub async fn a_lease_lapses_once_and_tells_whether_it_was_accepted(bench: &Bench) {
    assert_eq!(bench.hold(&[lease(1), lease(2)], "s1", TTL).await, [lease(1), lease(2)]);
    assert!(bench.renew(&[lease(1)], "s1").await.is_empty(), "it is the holder's");
    bench.backstage.pass(TTL - MARGIN).await;
    assert!(bench.lapsed().await.is_empty());
    bench.backstage.pass(MARGIN).await;
    assert_eq!(bench.lapsed().await, [lapsed(1, "s1", true), lapsed(2, "s1", false)]);
    assert!(bench.lapsed().await.is_empty());
    assert_eq!(bench.holders(&[lease(1), lease(2)]).await, [None, None]);
}

pub async fn a_held_lease_is_given_to_nobody_else(bench: &Bench) {
    bench.hold(&[lease(1)], "s1", TTL).await;
    assert_eq!(bench.hold(&[lease(1), lease(2)], "s2", TTL).await, [lease(2)]);
    assert!(bench.hold(&[lease(1)], "s1", TTL).await.is_empty(), "nor anew to its holder, who claims it already");
    assert_eq!(bench.holders(&[lease(2), lease(3), lease(1)]).await, [Some("s2".into()), None, Some("s1".into())]);
    bench.queue.release(&[lease(1)]).await;
    bench.backstage.settle().await;
    assert_eq!(bench.hold(&[lease(1)], "s2", TTL).await, [lease(1)]);
}

pub async fn only_its_holder_renews_a_lease(bench: &Bench) {
    bench.hold(&[lease(1)], "s1", TTL).await;
    bench.backstage.pass(TTL / 2).await;
    assert_eq!(bench.renew(&[lease(1)], "s2").await, [lease(1)]);
    assert_eq!(bench.holders(&[lease(1)]).await, [Some("s1".into())]);
    bench.backstage.pass(TTL / 2).await;
    assert_eq!(bench.lapsed().await, [lapsed(1, "s1", false)]);
}

pub async fn a_lease_that_nobody_holds_is_taken_up_by_who_renews_it(bench: &Bench) {
    assert_eq!(bench.renew(&[lease(1)], "s1").await, [lease(1)]);
    assert_eq!(bench.holders(&[lease(1)]).await, [Some("s1".into())]);
    assert_eq!(bench.queue.held_by(&"s1".into()).await, [lease(1)]);
    assert!(bench.renew(&[lease(1)], "s1").await.is_empty());
    bench.backstage.pass(TTL).await;
    assert_eq!(bench.lapsed().await, [lapsed(1, "s1", true)]);
}

pub async fn a_lapsed_lease_that_is_renewed_lapses_again(bench: &Bench) {
    bench.hold(&[lease(1)], "s1", TTL).await;
    bench.backstage.pass(TTL).await;
    assert_eq!(bench.lapsed().await.len(), 1);
    assert_eq!(bench.renew(&[lease(1)], "s1").await, [lease(1)], "its session should ask the store");
    bench.backstage.pass(TTL).await;
    assert_eq!(bench.lapsed().await, [lapsed(1, "s1", true)]);
    assert!(bench.queue.held_by(&"s1".into()).await.is_empty());
}

pub async fn a_closed_stream_shortens_its_leases_and_never_lengthens_one(bench: &Bench) {
    bench.hold(&[lease(1)], "s1", TTL).await;
    bench.hold(&[lease(2)], "s1", TTL / 4).await;
    bench.hold(&[lease(3)], "s2", TTL).await;
    bench.queue.shorten(&"s1".into(), TTL / 2).await;
    bench.backstage.pass(TTL / 4).await;
    assert_eq!(bench.lapsed().await, [lapsed(2, "s1", false)]);
    bench.backstage.pass(TTL / 4).await;
    assert_eq!(bench.lapsed().await, [lapsed(1, "s1", false)]);
}

pub async fn a_released_lease_never_lapses(bench: &Bench) {
    bench.hold(&[lease(1), lease(2)], "s1", TTL).await;
    bench.queue.release(&[lease(1), lease(7)]).await;
    bench.backstage.settle().await;
    assert_eq!(bench.queue.held_by(&"s1".into()).await, [lease(2)]);
    bench.backstage.pass(TTL).await;
    assert_eq!(bench.lapsed().await, [lapsed(2, "s1", false)]);
}
