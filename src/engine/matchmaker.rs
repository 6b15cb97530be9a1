//! Joins claims to a commit: new jobs that nobody waits in front of go straight to runners that wait for them.

use std::{sync::Arc, time::Duration};

use super::{
    registry::Registry,
    vacancies::{Promise, Vacancies},
};
use crate::{
    clock::Clock,
    model::{Hint, Input, Job, Status, Step, Timestamp, step},
    queue::Queue,
    store::Outcome,
};

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

impl Matchmaker {
    /// These steps, each new job that has found a runner followed by its claim.
    pub async fn join(&self, steps: Vec<Step>) -> (Vec<Step>, Vec<Match>) {
        let now = self.clock.now();
        let mut joined = Vec::with_capacity(steps.len());
        let mut matches = Vec::new();
        for created in steps {
            let claim = if is_ready(&created, now) { self.claim(&created.job, now).await } else { None };
            joined.push(created);
            if let Some((claim, promise)) = claim {
                matches.push(Match { at: joined.len(), job: claim.job.clone(), promise });
                joined.push(claim);
            }
        }
        (joined, matches)
    }

    async fn claim(&self, job: &Job, now: Timestamp) -> Option<(Step, Promise)> {
        if self.queue.has_line(&job.channel) {
            return None;
        }
        let promise = self.vacancies.promise(&job.channel, |place| self.registry.is_heard(place, now))?;
        let claimed = step(job, Input::Claim { runner_id: promise.runner_id.clone() }, now, 0).ok();
        if let Some(claim) = claimed {
            let lease = claim.job.lease();
            let held = self.queue.hold(&[lease], &promise.session_id, self.accept_timeout).await;
            if held.is_ok_and(|held| held == [lease]) {
                return Some((claim, promise));
            }
        }
        self.vacancies.retract(&promise);
        None
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
