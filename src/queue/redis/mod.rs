//! The queue that nodes share, in Redis 7 or later, Valkey, or a cluster of either.
//!
//! Nothing here is truth: a flush costs latency. What a call could not bring to Redis is dropped, and once Redis is back
//! the feeder is told to look through everything.
//!
//! Deliberately absent: any poll for jobs (offers are announced to nodes whose runners wait), any comparison of a node's
//! clock with Redis's, and any key that a script was not given.

mod access;
mod hunger;
mod keys;
mod leases;
mod outbox;
#[cfg(test)]
pub mod tests;
mod waiting;
mod windows;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::Notify;

use super::{Lapsed, Look, Offer, Queue, Unreachable, Waiter};
use crate::{
    drain::Drain,
    model::{Lease, job::Ready},
    redis_link::{RedisLink, Returns},
};
use access::Access;
use hunger::Hunger;
use leases::{Home, Leases};
use outbox::{Hint, Outbox};
use windows::Windows;

#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// What tells the database of jobs from every other, for ever: letters, digits and `-`.
    pub database_id: Arc<str>,
    pub node_id: Arc<str>,
    /// Jobs of one channel that are kept at hand.
    pub window_max: usize,
    /// How long leases last at least after a time in which nobody could renew them: a lease's `ttl`.
    pub lease_grace: Duration,
}

/// Why the queue cannot be used. What is displayed is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum RedisQueueError {
    #[error(
        "this redis belongs to another database: give each database a redis of its own, \
         or another redis_prefix or database number in redis_url; if the other one is gone, flush this redis"
    )]
    Foreign,
    #[error("the database's id is wanted as 1 to 64 letters, digits and -")]
    DatabaseId,
    #[error("redis gave no answer; the log has the cause")]
    Unanswered,
}

pub struct RedisQueue {
    access: Arc<Access>,
    hunger: Arc<Hunger>,
    windows: Arc<Windows>,
    leases: Arc<Leases>,
    outbox: Outbox,
}

impl RedisQueue {
    /// Makes sure that Redis serves this database, and keeps the queue's loops on `drain`.
    pub async fn open(link: RedisLink, settings: RedisSettings, drain: &Drain) -> Result<RedisQueue, RedisQueueError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if !(1..=64).contains(&settings.database_id.len()) || !settings.database_id.bytes().all(fits) {
            return Err(RedisQueueError::DatabaseId);
        }
        let returns = link.returns();
        let access = Arc::new(Access::new(link));
        let hunger = Arc::new(Hunger::default());
        let leases = Arc::new(Leases::new(access.clone(), hunger.clone(), settings.clone()));
        match leases.look(0).await {
            Ok((Home::Ours, _)) => {}
            Ok((Home::Foreign, _)) => return Err(RedisQueueError::Foreign),
            Err(Unreachable) => return Err(RedisQueueError::Unanswered),
        }
        let windows = Windows::new(access.clone(), hunger.clone(), settings);
        let (outbox, delivering) = Outbox::new(windows.clone(), leases.clone(), drain.token());
        drain.spawn("queue's outbox", delivering);
        drain.spawn("queue's return", watch_returns(returns, windows.clone(), hunger.clone(), drain.token()));
        Ok(RedisQueue { access, hunger, windows, leases, outbox })
    }

    /// Waits until everything that was handed in has been told to Redis, or dropped.
    pub async fn flushed(&self) {
        let (done, flushed) = tokio::sync::oneshot::channel();
        self.outbox.post(Hint::Flush(done)).await;
        // The sender is dropped only with the outbox.
        let _ = flushed.await;
    }
}

/// While Redis was lost, hints were dropped and announcements missed.
async fn watch_returns(
    mut returns: Returns,
    windows: Arc<Windows>,
    hunger: Arc<Hunger>,
    stopped: tokio_util::sync::CancellationToken,
) {
    loop {
        tokio::select! {
            () = returns.next() => {}
            () = stopped.cancelled() => return,
        }
        hunger.forget_everything();
        windows.wake_all();
    }
}

#[async_trait]
impl Queue for RedisQueue {
    async fn offer(&self, offers: Vec<Offer>) {
        if !offers.is_empty() {
            self.windows.begin_offers(&offers);
            self.outbox.post(Hint::Offer(offers)).await;
        }
    }

    async fn take(&self, channels: &[Arc<str>], max: usize, waiter: &Waiter) -> Vec<Offer> {
        self.windows.take(channels, max, waiter).await
    }

    fn line_length(&self, channel: &Arc<str>) -> Option<usize> {
        self.windows.line_length(channel)
    }

    async fn leave(&self, channels: &[Arc<str>], waiter: &Waiter) {
        self.windows.leave(channels, waiter);
    }

    async fn forget(&self, jobs: &[Ready]) {
        if !jobs.is_empty() {
            self.outbox.post(Hint::Forget(jobs.to_vec())).await;
        }
    }

    async fn suspect(&self, channels: &[Arc<str>]) {
        if !channels.is_empty() {
            self.windows.doubt(channels);
            self.outbox.post(Hint::Suspect(channels.to_vec())).await;
        }
    }

    fn hunger(&self) -> Arc<Notify> {
        self.hunger.notify()
    }

    fn has_forgotten(&self) -> bool {
        self.hunger.has_forgotten()
    }

    async fn hungry(&self) -> Vec<Look> {
        self.windows.hungry().await
    }

    async fn refill(&self, channel: &Arc<str>, offers: Vec<Offer>, complete: bool) {
        self.windows.refill(channel, &offers, complete).await;
    }

    async fn hold(&self, leases: &[Lease], holder: &Arc<str>, ttl: Duration) -> Result<Vec<Lease>, Unreachable> {
        self.leases.hold(leases, holder, ttl).await
    }

    async fn renew(&self, leases: &[Lease], holder: &Arc<str>, ttl: Duration) -> Vec<Lease> {
        self.leases.renew(leases, holder, ttl).await
    }

    async fn shorten(&self, holder: &Arc<str>, window: Duration) {
        self.leases.shorten(holder, window).await;
    }

    async fn release(&self, leases: &[Lease]) {
        if !leases.is_empty() {
            self.outbox.post(Hint::Release(leases.to_vec())).await;
        }
    }

    async fn holders(&self, leases: &[Lease]) -> Result<Vec<Option<Arc<str>>>, Unreachable> {
        self.leases.holders(leases).await
    }

    async fn held_by(&self, holder: &Arc<str>) -> Vec<Lease> {
        self.leases.held_by(holder).await
    }

    async fn lapsed(&self, limit: usize) -> Vec<Lapsed> {
        self.leases.lapsed(limit).await
    }

    fn is_well(&self) -> bool {
        self.access.is_well()
    }
}
