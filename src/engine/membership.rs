//! This node's place in the fleet: it says how its runners are, reads its letters, and leads where nobody else does.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::Shared;
use crate::{
    fleet::{Fleet, Letter, NodeReport},
    model::{JobEvent, JobId},
};

/// How often the fleet hears of this node, whatever happens, and at least so often before a runner counts as silent: what
/// the fleet knows of a heartbeat is this much older than the heartbeat.
const INTERVAL: Duration = Duration::from_secs(1);
const TIMES_BEFORE_SILENCE: u32 = 4;
/// How soon it hears of a change, so that many changes make one message.
const SOON: Duration = Duration::from_millis(50);
/// How often it hears of every runner, changed or not: it may have lost what it knew.
const EVERYTHING: Duration = Duration::from_secs(5);
/// For how long a node leads without asking anew.
const LEAD_TTL: Duration = Duration::from_secs(3);
/// Events in one letter.
const EVENTS_MAX: usize = 256;

/// What this node knows of the others.
#[derive(Default)]
pub struct Membership {
    leads: watch::Sender<bool>,
    /// Other nodes on which somebody follows events.
    watching: RwLock<Vec<Arc<str>>>,
}

impl Membership {
    /// Whether this node does what one node must do for all.
    pub fn leads(&self) -> bool {
        *self.leads.borrow()
    }

    /// Tells of each time that this node begins or ceases to lead.
    pub fn leadership(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    fn set_leads(&self, leads: bool) {
        self.leads.send_if_modified(|led| std::mem::replace(led, leads) != leads);
    }

    /// The other nodes that should hear of events.
    pub fn watching(&self) -> Vec<Arc<str>> {
        self.watching.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_watching(&self, nodes: Vec<Arc<str>>) {
        *self.watching.write().unwrap_or_else(PoisonError::into_inner) = nodes;
    }

    fn add_watching(&self, node_id: Arc<str>) {
        let mut watching = self.watching.write().unwrap_or_else(PoisonError::into_inner);
        if !watching.contains(&node_id) {
            watching.push(node_id);
        }
    }
}

/// Tells the fleet of this node until the loops must stop.
pub async fn run(shared: Arc<Shared>) {
    let stopped = shared.stopped();
    let interval = INTERVAL.min(shared.settings.timings.silent_after() / TIMES_BEFORE_SILENCE);
    let mut told_all: Option<Instant> = None;
    let mut next = Instant::now();
    loop {
        let all = told_all.is_none_or(|at| at.elapsed() >= EVERYTHING);
        if all {
            told_all = Some(Instant::now());
        }
        let is_time = Instant::now() >= next;
        announce(&shared, is_time, all).await;
        if is_time {
            next = Instant::now() + interval;
            shared.membership.set_leads(shared.fleet.lead(LEAD_TTL).await);
        }
        if all {
            let others = shared.fleet.nodes().await.into_iter().filter(|node| node.node_id != shared.settings.node_id);
            shared.membership.set_watching(others.filter(|node| node.watches).map(|node| node.node_id).collect());
        }
        // Both branches only wait: dropping one loses nothing.
        let stop = async {
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = shared.registry.stirred() => tokio::time::sleep(SOON).await,
            }
        };
        tokio::select! {
            () = stop => {}
            () = stopped.cancelled() => break,
        }
    }
    shared.fleet.leave().await;
}

/// A report sums up every channel, so it goes out at intervals only, and not with each change of a runner.
async fn announce(shared: &Shared, reports: bool, all: bool) {
    let now = shared.now();
    let report = reports.then(|| NodeReport {
        node_id: shared.settings.node_id.clone(),
        watches: shared.events.receiver_count() > 0,
        channels: shared.metrics.reports(now),
        removals: shared.removals.report(),
    });
    shared.fleet.announce(report, shared.registry.beats(all, now)).await;
}

/// Reads the letters of other nodes until the loops must stop.
pub async fn read(shared: Arc<Shared>) {
    let stopped = shared.stopped();
    loop {
        let letters = tokio::select! {
            letters = shared.fleet.receive() => letters,
            () = stopped.cancelled() => return,
        };
        for letter in letters {
            match letter {
                Letter::Order { runner_id, order } => {
                    // Its session may have left meanwhile; whoever sent this does not rely on it.
                    let _ = shared.registry.order_here(&runner_id, &order);
                }
                Letter::Reply { command_id, reply } => shared.registry.replied(&command_id, reply),
                Letter::Watching { node_id } => shared.membership.add_watching(node_id),
                Letter::Events(events) => shared.hear_events(events).await,
            }
        }
    }
}

/// Sends events that were stored here to the nodes on which somebody follows them.
pub async fn send_events(fleet: &dyn Fleet, nodes: &[Arc<str>], events: &[JobEvent]) {
    for node in nodes {
        for page in events.chunks(EVENTS_MAX) {
            fleet.send(node, vec![Letter::Events(page.to_vec())]).await;
        }
    }
}

impl Shared {
    /// Somebody begins to follow events here: the other nodes send theirs from now on.
    pub(super) async fn ask_for_events(&self) {
        let own = &self.settings.node_id;
        for node in self.fleet.nodes().await.into_iter().filter(|node| node.node_id != *own) {
            self.fleet.send(&node.node_id, vec![Letter::Watching { node_id: own.clone() }]).await;
        }
    }

    async fn hear_events(&self, events: Vec<JobEvent>) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let ids: Vec<JobId> = events.iter().map(|event| event.job_id).collect();
        let Ok(jobs) = self.store.load(&ids).await else { return };
        for (event, job) in events.into_iter().zip(jobs) {
            if let Some(job) = job {
                // Whoever followed may have left.
                let _ = self.events.send((event, Arc::new(job)));
            }
        }
    }
}
