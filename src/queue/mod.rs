//! The queue: a hint. Losing it costs latency, never a job.
//!
//! For each channel it holds a bounded window over the front of the store's line of ready jobs, and it times the leases
//! of running ones. A hint may be stale, doubled or missing: the state machine refuses stale ones, and the feeder brings
//! back missing ones from the store. A queue that cannot be reached answers as an empty one would, except where a caller
//! must know: nothing is claimed without a lease, and nothing is taken back because nobody could be asked.

#[cfg(test)]
mod contract;
pub mod memory;
pub mod redis;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::Notify;

use crate::model::{Job, Lease, job::Ready};

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

/// A look into the store for ready jobs of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    pub channel: Arc<str>,
    /// The jobs in front of this one, and itself, are known. `None`: the look begins at the front of the line.
    pub after: Option<Ready>,
}

/// Nobody could be asked. What a caller does then must be safe whatever the answer would have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue cannot be reached")]
pub struct Unreachable;

#[async_trait]
pub trait Queue: Send + Sync {
    /// Lines jobs up. Those that find no room, or that sort behind jobs which wait in the store, are left to a refill;
    /// in a full window, a job that sorts before others takes the place of the last. Later calls may overtake this one.
    async fn offer(&self, offers: Vec<Offer>);

    /// Takes up to `max` jobs of these channels, the longest waiting first among channels. Where there are fewer, the
    /// waiter is notified once there may be more.
    async fn take(&self, channels: &[Arc<str>], max: usize, waiter: &Waiter) -> Vec<Offer>;

    /// How many ready jobs of this channel wait in front of a new one: rather too many than too few, as far as can be told
    /// without asking anybody. `None`: any number, for there may be some in the store that are in no window.
    fn line_length(&self, channel: &Arc<str>) -> Option<usize>;

    /// Forgets a waiter, and passes on what it may have been woken for.
    async fn leave(&self, channels: &[Arc<str>], waiter: &Waiter);

    /// Removes jobs from their windows.
    async fn forget(&self, jobs: &[Ready]);

    /// Says that the store may hold ready jobs of these channels that are in no window.
    async fn suspect(&self, channels: &[Arc<str>]);

    /// Notified when [`Queue::hungry`] or [`Queue::has_forgotten`] may have something to say.
    fn hunger(&self) -> Arc<Notify>;

    /// Whether what the windows held, or offers for them, may have been lost since this was last asked: every channel
    /// that has jobs should be suspected then.
    fn has_forgotten(&self) -> bool;

    /// Looks for channels whose window ran low while the store may hold more. Each must be answered by
    /// [`Queue::refill`], and until then nobody else is told of it. What is offered meanwhile lines up behind the refill.
    async fn hungry(&self) -> Vec<Look>;

    /// What a look has found, in order. `complete`: there are no more ready jobs behind these.
    async fn refill(&self, channel: &Arc<str>, offers: Vec<Offer>, complete: bool);

    /// Gives leases that nobody holds to a holder for `ttl`, not accepted yet. Answers which ones; who was given none
    /// must not claim its job, for another is about to.
    async fn hold(&self, leases: &[Lease], holder: &Arc<str>, ttl: Duration) -> Result<Vec<Lease>, Unreachable>;

    /// Accepts or renews those of these leases that are the holder's. One that nobody holds becomes the holder's: it was
    /// lost with a queue's memory, or has lapsed and may have been reaped. One that another holds is left alone. Answers
    /// the leases of both kinds; whether they are still good, only the store knows.
    async fn renew(&self, leases: &[Lease], holder: &Arc<str>, ttl: Duration) -> Vec<Lease>;

    /// The holder's stream has closed: all its leases lapse within `window`.
    async fn shorten(&self, holder: &Arc<str>, window: Duration);

    /// These attempts are over, whoever holds their leases.
    async fn release(&self, leases: &[Lease]);

    /// Who holds each of these leases.
    async fn holders(&self, leases: &[Lease]) -> Result<Vec<Option<Arc<str>>>, Unreachable>;

    /// What a holder holds.
    async fn held_by(&self, holder: &Arc<str>) -> Vec<Lease>;

    /// Takes away up to `limit` leases whose time is over; each is told to one caller. May be asked at any rate.
    async fn lapsed(&self, limit: usize) -> Vec<Lapsed>;

    /// Whether it can be reached.
    fn is_well(&self) -> bool;
}
