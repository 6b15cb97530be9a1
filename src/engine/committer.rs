//! Group commit behind a plain `.await`.
//!
//! Callers hand in steps; one loop takes what is waiting, stores it in one transaction, gives the hints and answers.
//! There is no timer: idle adds nothing, and load makes batches by itself.
//!
//! Steps of jobs that are there go before new jobs. Under more load than can be borne it is publishers who wait, and not the
//! runners who would make room for them; and a job that ends soon costs less than one that has been lined up for long.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{EngineError, matchmaker::Matchmaker, outage::Outage};
use crate::{
    model::Step,
    store::{Outcome, Store, StoreError},
};

/// The most steps in one transaction: larger groups raise the latency and not the rate.
const GROUP_MAX: usize = 1_024;
/// What of that is left to new jobs, however much else is waiting.
const GROUP_OF_NEW: usize = 256;

/// What hears of stored steps, before their writers do.
pub type Heard = Box<dyn Fn(Vec<Step>) -> futures::future::BoxFuture<'static, ()> + Send + Sync>;

#[derive(Clone)]
pub struct Committer {
    moves: mpsc::Sender<Write>,
    creations: mpsc::Sender<Write>,
}

/// What is waiting.
struct Inbox {
    moves: mpsc::Receiver<Write>,
    /// Of new jobs, parts and retries among them.
    creations: mpsc::Receiver<Write>,
}

struct Write {
    steps: Vec<Step>,
    atomicity: Atomicity,
    done: oneshot::Sender<Result<Vec<Outcome>, StoreError>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Atomicity {
    /// Each step for itself.
    Each,
    /// All of them, or none.
    All,
}

impl Committer {
    /// The handle, and the loop behind it. Once `stopped`, it takes no more, stores what is waiting, and ends.
    pub fn new(
        store: Arc<dyn Store>,
        pending_max: usize,
        matchmaker: Matchmaker,
        heard: Heard,
        stopped: CancellationToken,
    ) -> (Committer, impl Future<Output = ()> + Send + 'static) {
        let (moves, waiting_moves) = mpsc::channel(pending_max);
        let (creations, waiting_creations) = mpsc::channel(pending_max);
        let inbox = Inbox { moves: waiting_moves, creations: waiting_creations };
        (Committer { moves, creations }, run(store, inbox, matchmaker, heard, stopped))
    }

    /// Stores one step.
    ///
    /// Busy: too many writes are waiting. Unavailable: the store did not take it, or may have and did not say so.
    pub async fn apply(&self, step: Step) -> Result<Outcome, EngineError> {
        let outcomes = self.apply_each(vec![step]).await?;
        Ok(outcomes.first().copied().unwrap_or(Outcome::Stale))
    }

    /// Stores steps, each for itself; answers in order.
    pub async fn apply_each(&self, steps: Vec<Step>) -> Result<Vec<Outcome>, EngineError> {
        self.write(steps, Atomicity::Each).await
    }

    /// Stores all of the steps or none; answers tell which ones stood in the way.
    pub async fn apply_all(&self, steps: Vec<Step>) -> Result<Vec<Outcome>, EngineError> {
        self.write(steps, Atomicity::All).await
    }

    async fn write(&self, steps: Vec<Step>, atomicity: Atomicity) -> Result<Vec<Outcome>, EngineError> {
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        let (done, answer) = oneshot::channel();
        let is_creation = steps.iter().any(|step| step.expected.is_none());
        let writes = if is_creation { &self.creations } else { &self.moves };
        match writes.try_send(Write { steps, atomicity, done }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                return Err(EngineError::Busy("too many writes are waiting; try again"));
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(EngineError::Draining),
        }
        Ok(answer.await.map_err(|_| EngineError::Draining)??)
    }
}

impl Inbox {
    /// The next write; `None` once no more is to come. Once `stopped`, no more is taken in.
    async fn next(&mut self, stopped: &CancellationToken) -> Option<Write> {
        loop {
            tokio::select! {
                biased;
                Some(write) = self.moves.recv() => return Some(write),
                Some(write) = self.creations.recv() => return Some(write),
                () = stopped.cancelled(), if !self.moves.is_closed() => {
                    self.moves.close();
                    self.creations.close();
                }
                else => return None,
            }
        }
    }

    /// What waits behind `first` and fits into one transaction with it. A write that must be stored as a whole or not at all
    /// is stored by itself; the one that was met is the second answer.
    fn gather(&mut self, first: Write) -> (Vec<Write>, Option<Write>) {
        let mut size = first.steps.len();
        let mut group = vec![first];
        let moves_max = if self.creations.is_empty() { GROUP_MAX } else { GROUP_MAX - GROUP_OF_NEW };
        for (writes, size_max) in [(&mut self.moves, moves_max), (&mut self.creations, GROUP_MAX)] {
            while size < size_max
                && let Ok(write) = writes.try_recv()
            {
                if write.atomicity == Atomicity::All {
                    return (group, Some(write));
                }
                size += write.steps.len();
                group.push(write);
            }
        }
        (group, None)
    }
}

async fn run(
    store: Arc<dyn Store>,
    mut inbox: Inbox,
    matchmaker: Matchmaker,
    heard: Heard,
    stopped: CancellationToken,
) {
    let mut held_over = None;
    let mut outage = Outage::of("commits");
    loop {
        let first = match held_over.take() {
            Some(write) => write,
            None => match inbox.next(&stopped).await {
                Some(write) => write,
                None => return,
            },
        };
        if first.atomicity == Atomicity::All {
            let outcomes = store.commit_all(&first.steps).await;
            note(&mut outage, &outcomes);
            let stored = matches!(&outcomes, Ok(all) if all.iter().all(|outcome| *outcome == Outcome::Applied));
            if stored {
                heard(first.steps).await;
            }
            // A writer that has gone away needs no answer.
            let _ = first.done.send(outcomes);
            continue;
        }
        let (group, met) = inbox.gather(first);
        held_over = met;
        let outcomes = commit_group(store.as_ref(), group, &matchmaker, &heard).await;
        note(&mut outage, &outcomes);
    }
}

fn note(outage: &mut Outage, outcomes: &Result<impl Sized, StoreError>) {
    match outcomes {
        Ok(_) => outage.succeeded(),
        Err(error) => outage.failed(error),
    }
}

/// Fails where the commit was not taken, which its writers have heard by then.
async fn commit_group(
    store: &dyn Store,
    mut group: Vec<Write>,
    matchmaker: &Matchmaker,
    heard: &Heard,
) -> Result<(), StoreError> {
    let mut steps = Vec::with_capacity(group.iter().map(|write| write.steps.len()).sum());
    let mut counts = Vec::with_capacity(group.len());
    for write in &mut group {
        counts.push(write.steps.len());
        steps.append(&mut write.steps);
    }
    let (steps, matches) = matchmaker.join(steps).await;
    match store.commit(&steps).await {
        Ok(outcomes) => {
            let applied = outcomes.iter().map(|outcome| *outcome == Outcome::Applied);
            let stored: Vec<Step> =
                steps.into_iter().zip(applied).filter_map(|(step, applied)| applied.then_some(step)).collect();
            heard(stored).await;
            let outcomes = matchmaker.conclude(matches, outcomes).await;
            let mut rest = outcomes.as_slice();
            for (write, count) in group.into_iter().zip(counts) {
                let (own, others) = rest.split_at(count.min(rest.len()));
                rest = others;
                let _ = write.done.send(Ok(own.to_vec()));
            }
            Ok(())
        }
        Err(error) => {
            matchmaker.give_up(matches).await;
            for write in group {
                let _ = write.done.send(Err(StoreError::Unavailable("the group's commit was not taken".into())));
            }
            Err(error)
        }
    }
}
