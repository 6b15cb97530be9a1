//! A simulated runner: works, crashes, stalls and comes back.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use errand::{
    clock::Dice,
    engine::{
        Attachment,
        messages::{End, FromRunner, Hello, InterruptReason, Report, ToRunner},
    },
    model::{Lease, lifecycle::Failure},
};
use tokio::time::{Instant, sleep};

use super::world::{Chance, World};

/// How often a runner looks at its work.
const TICK: Duration = Duration::from_millis(500);
/// How long it waits for a receipt before it sends a report again.
const PATIENCE: Duration = Duration::from_secs(2);

pub struct Runner {
    world: Arc<World>,
    chance: Chance,
    name: String,
    session_id: String,
    /// When each execution ends.
    working: BTreeMap<Lease, (Instant, End)>,
    /// Reports without a receipt, and when each was last sent.
    ended: BTreeMap<Lease, (End, Option<Instant>)>,
}

impl Runner {
    pub fn new(world: Arc<World>, name: String) -> Runner {
        let chance = world.chance.split();
        let (session_id, working, ended) = Default::default();
        Runner { world, chance, name, session_id, working, ended }
    }

    pub async fn run(mut self) {
        loop {
            let hello = Hello {
                runner_id: self.name.clone(),
                channels: vec!["default".to_owned()],
                capacity: 3,
                session_id: self.session_id.clone(),
                leases: self.leases(),
                ..Hello::default()
            };
            if let Ok(attachment) = self.world.door().attach(hello).await {
                let crashed = self.serve(attachment).await;
                let sent = self.ended.iter().filter(|(_, (_, at))| at.is_some()).map(|(lease, _)| *lease);
                self.world.seen().unanswered.extend(sent);
                for (_, at) in self.ended.values_mut() {
                    *at = None;
                }
                if crashed {
                    self.session_id.clear();
                    self.working.clear();
                    self.ended.clear();
                }
            }
            sleep(Duration::from_millis(50 + self.chance.dice.roll() % 1_500)).await;
        }
    }

    fn leases(&self) -> Vec<Lease> {
        self.working.keys().chain(self.ended.keys()).copied().collect()
    }

    /// Until the stream ends; true where the runner crashed.
    async fn serve(&mut self, Attachment { inbox, mut outbox }: Attachment) -> bool {
        let mut next = Instant::now();
        loop {
            tokio::select! {
                biased;
                message = outbox.recv() => match message {
                    Some(message) => {
                        if self.hear(message) {
                            let _ = inbox.try_send(FromRunner::Heartbeat(self.leases()));
                        }
                    }
                    None => return false,
                },
                () = tokio::time::sleep_until(next) => {
                    next = Instant::now() + TICK;
                    if self.chance.strikes(60) {
                        return true;
                    }
                    if self.chance.strikes(40) {
                        return false;
                    }
                    if self.chance.strikes(60) {
                        sleep(self.world.timings.lease_ttl + Duration::from_secs(2)).await;
                    }
                    let _ = inbox.try_send(FromRunner::Heartbeat(self.leases()));
                    let reports = self.reports();
                    if !reports.is_empty() {
                        let _ = inbox.try_send(FromRunner::Results(reports));
                    }
                }
            }
        }
    }

    /// True where there is something to accept.
    fn hear(&mut self, message: ToRunner) -> bool {
        match message {
            ToRunner::Welcome(welcome) => {
                self.session_id = welcome.session_id;
                for lease in welcome.lost {
                    self.working.remove(&lease);
                }
            }
            ToRunner::Assignments(jobs) => {
                for job in jobs {
                    self.world.seen().assigned.entry(job.lease()).or_default().push(self.session_id.clone());
                    // As if it were lost on the way.
                    if !self.chance.strikes(20) {
                        let until = Instant::now() + Duration::from_millis(self.chance.dice.roll() % 6_000);
                        self.working.insert(job.lease(), (until, self.end()));
                    }
                }
                return true;
            }
            ToRunner::ResultsAccepted(receipts) => {
                for receipt in receipts {
                    if let Some((end, _)) = self.ended.remove(&receipt.lease)
                        && receipt.accepted
                    {
                        let completed = matches!(end, End::Completed(_));
                        self.world.seen().accepted.entry(receipt.lease).or_default().push(completed);
                    }
                }
            }
            ToRunner::Interrupt { lease, reason } => {
                if let Some((until, end)) = self.working.get_mut(&lease) {
                    *until = Instant::now();
                    *end = End::Canceled;
                    if reason != InterruptReason::Requested {
                        self.working.remove(&lease);
                    }
                }
            }
            ToRunner::Command(_) | ToRunner::GoAway { .. } => {}
        }
        false
    }

    fn end(&self) -> End {
        match self.chance.dice.roll() % 20 {
            0..=13 => End::Completed("1".to_owned()),
            14..=17 => End::Failed(Failure { error: "by the dice".to_owned(), ..Failure::default() }),
            18 => End::Failed(Failure { permanent: true, ..Failure::default() }),
            _ => End::Released,
        }
    }

    /// Reports that are due, first or again.
    fn reports(&mut self) -> Vec<Report> {
        let now = Instant::now();
        while let Some(lease) = self.working.iter().find(|(_, (until, _))| *until <= now).map(|(lease, _)| *lease) {
            if let Some((_, end)) = self.working.remove(&lease) {
                self.ended.insert(lease, (end, None));
            }
        }
        let mut reports = Vec::new();
        for (lease, (end, sent)) in &mut self.ended {
            if sent.is_none_or(|at| at + PATIENCE <= now) {
                *sent = Some(now);
                reports.push(Report { lease: *lease, end: end.clone(), metadata: None });
            }
        }
        reports
    }
}
