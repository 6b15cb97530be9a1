//! Interrupts of executions, and those among them that could not be delivered: Redis was lost, or its node was about to change.
//!
//! The node that asks keeps them and tries again. With the node they are lost, and the execution ends as if nobody had asked.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};

use super::{Shared, messages::InterruptReason};
use crate::{
    fleet::Order,
    model::{Lease, Status},
};

/// Interrupts that may wait; further ones are tried once.
pub const UNDELIVERED_MAX: usize = 1_024;
/// How often those that wait are tried again.
const RETRY: Duration = Duration::from_millis(500);
/// How long one is tried: a runner that was not found by then is gone.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Undelivered {
    runner_id: Arc<str>,
    lease: Lease,
    reason: InterruptReason,
    until: Instant,
}

impl Shared {
    /// Tells a runner to stop one execution; should it not be reached, again for a while.
    pub(super) async fn interrupt(&self, runner_id: &Arc<str>, lease: Lease, reason: InterruptReason) {
        if self.registry.order(runner_id, Order::Interrupt { lease, reason }).await {
            return;
        }
        let undelivered = Undelivered { runner_id: runner_id.clone(), lease, reason, until: Instant::now() + PATIENCE };
        if self.undelivered.try_send(undelivered).is_err() {
            tracing::debug!(job = %lease.job_id, "an interrupt was not delivered, and too many wait already");
        }
    }

    /// Whether it is delivered by now, or no longer of use.
    async fn is_done_with(&self, interrupt: &Undelivered) -> bool {
        let Undelivered { runner_id, lease, reason, until } = interrupt;
        if Instant::now() >= *until {
            return true;
        }
        if *reason == InterruptReason::Requested {
            let goes_on = match self.load(lease.job_id).await {
                Ok(job) => job.is_some_and(|job| job.status == Status::Running && job.lease() == *lease),
                Err(_) => true,
            };
            if !goes_on {
                return true;
            }
        }
        self.registry.order(runner_id, Order::Interrupt { lease: *lease, reason: *reason }).await
    }
}

pub async fn run(shared: Arc<Shared>, inbox: mpsc::Receiver<Undelivered>) {
    // Also between two tries: one may take as long as Redis and the store do to answer.
    shared.stopped().run_until_cancelled(deliver(&shared, inbox)).await;
}

async fn deliver(shared: &Shared, mut inbox: mpsc::Receiver<Undelivered>) {
    let mut waiting: Vec<Undelivered> = Vec::new();
    let mut again = Instant::now();
    loop {
        // Each branch only receives or waits: dropping one loses nothing.
        tokio::select! {
            Some(undelivered) = inbox.recv(), if waiting.len() < UNDELIVERED_MAX => {
                if waiting.is_empty() {
                    again = Instant::now() + RETRY;
                }
                waiting.push(undelivered);
            }
            () = tokio::time::sleep_until(again), if !waiting.is_empty() => {
                let mut left = Vec::new();
                for interrupt in waiting {
                    if !shared.is_done_with(&interrupt).await {
                        left.push(interrupt);
                    }
                }
                waiting = left;
                again = Instant::now() + RETRY;
            }
        }
    }
}
