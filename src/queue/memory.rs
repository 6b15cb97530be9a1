//! The queue of one process.

mod leases;
mod windows;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::Notify, time::Instant};

use super::{Lapsed, Look, Offer, Queue, Unreachable, Waiter};
use crate::model::{Lease, job::Ready};
use leases::{Held, Leases};
use windows::Windows;

pub struct MemoryQueue {
    windows: Mutex<Windows>,
    leases: Mutex<Leases>,
    hunger: Arc<Notify>,
}

impl MemoryQueue {
    /// `window_max`: how many jobs of one channel are kept at hand.
    pub fn new(window_max: usize) -> MemoryQueue {
        MemoryQueue {
            windows: Mutex::new(Windows::new(window_max)),
            leases: Mutex::new(Leases::default()),
            hunger: Arc::new(Notify::new()),
        }
    }

    fn windows(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn offer(&self, offers: Vec<Offer>) {
        let mut windows = self.windows();
        let mut hungry = false;
        for offer in offers {
            hungry |= windows.offer(offer);
        }
        if hungry {
            self.hunger.notify_one();
        }
    }

    async fn take(&self, channels: &[Arc<str>], max: usize, waiter: &Waiter) -> Vec<Offer> {
        let mut windows = self.windows();
        let taken = windows.take(channels, max, waiter);
        if channels.iter().any(|channel| windows.is_hungry(channel)) {
            self.hunger.notify_one();
        }
        taken
    }

    fn line_length(&self, channel: &Arc<str>) -> Option<usize> {
        self.windows().line_length(channel)
    }

    async fn leave(&self, channels: &[Arc<str>], waiter: &Waiter) {
        self.windows().leave(channels, waiter);
    }

    async fn forget(&self, jobs: &[Ready]) {
        let mut windows = self.windows();
        for job in jobs {
            windows.forget(job.id);
        }
    }

    async fn suspect(&self, channels: &[Arc<str>]) {
        self.windows().suspect(channels);
        self.hunger.notify_one();
    }

    fn hunger(&self) -> Arc<Notify> {
        self.hunger.clone()
    }

    fn has_forgotten(&self) -> bool {
        false
    }

    async fn hungry(&self) -> Vec<Look> {
        self.windows().ask()
    }

    async fn refill(&self, channel: &Arc<str>, offers: Vec<Offer>, complete: bool) {
        let mut windows = self.windows();
        windows.refill(channel, offers, complete);
        if windows.is_hungry(channel) {
            self.hunger.notify_one();
        }
        windows.tidy(std::slice::from_ref(channel));
    }

    async fn hold(&self, leases: &[Lease], holder: &Arc<str>, ttl: Duration) -> Result<Vec<Lease>, Unreachable> {
        let mut table = self.leases();
        let deadline = Instant::now() + ttl;
        let mut given = Vec::with_capacity(leases.len());
        for lease in leases {
            if table.holder(*lease).is_none() {
                table.put(*lease, Held { holder: holder.clone(), deadline, accepted: false });
                given.push(*lease);
            }
        }
        Ok(given)
    }

    async fn renew(&self, leases: &[Lease], holder: &Arc<str>, ttl: Duration) -> Vec<Lease> {
        let mut table = self.leases();
        let deadline = Instant::now() + ttl;
        let mut doubtful = Vec::new();
        for lease in leases {
            let known = table.holder(*lease).map(|known| known == holder);
            if known != Some(true) {
                doubtful.push(*lease);
            }
            if known != Some(false) {
                table.put(*lease, Held { holder: holder.clone(), deadline, accepted: true });
            }
        }
        doubtful
    }

    async fn shorten(&self, holder: &Arc<str>, window: Duration) {
        self.leases().shorten(holder, Instant::now() + window);
    }

    async fn release(&self, leases: &[Lease]) {
        let mut table = self.leases();
        for lease in leases {
            table.remove(*lease);
        }
    }

    async fn holders(&self, leases: &[Lease]) -> Result<Vec<Option<Arc<str>>>, Unreachable> {
        let table = self.leases();
        Ok(leases.iter().map(|lease| table.holder(*lease).cloned()).collect())
    }

    async fn held_by(&self, holder: &Arc<str>) -> Vec<Lease> {
        self.leases().of(holder)
    }

    async fn lapsed(&self, limit: usize) -> Vec<Lapsed> {
        self.leases().lapsed(Instant::now(), limit)
    }

    fn is_well(&self) -> bool {
        true
    }
}
