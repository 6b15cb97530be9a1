//! Joins claims to a commit: new jobs go straight to runners that wait for jobs, as far as their slots are more than what is
//! lined up already.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use tokio::time::timeout;

use super::{
    registry::Registry,
    vacancies::{Promise, Vacancies},
};
use crate::{
    clock::Clock,
    model::{Hint, Input, Job, Lease, Status, Step, Timestamp, step},
    queue::Queue,
    store::Outcome,
};

/// How long a commit waits for leases: a queue that is slower has new jobs line up.
const HOLD_PATIENCE: Duration = Duration::from_millis(100);

pub struct Matchmaker {
    pub vacancies: Arc<Vacancies>,
    pub registry: Arc<Registry>,
    pub queue: Arc<dyn Queue>,
    pub clock: Arc<dyn Clock>,
    /// What a lease lasts until its runner accepts it.
    pub accept_timeout: Duration,
}

/// A claim that joined a commit.
pub struct Match {
    /// Where its step stands.
    at: usize,
    job: Arc<Job>,
    promise: Promise,
}

/// A claim whose lease is not held yet.
struct Draft {
    claim: Step,
    promise: Promise,
}

impl Matchmaker {
    /// These steps, each new job that has found a runner followed by its claim.
    pub async fn join(&self, steps: Vec<Step>) -> (Vec<Step>, Vec<Match>) {
        let now = self.clock.now();
        let mut spare = self.spare(&steps, now);
        let mut drafts: Vec<Option<Draft>> = steps.iter().map(|step| self.draft(step, &mut spare, now)).collect();
        self.hold(&mut drafts).await;
        let mut joined = Vec::with_capacity(steps.len());
        let mut matches = Vec::new();
        for (created, draft) in steps.into_iter().zip(drafts) {
            joined.push(created);
            if let Some(Draft { claim, promise }) = draft {
                matches.push(Match { at: joined.len(), job: claim.job.clone(), promise });
                joined.push(claim);
            }
        }
        (joined, matches)
    }

    /// For each channel of ready jobs, the free slots that no job in its line will need.
    fn spare(&self, steps: &[Step], now: Timestamp) -> HashMap<Arc<str>, usize> {
        let mut ready: HashMap<&Arc<str>, usize> = HashMap::new();
        for step in steps.iter().filter(|step| is_ready(step, now)) {
            *ready.entry(&step.job.channel).or_default() += 1;
        }
        let spare = |(channel, ready): (&Arc<str>, usize)| {
            let line = self.queue.line_length(channel)?;
            let slots = self.vacancies.slots(channel, line + ready);
            Some((channel.clone(), slots.saturating_sub(line)))
        };
        ready.into_iter().filter_map(spare).collect()
    }

    fn draft(&self, created: &Step, spare: &mut HashMap<Arc<str>, usize>, now: Timestamp) -> Option<Draft> {
        let job = &created.job;
        if !is_ready(created, now) {
            return None;
        }
        let spare = spare.get_mut(&job.channel).filter(|spare| **spare > 0)?;
        *spare -= 1;
        let promise = self.vacancies.promise(&job.channel, |place| self.registry.is_heard(place, now))?;
        match step(job, Input::Claim { runner_id: promise.runner_id.clone() }, now, 0) {
            Ok(claim) => Some(Draft { claim, promise }),
            Err(_) => {
                self.vacancies.retract(&promise);
                None
            }
        }
    }

    /// Holds their leases, and drops those that could not be had: their jobs line up like others.
    async fn hold(&self, drafts: &mut [Option<Draft>]) {
        let mut leases: HashMap<Arc<str>, Vec<Lease>> = HashMap::new();
        for Draft { claim, promise } in drafts.iter().flatten() {
            leases.entry(promise.session_id.clone()).or_default().push(claim.job.lease());
        }
        if leases.is_empty() {
            return;
        }
        let held = join_all(leases.iter().map(|(holder, leases)| self.hold_for(holder, leases))).await;
        let held: HashSet<Lease> = held.into_iter().flatten().collect();
        for slot in drafts {
            if let Some(draft) = slot.take_if(|draft| !held.contains(&draft.claim.job.lease())) {
                self.vacancies.retract(&draft.promise);
            }
        }
    }

    async fn hold_for(&self, holder: &Arc<str>, leases: &[Lease]) -> Vec<Lease> {
        match timeout(HOLD_PATIENCE, self.queue.hold(leases, holder, self.accept_timeout)).await {
            Ok(held) => held.unwrap_or_default(),
            Err(_) => {
                // They may be held after all.
                self.queue.release(leases).await;
                Vec::new()
            }
        }
    }

    /// Hands over the jobs whose claims were stored; answers the outcomes of the steps that had been there before.
    pub async fn conclude(&self, matches: Vec<Match>, outcomes: Vec<Outcome>) -> Vec<Outcome> {
        let mut matches = matches.into_iter().peekable();
        let mut others = Vec::with_capacity(outcomes.len());
        for (at, outcome) in outcomes.into_iter().enumerate() {
            match matches.next_if(|matched| matched.at == at) {
                None => others.push(outcome),
                Some(Match { job, promise, .. }) if outcome == Outcome::Applied => self.vacancies.keep(&promise, job),
                Some(Match { job, promise, .. }) => self.part(&job, &promise).await,
            }
        }
        others
    }

    /// Nothing was stored, as far as anybody knows. Should it be after all, the orphan search finds these jobs.
    pub async fn give_up(&self, matches: Vec<Match>) {
        for Match { job, promise, .. } in matches {
            self.part(&job, &promise).await;
        }
    }

    async fn part(&self, job: &Job, promise: &Promise) {
        self.queue.release(&[job.lease()]).await;
        self.vacancies.retract(promise);
    }
}

/// Whether a step makes a job that may be claimed at once.
fn is_ready(step: &Step, now: Timestamp) -> bool {
    let job = &step.job;
    let is_new = step.expected.is_none() && step.hint == Hint::Offer;
    is_new && job.status == Status::Pending && !job.broadcast && job.ready_at <= now
}
