//! The queue: a hint. Losing it costs latency, never a job.
//!
//! For each channel it holds a bounded window over the front of the store's line of ready jobs, and it times the leases
//! of running ones. A hint may be stale, doubled or missing: the state machine refuses stale ones, and the feeder brings
//! back missing ones from the store.

#[cfg(test)]
mod contract;
pub mod memory;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::Notify;

use crate::model::{Job, JobId, Lease, job::Ready};

/// A job that may be taken.
#[derive(Debug, Clone)]
pub struct Offer {
    pub ready: Ready,
    /// The whole job where it is small enough to keep at hand; it saves its taker a read.
    pub job: Option<Arc<Job>>,
}

/// Somebody who waits for jobs. Its notification means "look again", nothing more.
#[derive(Debug, Clone)]
pub struct Waiter {
    pub number: u64,
    pub notify: Arc<Notify>,
}

/// A lease that its holder did not renew in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lapsed {
    pub lease: Lease,
    pub holder: Arc<str>,
    /// Whether a heartbeat ever named it: if not, its execution never began.
    pub accepted: bool,
}

#[async_trait]
pub trait Queue: Send + Sync {
    /// Lines jobs up. Those that find no room, or that sort behind jobs which wait in the store, are left to a refill.
    async fn offer(&self, offers: Vec<Offer>);

    /// Takes up to `max` jobs of these channels, the longest waiting first among channels. Where there are fewer, the
    /// waiter is notified once there may be more.
    async fn take(&self, channels: &[Arc<str>], max: usize, waiter: &Waiter) -> Vec<Offer>;

    /// Forgets a waiter, and passes on what it may have been woken for.
    async fn leave(&self, channels: &[Arc<str>], waiter: &Waiter);

    /// Removes jobs from their windows.
    async fn forget(&self, ids: &[JobId]);

    /// Says that the store may hold ready jobs of these channels that are in no window.
    async fn suspect(&self, channels: &[Arc<str>]);

    /// Notified when [`Queue::hungry`] may have something to say.
    fn hunger(&self) -> Arc<Notify>;

    /// Channels whose window ran low while the store may hold more. Each must be answered by [`Queue::refill`].
    async fn hungry(&self) -> Vec<Arc<str>>;

    /// The front of the store's line. `complete`: it holds every ready job there is.
    async fn refill(&self, channel: &Arc<str>, offers: Vec<Offer>, complete: bool);

    /// Gives leases to a holder for `ttl`, not accepted yet.
    async fn hold(&self, leases: &[Lease], holder: &Arc<str>, ttl: Duration);

    /// Accepts or renews those of these leases that are the holder's.
    async fn renew(&self, leases: &[Lease], holder: &Arc<str>, ttl: Duration);

    /// The holder's stream has closed: all its leases lapse within `window`.
    async fn shorten(&self, holder: &Arc<str>, window: Duration);

    async fn release(&self, leases: &[Lease]);

    async fn holder(&self, lease: Lease) -> Option<Arc<str>>;

    /// What a holder holds.
    async fn held_by(&self, holder: &Arc<str>) -> Vec<Lease>;

    /// Takes away up to `limit` leases whose time is over.
    async fn lapsed(&self, limit: usize) -> Vec<Lapsed>;
}
