//! Brings jobs from the store into the queue's windows: due ones, and those that found no room or lost their hint.

use std::{sync::Arc, time::Duration};

use super::{Shared, agenda, offer_of};
use crate::{
    model::{Timestamp, job::Ready},
    queue::{Look, Offer},
    store::StoreError,
};

/// Jobs read from the store at once.
const READ_MAX: u32 = 5_000;
/// How long the feeder sleeps where it knows of nothing.
const IDLE: Duration = Duration::from_secs(1);
/// How long it waits after an error of the store.
const AFTER_ERROR: Duration = Duration::from_millis(200);
/// How often every channel is looked through for hints that were lost.
const SWEEP: Duration = Duration::from_secs(30);

pub async fn run(shared: Arc<Shared>) {
    let stopped = shared.stopped();
    let hunger = shared.queue.hunger();
    let mut feeder = Feeder { shared, seen_until: Timestamp(0), swept: None, led: false };
    loop {
        let mut patience = IDLE;
        if let Err(error) = feeder.turn().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the feeder could not read the store");
            feeder.swept = None;
            patience = AFTER_ERROR;
        }
        // Each branch only waits: dropping one loses nothing.
        tokio::select! {
            () = tokio::time::sleep(patience) => {}
            () = feeder.shared.alarms.ready.ring(&*feeder.shared.clock), if patience == IDLE => {}
            () = hunger.notified() => {}
            () = stopped.cancelled() => return,
        }
    }
}

struct Feeder {
    shared: Arc<Shared>,
    /// Jobs ready up to this time were offered.
    seen_until: Timestamp,
    swept: Option<tokio::time::Instant>,
    /// Whether this node led at the last turn.
    led: bool,
}

impl Feeder {
    async fn turn(&mut self) -> Result<(), StoreError> {
        let now = self.shared.now();
        let leads = self.shared.membership.leads();
        let takes_over = leads && !self.led;
        self.led = leads;
        // What came due while nobody led is past, and no agenda tells of it.
        if takes_over || self.shared.queue.has_forgotten() {
            self.swept = None;
        }
        if self.swept.is_none_or(|swept| leads && swept.elapsed() >= SWEEP) {
            let channels = self.shared.store.pending_channels().await?;
            self.shared.queue.suspect(&channels).await;
            self.seen_until = now;
            self.swept = Some(tokio::time::Instant::now());
        }
        for look in self.shared.queue.hungry().await {
            // The time of now: what was offered before the look began was ready by then.
            let refilled = self.refill(&look, self.shared.now()).await;
            if refilled.is_err() {
                self.shared.queue.suspect(std::slice::from_ref(&look.channel)).await;
            }
            refilled?;
        }
        if let Some(at) = self.shared.alarms.ready.take_due(now) {
            // It may have been stored only after the time until it was looked through.
            self.seen_until = self.seen_until.min(Timestamp(at.0 - 1));
            let offered = self.offer_due(now).await;
            if offered.is_err() {
                self.shared.alarms.ready.set(at);
            }
            offered?;
            agenda::look(&self.shared).await?;
        }
        Ok(())
    }

    async fn refill(&self, look: &Look, now: Timestamp) -> Result<(), StoreError> {
        let ready = self.shared.store.ready(&look.channel, now, look.after.as_ref(), READ_MAX).await?;
        let complete = ready.len() < READ_MAX as usize;
        let offers = ready.into_iter().map(bare).collect();
        self.shared.queue.refill(&look.channel, offers, complete).await;
        Ok(())
    }

    /// A retry can become due earlier than what was seen, so the time between is read, not only what lies ahead.
    async fn offer_due(&mut self, now: Timestamp) -> Result<(), StoreError> {
        loop {
            let due = self.shared.store.due_between(self.seen_until, now, READ_MAX).await?;
            let Some(last) = due.last() else { break };
            let full = due.len() == READ_MAX as usize;
            // Several jobs may share the last moment of a full page: stop just before it, and read it again.
            let until = if full { Timestamp(last.ready_at.0 - 1) } else { now };
            let crowded = full && until <= self.seen_until;
            self.offer(due).await;
            if crowded {
                let channels = self.shared.store.pending_channels().await?;
                self.shared.queue.suspect(&channels).await;
                break;
            }
            self.seen_until = until;
            if !full {
                break;
            }
        }
        self.seen_until = now;
        Ok(())
    }

    async fn offer(&self, due: Vec<Ready>) {
        let small = due.len() <= 256;
        let mut offers: Vec<Offer> = due.into_iter().map(bare).collect();
        if small {
            let ids: Vec<_> = offers.iter().map(|offer| offer.ready.id).collect();
            if let Ok(jobs) = self.shared.store.load(&ids).await {
                offers = jobs
                    .into_iter()
                    .flatten()
                    .filter(|job| !job.broadcast)
                    .map(|job| offer_of(&Arc::new(job)))
                    .collect();
            }
        }
        self.shared.queue.offer(offers).await;
    }
}

fn bare(ready: Ready) -> Offer {
    Offer { ready, job: None }
}
