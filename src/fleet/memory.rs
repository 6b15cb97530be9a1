//! The fleet of one process. Several nodes may live in it: each has its own handle on what they share.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::mpsc, time::Instant};

use super::{
    Admission, Arrival, Beat, Fleet, Letter, NODE_SILENT_AFTER, NodeReport, REMEMBER, Removals, Stream, Unreachable,
    inbox::Inbox,
};
use crate::model::runner::Presence;

/// What the nodes of one process share.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Mutex<Shared>>,
    silent_after: Duration,
}

struct Shared {
    runners: BTreeMap<Arc<str>, Runner>,
    nodes: HashMap<Arc<str>, Node>,
    leader: Option<(Arc<str>, Instant)>,
}

struct Runner {
    presence: Presence,
    session_id: Arc<str>,
    stream: u64,
    attached: bool,
    heard: Instant,
}

struct Node {
    report: NodeReport,
    heard: Instant,
    letters: mpsc::Sender<Letter>,
}

/// One node's handle.
pub struct MemoryFleet {
    hub: Hub,
    node_id: Arc<str>,
    inbox: Inbox,
}

impl Hub {
    /// `silent_after`: a runner that was not heard of for longer is not alive.
    pub fn new(silent_after: Duration) -> Hub {
        let shared = Shared { runners: BTreeMap::new(), nodes: HashMap::new(), leader: None };
        Hub { shared: Arc::new(Mutex::new(shared)), silent_after }
    }

    /// A node joins, in place of an earlier one of the same id.
    pub fn join(&self, node_id: Arc<str>) -> MemoryFleet {
        let (letters, inbox) = Inbox::new();
        let report = NodeReport {
            node_id: node_id.clone(),
            watches: false,
            channels: Vec::new(),
            removals: Removals::default(),
        };
        let node = Node { report, heard: Instant::now(), letters };
        self.lock().nodes.insert(node_id.clone(), node);
        MemoryFleet { hub: self.clone(), node_id, inbox }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn is_there(&self, node_id: &str) -> bool {
        self.nodes.get(node_id).is_some_and(|node| node.heard.elapsed() <= NODE_SILENT_AFTER)
    }

    fn lives(&self, runner: &Runner, silent_after: Duration) -> bool {
        runner.attached && runner.heard.elapsed() <= silent_after && self.is_there(&runner.presence.node_id)
    }

    fn presence(&self, runner: &Runner, silent_after: Duration) -> Presence {
        let alive = self.lives(runner, silent_after);
        // Nobody runs anything over a stream that has closed.
        let running = if runner.attached { runner.presence.running } else { 0 };
        Presence { alive, running, ..runner.presence.clone() }
    }
}

impl Runner {
    fn of(beat: Beat, attached: bool) -> Runner {
        let Beat { presence, session_id, stream, heard_ago } = beat;
        let heard = Instant::now().checked_sub(heard_ago).unwrap_or_else(Instant::now);
        Runner { presence, session_id, stream, attached, heard }
    }

    fn stream(&self) -> Stream {
        Stream { node_id: self.presence.node_id.clone(), stream: self.stream, attached: self.attached }
    }
}

#[async_trait]
impl Fleet for MemoryFleet {
    async fn admit(&self, arrival: Arrival) -> Admission {
        let Arrival { mut presence, session_id, resumes, stream } = arrival;
        let mut shared = self.hub.lock();
        let mut admission = Admission::Fresh;
        if let Some(old) = shared.runners.get(&presence.runner_id) {
            let earlier = old.stream();
            if resumes && old.session_id == session_id {
                presence.jobs_processed = old.presence.jobs_processed;
                presence.jobs_failed = old.presence.jobs_failed;
                presence.started = old.presence.started;
                admission = Admission::Resumed {
                    earlier,
                    jobs_processed: presence.jobs_processed,
                    jobs_failed: presence.jobs_failed,
                    started: presence.started,
                };
            } else if shared.lives(old, self.hub.silent_after) {
                return Admission::Taken;
            } else {
                admission = Admission::Replaced { earlier, session_id: old.session_id.clone() };
            }
        }
        let beat = Beat { presence, session_id, stream, heard_ago: Duration::ZERO };
        shared.runners.insert(beat.presence.runner_id.clone(), Runner::of(beat, true));
        admission
    }

    async fn announce(&self, report: Option<NodeReport>, beats: Vec<Beat>) {
        let mut shared = self.hub.lock();
        if let Some(report) = report
            && let Some(node) = shared.nodes.get_mut(&self.node_id)
        {
            node.heard = Instant::now();
            node.report = report;
        }
        for beat in beats {
            let known = shared.runners.get(&beat.presence.runner_id);
            if known.is_none_or(|known| known.stream == beat.stream && known.attached) {
                shared.runners.insert(beat.presence.runner_id.clone(), Runner::of(beat, true));
            }
        }
    }

    async fn depart(&self, last: Beat) -> bool {
        let mut shared = self.hub.lock();
        let known = shared.runners.get(&last.presence.runner_id);
        let own = known.is_none_or(|known| known.stream == last.stream);
        if own {
            shared.runners.insert(last.presence.runner_id.clone(), Runner::of(last, false));
        }
        own
    }

    async fn roster(&self) -> Vec<Presence> {
        let mut shared = self.hub.lock();
        shared.runners.retain(|_, runner| runner.heard.elapsed() < REMEMBER);
        let presence = |runner: &Runner| shared.presence(runner, self.hub.silent_after);
        shared.runners.values().map(presence).collect()
    }

    async fn find(&self, runner_id: &str) -> Result<Option<Presence>, Unreachable> {
        let shared = self.hub.lock();
        Ok(shared.runners.get(runner_id).map(|runner| shared.presence(runner, self.hub.silent_after)))
    }

    async fn nodes(&self) -> Vec<NodeReport> {
        let shared = self.hub.lock();
        let there = shared.nodes.values().filter(|node| shared.is_there(&node.report.node_id));
        let mut reports: Vec<NodeReport> = there.map(|node| node.report.clone()).collect();
        reports.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        reports
    }

    async fn send(&self, node_id: &str, letters: Vec<Letter>) -> bool {
        let shared = self.hub.lock();
        let Some(node) = shared.nodes.get(node_id) else { return false };
        shared.is_there(node_id) && letters.into_iter().all(|letter| node.letters.try_send(letter).is_ok())
    }

    async fn receive(&self) -> Vec<Letter> {
        self.inbox.receive().await
    }

    async fn lead(&self, ttl: Duration) -> bool {
        let mut shared = self.hub.lock();
        let taken = shared.leader.as_ref().is_some_and(|(id, until)| *id != self.node_id && *until > Instant::now());
        if !taken {
            shared.leader = Some((self.node_id.clone(), Instant::now() + ttl));
        }
        !taken
    }

    async fn leader(&self) -> Option<Arc<str>> {
        let shared = self.hub.lock();
        shared.leader.as_ref().filter(|(_, until)| *until > Instant::now()).map(|(id, _)| id.clone())
    }

    async fn leave(&self) {
        let mut shared = self.hub.lock();
        shared.nodes.remove(&self.node_id);
        if shared.leader.as_ref().is_some_and(|(id, _)| *id == self.node_id) {
            shared.leader = None;
        }
    }
}
