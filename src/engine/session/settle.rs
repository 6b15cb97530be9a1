//! One commit a turn: the results that came in, and the claims that they made room for.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio::time::Instant;

use super::{ASSIGNMENT_BYTES, CLAIM_MAX, Going, OWED_MAX, OWED_RETRY, Session};
use crate::{
    engine::{
        EngineError,
        messages::{End, Receipt, Report, ToRunner},
        offer_of, transition,
        vacancies::Withdrawn,
    },
    model::{Input, Job, JobId, Lease, Refusal, Status, Step, step},
    queue::Offer,
    store::Outcome,
};

impl Session {
    /// One commit for the results that came in and for the claims that they made room for.
    pub(super) async fn settle_and_claim(&mut self, reports: Vec<Report>) -> Going {
        let mut due = std::mem::take(&mut self.owed);
        due.extend(reports);
        self.owes_until = None;
        let ended = self.end_steps(due).await;
        let freed = ended.iter().filter(|ended| ended.step.is_some() && self.holds(ended.lease)).count();
        let room = self.room_after(freed);
        let claims = if room > 0 { self.claim_steps(room).await } else { Vec::new() };
        let mut steps: Vec<Step> = ended.iter().filter_map(|ended| ended.step.clone()).collect();
        let settling = steps.len();
        steps.extend(claims.iter().cloned());
        let outcomes = match self.shared.committer.apply_each(steps).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                // The claims' leases are given back; should a claim be stored after all, the orphan search finds its job.
                tracing::warn!(error = &error as &dyn std::error::Error, "a session's steps were not stored");
                let leases: Vec<Lease> = claims.iter().map(|step| step.job.lease()).collect();
                self.shared.queue.release(&leases).await;
                self.shared.queue.suspect(&self.channels).await;
                if matches!(error, EngineError::Draining) {
                    return Going::Over;
                }
                return self.owe(ended.into_iter().map(|ended| ended.report).collect());
            }
        };
        let (settled, claimed) = outcomes.split_at(settling.min(outcomes.len()));
        let receipts = self.receipts(ended, settled).await;
        let assigned = self.assigned(claims, claimed).await;
        self.note_running();
        if !receipts.is_empty() && self.send(ToRunner::ResultsAccepted(receipts)).await == Going::Over {
            return Going::Over;
        }
        self.assign(assigned).await
    }

    /// Takes back the slots that were to be had by others, and hands over the jobs that were stored for it meanwhile.
    pub(super) async fn take_promised(&mut self) -> Going {
        let Withdrawn { jobs, promised } = self.shared.vacancies.withdraw(self.waiter.number);
        self.promised = promised;
        if jobs.is_empty() {
            return Going::On;
        }
        self.held.extend(jobs.iter().map(|job| (job.id, job.clone())));
        if self.paused || self.said_goodbye {
            // Stored while the pause or the farewell came.
            let released = jobs.iter().map(|job| Report { lease: job.lease(), end: End::Released, metadata: None });
            let ended = self.end_steps(released.collect()).await;
            let steps = ended.iter().filter_map(|ended| ended.step.clone()).collect();
            if let Ok(outcomes) = self.shared.committer.apply_each(steps).await {
                self.receipts(ended, &outcomes).await;
            }
            return Going::On;
        }
        self.note_running();
        self.assign(jobs).await
    }

    /// What is left of its slots is to be had by jobs that are yet to come.
    pub(super) fn offer_vacancy(&self) {
        self.shared.vacancies.offer(self.waiter.number, &self.channels, self.room_after(0));
    }

    /// Slots for more executions once so many have ended; none for a runner that is paused or silent.
    pub(super) fn room_after(&self, freed: usize) -> usize {
        // A store that takes no results takes no claims either.
        let ails = self.owes_until.is_some();
        let away = self.stands_back_until.is_some() || ails || self.shared.leaving.is_cancelled();
        if self.paused || away || !self.is_heard() {
            return 0;
        }
        (self.capacity + freed).saturating_sub(self.held.len() + self.promised).min(CLAIM_MAX)
    }

    /// Keeps reports that could not be stored, and tries again soon: the runner would send them anew only over another
    /// stream. A runner that hands in more than anybody could hold has to come back with them.
    pub(super) fn owe(&mut self, reports: Vec<Report>) -> Going {
        if self.owed.len() + reports.len() > OWED_MAX {
            return Going::Over;
        }
        if !reports.is_empty() {
            self.owed.extend(reports);
            self.owes_until = Some(Instant::now() + OWED_RETRY);
        }
        Going::On
    }

    /// The steps by which the reported executions end; none for a report that comes too late. What cannot be looked up now
    /// is owed.
    async fn end_steps(&mut self, reports: Vec<Report>) -> Vec<Ended> {
        let now = self.shared.now();
        let mut ended = Vec::with_capacity(reports.len());
        let mut ends = HashSet::with_capacity(reports.len());
        for report in reports {
            let input = input_of(&report);
            let mut job = self.held.get(&report.lease.job_id).filter(|_| self.holds(report.lease)).cloned();
            if job.is_none() {
                job = match self.reload(report.lease).await {
                    Ok(job) => job,
                    Err(_) => {
                        self.owe(vec![report]);
                        continue;
                    }
                };
            }
            let step = job.and_then(|job| step(&job, input.clone(), now, self.shared.dice.roll()).ok());
            // The same report twice in one turn: the second one has nothing left to end.
            let step = step.filter(|_| ends.insert(report.lease));
            ended.push(Ended { lease: report.lease, report, input, step });
        }
        ended
    }

    /// A job as the store has it, if this attempt of it is this runner's.
    async fn reload(&self, lease: Lease) -> Result<Option<Arc<Job>>, EngineError> {
        let job = self.shared.load(lease.job_id).await?;
        Ok(job.filter(|job| self.is_mine(job, lease)).map(Arc::new))
    }

    async fn claim_steps(&self, room: usize) -> Vec<Step> {
        let offers = self.shared.queue.take(&self.channels, room, &self.waiter).await;
        if offers.is_empty() {
            return Vec::new();
        }
        if offers.len() == room {
            // There may be more; a turn that still has room looks again.
            self.waiter.notify.notify_one();
        }
        let jobs = match self.at_hand(offers).await {
            Ok(jobs) => jobs,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "jobs to claim could not be read");
                self.shared.queue.suspect(&self.channels).await;
                return Vec::new();
            }
        };
        let now = self.shared.now();
        let mut steps = Vec::new();
        for job in jobs {
            match step(&job, Input::Claim { runner_id: self.place.runner_id.clone() }, now, 0) {
                Ok(step) => steps.push(step),
                Err(Refusal::Expiry) => {
                    let _ = self.shared.transition(job.id, |_| Input::Expire).await;
                }
                // A stale hint: somebody else moved it on.
                Err(_) => {}
            }
        }
        self.leased(steps).await
    }

    /// The claims whose leases could be held: none is stored without one. The others are somebody else's to store, or
    /// stay in the store for a refill.
    async fn leased(&self, claims: Vec<Step>) -> Vec<Step> {
        if claims.is_empty() {
            return claims;
        }
        let leases: Vec<Lease> = claims.iter().map(|claim| claim.job.lease()).collect();
        let ttl = self.shared.settings.timings.accept_timeout;
        match self.shared.queue.hold(&leases, &self.id, ttl).await {
            Ok(held) if held.len() == leases.len() => claims,
            Ok(held) => {
                let held: HashSet<Lease> = held.into_iter().collect();
                claims.into_iter().filter(|claim| held.contains(&claim.job.lease())).collect()
            }
            Err(_) => {
                self.shared.queue.suspect(&self.channels).await;
                Vec::new()
            }
        }
    }

    /// The jobs behind offers; those that were too large to keep are read from the store.
    async fn at_hand(&self, offers: Vec<Offer>) -> Result<Vec<Arc<Job>>, EngineError> {
        let missing: Vec<JobId> =
            offers.iter().filter(|offer| offer.job.is_none()).map(|offer| offer.ready.id).collect();
        let mut loaded: HashMap<JobId, Arc<Job>> = HashMap::new();
        if !missing.is_empty() {
            let jobs = self.shared.store.load(&missing).await?;
            loaded.extend(jobs.into_iter().flatten().map(|job| (job.id, Arc::new(job))));
        }
        let take = |offer: Offer| offer.job.or_else(|| loaded.remove(&offer.ready.id));
        Ok(offers.into_iter().filter_map(take).collect())
    }

    async fn receipts(&mut self, ended: Vec<Ended>, outcomes: &[Outcome]) -> Vec<Receipt> {
        let mut outcomes = outcomes.iter();
        let mut receipts = Vec::with_capacity(ended.len());
        let (mut processed, mut failed) = (0, 0);
        let mut over = Vec::new();
        for Ended { lease, report, input, step } in ended {
            let mut accepted = false;
            if step.is_some() {
                accepted = outcomes.next() == Some(&Outcome::Applied);
                if !accepted {
                    // Somebody changed the job meanwhile, e.g. asked for its cancellation.
                    match self.shared.transition(lease.job_id, |_| input.clone()).await {
                        Ok(_) => accepted = true,
                        Err(transition::Stuck::Failed(error)) => {
                            tracing::warn!(job = %lease.job_id, %error, "a result was not stored");
                            self.owe(vec![report]);
                            continue;
                        }
                        Err(_) => {}
                    }
                }
            }
            if self.holds(lease) {
                self.held.remove(&lease.job_id);
            }
            if accepted {
                over.push(lease);
                processed += u64::from(!matches!(input, Input::Release { .. }));
                failed += u64::from(matches!(input, Input::Fail { .. }));
            }
            receipts.push(Receipt { lease, accepted });
        }
        if !over.is_empty() {
            self.shared.queue.release(&over).await;
        }
        self.shared.registry.update(&self.place, |presence| {
            presence.jobs_processed += processed;
            presence.jobs_failed += failed;
        });
        receipts
    }

    /// The claims that were stored. One that was not had a stale hint: if its job is still to be had, it is offered anew.
    async fn assigned(&mut self, claims: Vec<Step>, outcomes: &[Outcome]) -> Vec<Arc<Job>> {
        let mut assigned = Vec::with_capacity(claims.len());
        let mut stale = Vec::new();
        for (claim, outcome) in claims.into_iter().zip(outcomes) {
            if *outcome == Outcome::Applied {
                self.held.insert(claim.job.id, claim.job.clone());
                assigned.push(claim.job);
                continue;
            }
            stale.push(claim.job.lease());
        }
        if !stale.is_empty() {
            self.give_back(stale).await;
        }
        assigned
    }

    /// Gives up leases whose claims were not stored, and lines up those of their jobs that can still be taken.
    async fn give_back(&self, leases: Vec<Lease>) {
        self.shared.queue.release(&leases).await;
        let ids: Vec<JobId> = leases.iter().map(|lease| lease.job_id).collect();
        let Ok(jobs) = self.shared.store.load(&ids).await else { return };
        let now = self.shared.now();
        let pending = |job: &Job| job.status == Status::Pending && job.ready_at <= now;
        let offers: Vec<Offer> =
            jobs.into_iter().flatten().filter(pending).map(|job| offer_of(&Arc::new(job))).collect();
        self.shared.queue.offer(offers).await;
    }

    async fn assign(&self, jobs: Vec<Arc<Job>>) -> Going {
        let mut message = Vec::new();
        let mut bytes = 0;
        for job in jobs {
            let size = job.payload.len() + job.metadata.len();
            if bytes + size > ASSIGNMENT_BYTES && !message.is_empty() {
                if self.send(ToRunner::Assignments(std::mem::take(&mut message))).await == Going::Over {
                    return Going::Over;
                }
                bytes = 0;
            }
            bytes += size;
            message.push(job);
        }
        if message.is_empty() {
            return Going::On;
        }
        self.send(ToRunner::Assignments(message)).await
    }
}

/// A reported end on its way to its receipt.
struct Ended {
    lease: Lease,
    report: Report,
    input: Input,
    /// None where the report comes too late.
    step: Option<Step>,
}

fn input_of(report: &Report) -> Input {
    let attempt = report.lease.attempt;
    let metadata = report.metadata.clone();
    match &report.end {
        End::Completed(result) => Input::Complete { attempt, result: result.clone(), metadata },
        End::Failed(failure) => Input::Fail { attempt, failure: failure.clone(), metadata },
        End::Canceled => Input::Canceled { attempt, metadata },
        End::Released => Input::Release { attempt },
    }
}
