//! Takes in what other programs published in transactions of their own, as jobs like any others.
//!
//! An arrival becomes a job through the one door for jobs: `model::create` and the committer. Whatever follows from a publish
//! over the API (events, keys, counts, hints, watchers, a claim in the same commit) follows from it as well. Any node may take
//! in any arrival, and the store sees to it that one does. The leading node goes first, so that not all of them do the same
//! work; what a leader leaves, because it died or because nobody leads, the others find a moment later.
//!
//! Times that the publisher gave as spans count from when the arrival is taken in, that is, from the commit: before it there
//! was no job. Where an expiry has passed by then, the job is made as of its publication, and expires at once.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{EngineError, Shared, outage::Outage};
use crate::{
    model::{Step, create, lifecycle::create_refused},
    store::{Arrival, ArrivalPage, Bell, Outcome},
};

/// What is taken in at once.
const PAGE: ArrivalPage = ArrivalPage { arrivals_max: 256, bytes_max: 4 << 20 };
/// How much later than the leading node the others look.
const AFTER_LEADER: Duration = Duration::from_millis(40);
/// How often a node looks though the bell has not rung: seldom, for an idle node should ask for next to nothing.
const LOOK: Duration = Duration::from_secs(5);
/// How often the leading node looks where the bell cannot be relied on, in between arrivals and while there are some.
const LOOK_DEAF: Duration = Duration::from_millis(250);
const LOOK_DEAF_BUSY: Duration = Duration::from_millis(50);
/// For how long after an arrival more of them are expected soon.
const BUSY_FOR: Duration = Duration::from_secs(10);
/// How often the others do.
const LOOK_DEAF_FOLLOWING: Duration = Duration::from_secs(1);
/// How long it waits after an error.
const AFTER_ERROR: Duration = Duration::from_millis(500);

/// Takes arrivals in until the loops must stop; ends at once on a store that never has one.
pub async fn run(shared: Arc<Shared>) {
    let Some(bell) = shared.store.bell() else { return };
    // Cancel-safe: whatever a turn had not stored is still an arrival.
    shared.stopped().run_until_cancelled(turns(&shared, &bell)).await;
}

async fn turns(shared: &Shared, bell: &Bell) {
    let mut outage = Outage::of("arrivals");
    let mut last_arrival: Option<Instant> = None;
    loop {
        let patience = match shared.take_in_all().await {
            Ok(taken_in) => {
                outage.succeeded();
                if taken_in > 0 {
                    last_arrival = Some(Instant::now());
                }
                let is_busy = last_arrival.is_some_and(|at| at.elapsed() < BUSY_FOR);
                patience(bell.is_reliable(), shared.membership.leads(), is_busy)
            }
            Err(EngineError::Draining) => return,
            Err(error) => {
                outage.failed(&error);
                AFTER_ERROR
            }
        };
        if bell.rung_within(patience).await && !shared.membership.leads() {
            tokio::time::sleep(AFTER_LEADER).await;
        }
    }
}

/// How long to wait for the bell before looking all the same.
fn patience(is_reliable: bool, leads: bool, is_busy: bool) -> Duration {
    match (is_reliable, leads, is_busy) {
        (true, _, _) => LOOK,
        (false, true, true) => LOOK_DEAF_BUSY,
        (false, true, false) => LOOK_DEAF,
        (false, false, _) => LOOK_DEAF_FOLLOWING,
    }
}

impl Shared {
    /// Takes in what there is, a page at a time; tells how many jobs that made. Ends, too, where a page makes none: all of it is
    /// in the hands of other nodes.
    async fn take_in_all(&self) -> Result<usize, EngineError> {
        let mut taken_in = 0;
        loop {
            let arrivals = self.store.arrivals(PAGE).await?;
            let made = self.take_in(&arrivals).await?;
            taken_in += made;
            if made == 0 || !PAGE.is_full(&arrivals) {
                return Ok(taken_in);
            }
        }
    }

    async fn take_in(&self, arrivals: &[Arrival]) -> Result<usize, EngineError> {
        let mut made = 0;
        let (mut fine, mut steps) = (Vec::new(), Vec::new());
        for arrival in arrivals {
            match self.arrived(arrival) {
                Ok(step) => {
                    fine.push(arrival);
                    steps.push(step);
                }
                Err(why) => made += self.refuse(arrival, why).await?,
            }
        }
        let outcomes = self.committer.apply_each(steps).await?;
        for (arrival, outcome) in fine.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Applied => made += 1,
                // Another node has it, or had it.
                Outcome::Stale => {}
                Outcome::Duplicate(earlier) if earlier == arrival.id => {}
                // Somebody else used the key between the look of `errand.publish` and the commit of its transaction.
                Outcome::Duplicate(earlier) => {
                    let key = arrival.spec.idempotency_key.as_deref().unwrap_or_default();
                    let why = format!("Idempotency key \"{key}\" was used at the same time for job {earlier}");
                    made += self.refuse(arrival, why).await?;
                }
            }
        }
        Ok(made)
    }

    /// The step that makes a job of it, or why none can be made.
    fn arrived(&self, arrival: &Arrival) -> Result<Step, String> {
        let spec = arrival.spec.clone().check(self.settings.limits.payload_max_bytes);
        let spec = spec.map_err(|invalid| invalid.to_string())?;
        let made_at = |now| create(arrival.id, spec.clone(), arrival.owner.clone(), now);
        let step = made_at(self.now()).or_else(|_| made_at(arrival.made)).map_err(|invalid| invalid.to_string())?;
        Ok(Step { arrives: true, ..step })
    }

    /// Makes a job that has failed, so that whoever published it, and whoever looks after the service, can see why.
    async fn refuse(&self, arrival: &Arrival, why: String) -> Result<usize, EngineError> {
        let (spec, owner) = (arrival.spec.clone(), arrival.owner.clone());
        let [made, ended] = create_refused(arrival.id, spec, owner, self.now(), why.clone());
        let outcomes = self.committer.apply_all(vec![Step { arrives: true, ..made }, ended]).await?;
        if outcomes.iter().any(|outcome| *outcome != Outcome::Applied) {
            return Ok(0);
        }
        tracing::warn!(job = %arrival.id, owner = &*arrival.owner, why, "a job that SQL published was refused, and has failed");
        Ok(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_leads_looks_often_and_only_where_it_hears_nothing() {
        assert_eq!(patience(true, false, true), patience(true, true, true));
        assert!(patience(false, false, true) > patience(false, true, true));
        assert!(patience(true, true, false) > patience(false, true, false));
        assert!(patience(false, true, false) > patience(false, true, true));
    }
}
