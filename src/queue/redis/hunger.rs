//! Which channels' windows ran low, as far as this node was told.
//!
//! Redis says so to whoever takes or offers; to no other node. A node that was told asks for the right to look into the
//! store, which one node at a time gets.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// Channels noted; beyond it the feeder looks through all that the store has.
const NOTED_MAX: usize = 100_000;

#[derive(Default)]
pub(super) struct Hunger {
    /// Each with when it is to be asked for.
    noted: Mutex<HashMap<Arc<str>, Instant>>,
    forgotten: AtomicBool,
    notify: Arc<Notify>,
}

impl Hunger {
    fn noted(&self) -> MutexGuard<'_, HashMap<Arc<str>, Instant>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be asked for at once.
    pub(super) fn note(&self, channel: &Arc<str>) {
        if self.put_off(channel, Duration::ZERO) {
            self.notify.notify_one();
        }
    }

    /// To be asked for in a while, should it not be sooner. False where there is no room.
    pub(super) fn put_off(&self, channel: &Arc<str>, wait: Duration) -> bool {
        let at = Instant::now() + wait;
        let mut noted = self.noted();
        if noted.len() >= NOTED_MAX && !noted.contains_key(channel) {
            drop(noted);
            self.forget_everything();
            return false;
        }
        noted.entry(channel.clone()).and_modify(|known| *known = at.min(*known)).or_insert(at);
        true
    }

    /// Takes the channels that are to be asked for.
    pub(super) fn due(&self) -> Vec<Arc<str>> {
        let now = Instant::now();
        self.noted().extract_if(|_, at| *at <= now).map(|(channel, _)| channel).collect()
    }

    /// What Redis held, or what it was told, may be lost.
    pub(super) fn forget_everything(&self) {
        self.forgotten.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    pub(super) fn has_forgotten(&self) -> bool {
        self.forgotten.swap(false, Ordering::AcqRel)
    }

    pub(super) fn notify(&self) -> Arc<Notify> {
        self.notify.clone()
    }
}
