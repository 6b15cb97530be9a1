//! Takes jobs back from runners that fell silent, died, or were with a service that stopped.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{EngineError, Shared, offer_of};
use crate::{
    fleet::Order,
    model::{Input, Job, JobId, Lease, Refusal, Status, step},
    queue::Lapsed,
    store::Outcome,
};

/// How often lapsed leases are looked for.
const INTERVAL: Duration = Duration::from_millis(50);
/// Leases reaped at once.
const REAP_MAX: usize = 1_000;
/// How often the store is searched for running jobs that nobody holds a lease of: so many times in a lease's time, and no
/// sooner than this, for an idle node searches, too.
const ORPHAN_INTERVAL_MIN: Duration = Duration::from_secs(2);
const ORPHAN_TIMES_A_LEASE: u32 = 4;
/// Running jobs read at once in that search.
const ORPHAN_PAGE: u32 = 1_000;

pub async fn run(shared: Arc<Shared>) {
    let stopped = shared.stopped();
    let mut orphans = Orphans { shared: shared.clone(), since: HashMap::new() };
    let interval = ORPHAN_INTERVAL_MIN.max(shared.settings.timings.lease_ttl / ORPHAN_TIMES_A_LEASE);
    let mut searched: Option<Instant> = None;
    loop {
        let lapsed = shared.queue.lapsed(REAP_MAX).await;
        if !lapsed.is_empty() {
            reap(&shared, lapsed).await;
        }
        if searched.is_none_or(|at| at.elapsed() >= interval) {
            if let Err(error) = orphans.search().await {
                tracing::warn!(error = &error as &dyn std::error::Error, "the search for orphaned jobs failed");
            }
            searched = Some(Instant::now());
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stopped.cancelled() => return,
        }
    }
}

async fn reap(shared: &Arc<Shared>, lapsed: Vec<Lapsed>) {
    let ids: Vec<JobId> = lapsed.iter().map(|lapsed| lapsed.lease.job_id).collect();
    // What cannot be read or written stays running without a lease; the orphan search finds it.
    let Ok(jobs) = shared.store.load(&ids).await else { return };
    let now = shared.now();
    let mut steps = Vec::new();
    let mut lost = Vec::new();
    let mut unclaimed = Vec::new();
    for (lapsed, job) in lapsed.iter().zip(jobs) {
        let Some(job) = job else { continue };
        let attempt = lapsed.lease.attempt;
        let input = if lapsed.accepted { Input::LoseLease { attempt } } else { Input::Release { attempt } };
        let Ok(step) = step(&job, input.clone(), now, shared.dice.roll()) else {
            // Taken from its window, and its taker died before the claim was stored.
            if job.status == Status::Pending && job.ready_at <= now && !job.broadcast {
                unclaimed.push(offer_of(&Arc::new(job)));
            }
            continue;
        };
        if let Some(runner_id) = &job.runner_id {
            // Told before the job is to be had again, so that its session stands back.
            tracing::info!(job = %job.id, attempt, runner = %runner_id, "a lease lapsed");
            shared.registry.order(runner_id, Order::Lost(lapsed.lease)).await;
        }
        steps.push(step);
        lost.push((lapsed.lease, input));
    }
    shared.queue.offer(unclaimed).await;
    let Ok(outcomes) = shared.committer.apply_each(steps).await else { return };
    for ((lease, input), outcome) in lost.into_iter().zip(outcomes) {
        if outcome == Outcome::Stale {
            // Somebody changed the job meanwhile. A refusal says that its attempt is over.
            let _ = shared.transition(lease.job_id, |_| input.clone()).await;
        }
    }
}

/// Running jobs without a lease: the service was restarted, the queue lost its memory, or a write's answer was lost. Each
/// gets a grace period of `lease_ttl`, so that a runner which comes back can name it.
struct Orphans {
    shared: Arc<Shared>,
    since: HashMap<Lease, Instant>,
}

impl Orphans {
    async fn search(&mut self) -> Result<(), EngineError> {
        let grace = self.shared.settings.timings.lease_ttl;
        let mut found = HashMap::new();
        let mut after = None;
        loop {
            let page = self.shared.store.running(after, ORPHAN_PAGE).await?;
            let leases: Vec<Lease> = page.iter().map(Job::lease).collect();
            let Ok(holders) = self.shared.queue.holders(&leases).await else {
                // Nobody can renew a lease meanwhile, so no time counts.
                self.since.clear();
                return Ok(());
            };
            for (lease, _) in leases.into_iter().zip(holders).filter(|(_, holder)| holder.is_none()) {
                let since = self.since.get(&lease).copied().unwrap_or_else(Instant::now);
                found.insert(lease, since);
                if since.elapsed() >= grace {
                    self.take_back(lease).await;
                }
            }
            match page.last() {
                Some(last) if page.len() == ORPHAN_PAGE as usize => after = Some(last.id),
                _ => break,
            }
        }
        self.since = found;
        Ok(())
    }

    async fn take_back(&self, lease: Lease) {
        let result = self.shared.transition(lease.job_id, |_| Input::LoseLease { attempt: lease.attempt }).await;
        match result {
            Ok(_) => tracing::info!(job = %lease.job_id, attempt = lease.attempt, "took back a job that nobody held"),
            Err(super::transition::Stuck::Refused(Refusal::StaleAttempt | Refusal::Status(_))) => {}
            Err(error) => tracing::warn!(job = %lease.job_id, %error, "could not take back a job"),
        }
    }
}
