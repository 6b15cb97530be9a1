//! Jobs on their way into a store that other programs can write to.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::model::{JobId, JobSpec, Timestamp};

/// A job that another program published in a transaction of its own, which has committed.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// What the publisher was told; the job's from now on.
    pub id: JobId,
    pub owner: Arc<str>,
    /// Unchecked, but for what the database checks.
    pub spec: JobSpec,
    /// When it was published, by the database's clock. Its transaction may have gone on for long after that.
    pub made: Timestamp,
}

/// How much one look at arrivals answers at most: so many of them, and no further one once their payloads have so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArrivalPage {
    pub arrivals_max: u32,
    pub bytes_max: usize,
}

impl ArrivalPage {
    /// Whether there may be more than these.
    pub fn is_full(&self, arrivals: &[Arrival]) -> bool {
        let bytes: usize = arrivals.iter().map(|arrival| arrival.spec.payload.len()).sum();
        arrivals.len() >= self.arrivals_max as usize || bytes >= self.bytes_max
    }
}

/// Rings when there are arrivals. One loop listens to it.
#[derive(Default)]
pub struct Bell {
    rung: Notify,
    is_reliable: AtomicBool,
}

impl Bell {
    /// There may be arrivals.
    pub fn ring(&self) {
        self.rung.notify_one();
    }

    /// Whether each arrival rings it. Where not, somebody has to look.
    pub fn is_reliable(&self) -> bool {
        self.is_reliable.load(Ordering::Relaxed)
    }

    /// Says whether each arrival rings it from now on; rings where that changes, because there may have been some before.
    pub fn set_reliable(&self, is_reliable: bool) {
        if self.is_reliable.swap(is_reliable, Ordering::Relaxed) != is_reliable {
            self.ring();
        }
    }

    /// Waits until it rings, or for so long. Cancel-safe: a ring that nobody waited for is kept.
    pub async fn rung_within(&self, patience: Duration) -> bool {
        tokio::time::timeout(patience, self.rung.notified()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_ring_is_kept_until_somebody_listens() {
        let bell = Bell::default();
        bell.ring();
        bell.ring();
        assert!(bell.rung_within(Duration::ZERO).await);
        assert!(!bell.rung_within(Duration::from_secs(1)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_can_be_relied_on_again_may_have_missed_something() {
        let bell = Bell::default();
        bell.set_reliable(false);
        assert!(!bell.rung_within(Duration::from_secs(1)).await);
        bell.set_reliable(true);
        assert!(bell.is_reliable() && bell.rung_within(Duration::ZERO).await);
        bell.set_reliable(false);
        assert!(!bell.is_reliable() && bell.rung_within(Duration::ZERO).await);
    }
}
