//! A time at which a loop must look again, set by whoever knows of one.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::{clock::Clock, model::Timestamp};

/// Keeps the earliest time it was set to. One loop waits for it.
#[derive(Default)]
pub struct Alarm {
    earliest: Mutex<Option<Timestamp>>,
    earlier: Notify,
}

impl Alarm {
    pub fn set(&self, at: Timestamp) {
        let mut earliest = self.earliest.lock().unwrap_or_else(PoisonError::into_inner);
        if earliest.is_none_or(|known| at < known) {
            *earliest = Some(at);
            self.earlier.notify_one();
        }
    }

    fn earliest(&self) -> Option<Timestamp> {
        *self.earliest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time it was set to, where that has come; the alarm is off from then on.
    pub fn take_due(&self, now: Timestamp) -> Option<Timestamp> {
        let mut earliest = self.earliest.lock().unwrap_or_else(PoisonError::into_inner);
        earliest.take_if(|at| *at <= now)
    }

    /// Waits until the time it is set to. Cancel-safe: the alarm stays set.
    pub async fn ring(&self, clock: &dyn Clock) {
        loop {
            let Some(at) = self.earliest() else {
                self.earlier.notified().await;
                continue;
            };
            tokio::select! {
                () = tokio::time::sleep(at.since(clock.now())) => return,
                () = self.earlier.notified() => {}
            }
        }
    }
}
