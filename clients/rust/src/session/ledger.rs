//! What a runner holds and owes: leases, results without a receipt, and what is to be said next.
//!
//! Pure bookkeeping. No clock, no tasks, no sockets: the session performs what the ledger decides.
//! A lease is held from its assignment until the receipt of its result, and every regular heartbeat names exactly
//! the held ones; an execution whose lease is lost is stopped, and its result goes nowhere.
//!
//! New assignments are accepted at once, by a heartbeat that names only them. It must not name the others: a lease
//! whose receipt is on its way would be answered as lost, one message for each, and a busy runner always has some.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    mem,
    sync::Arc,
};

use errand_proto::v1::{
    CommandReply, Heartbeat, Lease, Progress, Released, Result as JobResult, ResultReceipt, Results, SetCapacity,
    attach_request::Message, result,
};

/// Results in one message.
const BATCH_MAX: usize = 128;
/// Bytes of results in one message: below the 4 MiB that gRPC takes by default, with one large result to spare.
const BATCH_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Progress kept while there is no connection; at most 32 KiB each.
const PROGRESS_MAX: usize = 128;
/// Replies kept for a service that stopped reading.
const REPLIES_MAX: usize = 64;
/// Accepted attempts remembered, so that a repeated assignment is recognised.
const SPENT_MAX: usize = 4096;

/// Names one attempt of one job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseKey {
    pub job_id: Arc<str>,
    pub attempt: u32,
}

impl From<&Lease> for LeaseKey {
    fn from(lease: &Lease) -> Self {
        Self { job_id: lease.job_id.as_str().into(), attempt: lease.attempt }
    }
}

impl From<&LeaseKey> for Lease {
    fn from(key: &LeaseKey) -> Self {
        Self { job_id: key.job_id.as_ref().into(), attempt: key.attempt }
    }
}

/// What to do with an assignment.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    Start,
    /// Held or done already: run nothing.
    Duplicate,
    /// No room: it is handed back.
    Released,
}

#[derive(Debug, PartialEq, Eq)]
enum Execution {
    Running,
    /// The runner leaves: whatever ends without a result is handed back.
    Releasing,
    /// The lease is gone: stopping, and nobody wants the result.
    Lost,
}

/// One thing to say, in order: an execution's logs go before its result.
#[derive(Debug)]
enum Item {
    Progress(Progress),
    Result(LeaseKey),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    executions: BTreeMap<LeaseKey, Execution>,
    unreceipted: BTreeMap<LeaseKey, JobResult>,
    spent: HashSet<LeaseKey>,
    spent_order: VecDeque<LeaseKey>,
    outbox: VecDeque<Item>,
    progress_queued: usize,
    replies: VecDeque<CommandReply>,
    heartbeat_due: bool,
    /// Assigned since the last heartbeat.
    to_accept: Vec<LeaseKey>,
    /// What the service was told last.
    announced: u32,
    /// What it should know.
    capacity: u32,
}

impl Ledger {
    pub fn new(capacity: u32) -> Self {
        Self { capacity, announced: capacity, ..Self::default() }
    }

    /// Every lease held: running, or ended without a receipt so far.
    pub fn leases(&self) -> Vec<Lease> {
        let running = self.executions.iter().filter(|(_, execution)| **execution != Execution::Lost);
        running.map(|(key, _)| key).chain(self.unreceipted.keys()).map(Lease::from).collect()
    }

    /// Executions that hold a lease.
    pub fn running(&self) -> usize {
        self.executions.values().filter(|execution| **execution != Execution::Lost).count()
    }

    pub fn owed(&self) -> usize {
        self.unreceipted.len()
    }

    /// True once nothing runs and nothing is left to say.
    pub fn is_settled(&self) -> bool {
        self.executions.is_empty() && self.unreceipted.is_empty() && self.replies.is_empty()
    }

    pub fn set_capacity(&mut self, capacity: u32) {
        self.capacity = capacity;
    }

    /// The capacity as it stands, for Hello to tell.
    pub fn announce(&mut self) -> u32 {
        self.announced = self.capacity;
        self.capacity
    }

    pub fn heartbeat_due(&mut self) {
        self.heartbeat_due = true;
    }

    /// A stream is up. Returns the executions to kill.
    pub fn welcomed(&mut self, lost: &[Lease]) -> Vec<LeaseKey> {
        self.heartbeat_due = true;
        let killed = lost.iter().map(LeaseKey::from).filter(|key| self.lose(key)).collect();
        // Whatever was said on the stream before may not have been heard.
        self.outbox.retain(|item| matches!(item, Item::Progress(_)));
        self.outbox.extend(self.unreceipted.keys().cloned().map(Item::Result));
        killed
    }

    /// Takes an assignment, or says why not.
    pub fn assign(&mut self, lease: &Lease) -> Decision {
        let key = LeaseKey::from(lease);
        if self.unreceipted.contains_key(&key) {
            // Still owed: say it again rather than run it again.
            self.outbox.push_back(Item::Result(key));
            return Decision::Duplicate;
        }
        if self.spent.contains(&key) {
            return Decision::Duplicate;
        }
        match self.executions.get(&key) {
            // Its first execution is still dying, so it cannot start here.
            Some(Execution::Lost) => {}
            Some(_) => return Decision::Duplicate,
            None if self.running() < self.capacity as usize => {
                self.executions.insert(key.clone(), Execution::Running);
                self.to_accept.push(key);
                return Decision::Start;
            }
            None => {}
        }
        self.owe(key, result::Outcome::Released(Released {}), None);
        Decision::Released
    }

    /// An execution ended, and left this metadata.
    pub fn finished(&mut self, key: LeaseKey, outcome: result::Outcome, metadata_json: Option<String>) {
        let outcome = match (self.executions.remove(&key), outcome) {
            (None | Some(Execution::Lost), _) => return,
            (Some(Execution::Releasing), completed @ result::Outcome::Completed(_)) => completed,
            (Some(Execution::Releasing), _) => result::Outcome::Released(Released {}),
            (Some(Execution::Running), outcome) => outcome,
        };
        self.owe(key, outcome, metadata_json);
    }

    fn owe(&mut self, key: LeaseKey, outcome: result::Outcome, metadata_json: Option<String>) {
        let result = JobResult { lease: Some((&key).into()), outcome: Some(outcome), metadata_json };
        self.unreceipted.insert(key.clone(), result);
        self.outbox.push_back(Item::Result(key));
    }

    /// The service has these results.
    pub fn receipted(&mut self, receipts: &[ResultReceipt]) {
        for receipt in receipts {
            let Some(key) = receipt.lease.as_ref().map(LeaseKey::from) else {
                continue;
            };
            let Some(result) = self.unreceipted.remove(&key) else {
                continue;
            };
            // A released attempt may come again under the same number; a discarded one might.
            if receipt.accepted && !matches!(result.outcome, Some(result::Outcome::Released(_))) {
                self.spend(key);
            }
        }
    }

    fn spend(&mut self, key: LeaseKey) {
        if self.spent_order.len() >= SPENT_MAX
            && let Some(oldest) = self.spent_order.pop_front()
        {
            self.spent.remove(&oldest);
        }
        if self.spent.insert(key.clone()) {
            self.spent_order.push_back(key);
        }
    }

    /// The lease is gone. True where an execution has to be stopped.
    pub fn lose(&mut self, key: &LeaseKey) -> bool {
        self.unreceipted.remove(key);
        match self.executions.get_mut(key) {
            Some(execution) => {
                *execution = Execution::Lost;
                true
            }
            None => false,
        }
    }

    /// The runner leaves at once: everything that runs is handed back. Returns the executions to kill.
    pub fn release_all(&mut self) -> Vec<LeaseKey> {
        for execution in self.executions.values_mut().filter(|execution| **execution == Execution::Running) {
            *execution = Execution::Releasing;
        }
        self.executions.keys().cloned().collect()
    }

    /// True while progress is taken; executions hold or drop it otherwise.
    pub fn takes_progress(&self) -> bool {
        self.progress_queued < PROGRESS_MAX
    }

    pub fn progressed(&mut self, progress: Progress) {
        self.progress_queued += 1;
        self.outbox.push_back(Item::Progress(progress));
    }

    pub fn replied(&mut self, reply: CommandReply) {
        if self.replies.len() < REPLIES_MAX {
            self.replies.push_back(reply);
        }
    }

    pub fn has_outgoing(&self) -> bool {
        self.heartbeat_due
            || !self.to_accept.is_empty()
            || self.announced != self.capacity
            || !self.replies.is_empty()
            || !self.outbox.is_empty()
    }

    /// The next message to send, most urgent first.
    pub fn next_outgoing(&mut self) -> Option<Message> {
        if self.heartbeat_due {
            self.heartbeat_due = false;
            self.to_accept.clear();
            return Some(Message::Heartbeat(Heartbeat { leases: self.leases() }));
        }
        let accepted = mem::take(&mut self.to_accept);
        let leases: Vec<_> = accepted.iter().filter(|key| self.runs(key)).map(Lease::from).collect();
        if !leases.is_empty() {
            return Some(Message::Heartbeat(Heartbeat { leases }));
        }
        if self.announced != self.capacity {
            self.announced = self.capacity;
            return Some(Message::SetCapacity(SetCapacity { capacity: self.capacity }));
        }
        if let Some(reply) = self.replies.pop_front() {
            return Some(Message::CommandReply(reply));
        }
        while let Some(item) = self.outbox.pop_front() {
            match item {
                Item::Progress(progress) => {
                    self.progress_queued -= 1;
                    if self.holds(progress.lease.as_ref()) {
                        return Some(Message::Progress(progress));
                    }
                }
                Item::Result(key) => {
                    let results = self.batch(key);
                    if !results.is_empty() {
                        return Some(Message::Results(Results { results }));
                    }
                }
            }
        }
        None
    }

    /// The result of `first` and those that follow it directly.
    fn batch(&mut self, first: LeaseKey) -> Vec<JobResult> {
        let mut results: Vec<_> = self.unreceipted.get(&first).cloned().into_iter().collect();
        let mut bytes: usize = results.iter().map(size).sum();
        while results.len() < BATCH_MAX && bytes < BATCH_BYTES_MAX {
            let Some(Item::Result(key)) = self.outbox.front() else {
                break;
            };
            if let Some(result) = self.unreceipted.get(key) {
                bytes += size(result);
                results.push(result.clone());
            }
            self.outbox.pop_front();
        }
        results
    }

    fn holds(&self, lease: Option<&Lease>) -> bool {
        let Some(key) = lease.map(LeaseKey::from) else {
            return false;
        };
        self.unreceipted.contains_key(&key) || self.runs(&key)
    }

    /// True for an execution that holds a lease.
    fn runs(&self, key: &LeaseKey) -> bool {
        self.executions.get(key).is_some_and(|execution| *execution != Execution::Lost)
    }
}

/// About what a result takes on the wire.
fn size(result: &JobResult) -> usize {
    let outcome = match &result.outcome {
        Some(result::Outcome::Completed(completed)) => completed.result_json.len(),
        Some(result::Outcome::Failed(failed)) => failed.error.len() + failed.stack_trace.len(),
        _ => 0,
    };
    64 + outcome + result.metadata_json.as_ref().map_or(0, String::len)
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
