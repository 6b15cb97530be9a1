//! Group commit behind a plain `.await`.
//!
//! Callers hand in steps; one loop takes what is waiting, stores it in one transaction, gives the hints and answers.
//! There is no timer: idle adds nothing, and load makes batches by itself.
//!
//! Steps of jobs that are there go before new jobs. Under more load than can be borne it is publishers who wait, and not the
//! runners who would make room for them; and a job that ends soon costs less than one that has been lined up for long.
//!
//! New jobs of several channels take turns ([`lines`]), so that nobody waits behind all that one publisher pours into another
//! channel.
//!
//! A store with several lanes is given several transactions at once, as soon as there is enough for one more: while one waits
//! for the disk, the next is prepared. They may end in any order. Steps of one job do not meet in two of them, unless somebody
//! raced, and then versions decide, as they do between nodes.

mod lines;

use std::sync::Arc;

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::{JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use lines::Lines;

use super::{
    EngineError,
    matchmaker::{Match, Matchmaker},
    outage::Outage,
};
use crate::{
    model::Step,
    store::{Outcome, Store, StoreError},
};

/// The most steps in one transaction: larger groups raise the latency and not the rate.
const GROUP_MAX: usize = 1_024;
/// How many of them make new jobs, and how many are left to these, however much else is waiting. A publisher that pours in
/// jobs without end makes each transaction so long for all others.
const GROUP_OF_NEW: usize = 256;

/// What hears of stored steps, before their writers do.
pub type Heard = Box<dyn Fn(Vec<Step>) -> futures::future::BoxFuture<'static, ()> + Send + Sync>;

#[derive(Clone)]
pub struct Committer {
    moves: Counter,
    /// Of new jobs, parts and retries among them.
    creations: Counter,
}

/// Where writes of one kind are handed in.
#[derive(Clone)]
struct Counter {
    writes: mpsc::Sender<Write>,
    /// One for each write that has no answer yet, so the channel never fills up.
    places: Arc<Semaphore>,
}

/// What is waiting.
struct Inbox {
    moves: mpsc::Receiver<Write>,
    creations: mpsc::Receiver<Write>,
    /// Creations that were received.
    lines: Lines,
}

struct Write {
    steps: Vec<Step>,
    atomicity: Atomicity,
    done: oneshot::Sender<Result<Vec<Outcome>, EngineError>>,
    _place: OwnedSemaphorePermit,
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
        let (moves, waiting_moves) = Counter::new(pending_max);
        let (creations, waiting_creations) = Counter::new(pending_max);
        let inbox = Inbox { moves: waiting_moves, creations: waiting_creations, lines: Lines::new(pending_max) };
        let desk = Desk { store, matchmaker: Arc::new(matchmaker), heard, outage: Outage::of("commits") };
        (Committer { moves, creations }, desk.run(inbox, stopped))
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
        let counter = if is_creation { &self.creations } else { &self.moves };
        let busy = EngineError::Busy("too many writes are waiting; try again");
        let Ok(place) = counter.places.clone().try_acquire_owned() else { return Err(busy) };
        match counter.writes.try_send(Write { steps, atomicity, done, _place: place }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(busy),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(EngineError::Draining),
        }
        answer.await.map_err(|_| EngineError::Draining)?
    }
}

impl Counter {
    fn new(pending_max: usize) -> (Counter, mpsc::Receiver<Write>) {
        let (writes, waiting) = mpsc::channel(pending_max);
        (Counter { writes, places: Arc::new(Semaphore::new(pending_max)) }, waiting)
    }
}

impl Inbox {
    /// The next write; `None` once no more is to come. Once `stopped`, no more is taken in.
    async fn next(&mut self, stopped: &CancellationToken) -> Option<Write> {
        loop {
            if let Some(write) = self.moves.try_recv().ok().or_else(|| self.lines.pop()) {
                return Some(write);
            }
            tokio::select! {
                biased;
                Some(write) = self.moves.recv() => return Some(write),
                Some(write) = self.creations.recv() => self.line_up(write),
                Some(()) = rest(self.lines.rest_ends()) => {}
                () = stopped.cancelled(), if !self.moves.is_closed() => {
                    self.moves.close();
                    self.creations.close();
                    self.lines.close();
                }
                else => return None,
            }
        }
    }

    fn line_up(&mut self, write: Write) {
        if let Err(write) = self.lines.push(write) {
            // Nothing of it is stored. Who asked may have gone away.
            let busy = EngineError::Busy("too many new jobs of this channel are waiting to be stored; try again");
            let _ = write.done.send(Err(busy));
        }
    }

    /// Adds to the group what is waiting and fits.
    fn gather(&mut self, group: &mut Group) {
        while let Ok(write) = self.creations.try_recv() {
            self.line_up(write);
        }
        let moves_max = if self.lines.is_empty() { GROUP_MAX } else { GROUP_MAX - GROUP_OF_NEW };
        while group.takes_more(moves_max)
            && let Ok(write) = self.moves.try_recv()
        {
            group.push(write);
        }
        let steps_max = group.steps + GROUP_OF_NEW;
        while group.takes_more(steps_max)
            && let Some(write) = self.lines.pop()
        {
            group.push(write);
        }
    }
}

/// Writes that are to be stored in one transaction.
#[derive(Default)]
struct Group {
    writes: Vec<Write>,
    steps: usize,
    /// A write that must be stored as a whole or not at all, so that it is stored by itself. It goes behind this group.
    alone: Option<Write>,
}

impl Group {
    fn takes_more(&self, steps_max: usize) -> bool {
        self.alone.is_none() && self.steps < steps_max
    }

    fn push(&mut self, write: Write) {
        match write.atomicity {
            Atomicity::Each => {
                self.steps += write.steps.len();
                self.writes.push(write);
            }
            Atomicity::All => self.alone = Some(write),
        }
    }

    /// Whether a transaction should begin with it while others are under way.
    fn fills_a_lane(&self, steps_min: usize) -> bool {
        self.steps >= steps_min || self.alone.is_some()
    }

    /// What the next transaction stores; none where nothing waits.
    fn take(&mut self) -> Option<Commit> {
        if self.writes.is_empty() {
            return self.alone.take().map(|write| Commit { writes: vec![write], atomicity: Atomicity::All });
        }
        self.steps = 0;
        Some(Commit { writes: std::mem::take(&mut self.writes), atomicity: Atomicity::Each })
    }
}

/// What is stored in one transaction.
struct Commit {
    writes: Vec<Write>,
    atomicity: Atomicity,
}

/// A transaction's end, of which nobody has heard yet.
struct Stored {
    began: Instant,
    writes: Vec<Write>,
    atomicity: Atomicity,
    /// Steps of each write.
    counts: Vec<usize>,
    /// All of them, and the claims that joined.
    steps: Vec<Step>,
    matches: Vec<Match>,
    outcomes: Result<Vec<Outcome>, StoreError>,
}

impl Commit {
    async fn store(self, store: Arc<dyn Store>, matchmaker: Arc<Matchmaker>) -> Stored {
        let Commit { mut writes, atomicity } = self;
        let began = Instant::now();
        let counts: Vec<usize> = writes.iter().map(|write| write.steps.len()).collect();
        let mut steps = Vec::with_capacity(counts.iter().sum());
        for write in &mut writes {
            steps.append(&mut write.steps);
        }
        let mut matches = Vec::new();
        let outcomes = match atomicity {
            Atomicity::Each => {
                (steps, matches) = matchmaker.join(steps).await;
                store.commit(&steps).await
            }
            Atomicity::All => store.commit_all(&steps).await,
        };
        Stored { began, writes, atomicity, counts, steps, matches, outcomes }
    }
}

struct Desk {
    store: Arc<dyn Store>,
    matchmaker: Arc<Matchmaker>,
    heard: Heard,
    outage: Outage,
}

impl Desk {
    async fn run(mut self, mut inbox: Inbox, stopped: CancellationToken) {
        let lanes = self.store.lanes();
        let mut group = Group::default();
        let mut under_way: JoinSet<Stored> = JoinSet::new();
        let mut is_over = false;
        while !(is_over && under_way.is_empty()) {
            // Each branch only receives: dropping one loses nothing.
            tokio::select! {
                biased;
                Some(stored) = under_way.join_next() => self.settle(of_task(stored), &mut inbox.lines).await,
                write = inbox.next(&stopped), if !is_over && group.takes_more(lanes.steps_min) => match write {
                    Some(write) => group.push(write),
                    None => is_over = true,
                },
            }
            while under_way.is_empty() || (under_way.len() < lanes.max && group.fills_a_lane(lanes.steps_min)) {
                inbox.gather(&mut group);
                let Some(commit) = group.take() else { break };
                let storing = commit.store(self.store.clone(), self.matchmaker.clone());
                if lanes.max == 1 {
                    // A task of its own would only cost time.
                    self.settle(storing.await, &mut inbox.lines).await;
                } else {
                    under_way.spawn(storing);
                }
            }
        }
    }

    /// Gives the hints, and answers. A writer that has gone away needs no answer.
    async fn settle(&mut self, stored: Stored, lines: &mut Lines) {
        let Stored { began, writes, atomicity, counts, steps, matches, outcomes } = stored;
        lines.stored(began.elapsed());
        let outcomes = match outcomes {
            Ok(outcomes) => outcomes,
            Err(error) => {
                self.outage.failed(&error);
                self.matchmaker.give_up(matches).await;
                for write in writes {
                    let error = StoreError::Unavailable("the group's commit was not taken".into());
                    let _ = write.done.send(Err(error.into()));
                }
                return;
            }
        };
        self.outage.succeeded();
        let is_applied = |outcome: &Outcome| *outcome == Outcome::Applied;
        if atomicity == Atomicity::Each || outcomes.iter().all(is_applied) {
            let applied = outcomes.iter().map(is_applied);
            let stored = steps.into_iter().zip(applied).filter_map(|(step, applied)| applied.then_some(step)).collect();
            (self.heard)(stored).await;
        }
        let outcomes = self.matchmaker.conclude(matches, outcomes).await;
        let mut rest = outcomes.as_slice();
        for (write, count) in writes.into_iter().zip(counts) {
            let (own, others) = rest.split_at(count.min(rest.len()));
            rest = others;
            let _ = write.done.send(Ok(own.to_vec()));
        }
    }
}

/// Completes when that time has come, with nothing where there is none.
async fn rest(until: Option<Instant>) -> Option<()> {
    tokio::time::sleep_until(until?).await;
    Some(())
}

/// A commit's panic is the committer's.
fn of_task(stored: Result<Stored, JoinError>) -> Stored {
    stored.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Job, JobId, JobSpec, Timestamp, create};

    fn write(steps: usize, atomicity: Atomicity) -> Write {
        let step =
            create(JobId(uuid::Uuid::from_u128(1)), JobSpec::sample(), "me".into(), Timestamp(1)).expect("a job");
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("a place");
        Write { steps: vec![step; steps], atomicity, done: oneshot::channel().0, _place: place }
    }

    pub(super) fn write_to(channel: &str, steps: usize) -> Write {
        let mut write = write(steps, Atomicity::Each);
        for step in &mut write.steps {
            let job = Job { channel: channel.into(), ..(*step.job).clone() };
            step.job = Arc::new(job);
        }
        write
    }

    /// How many steps the next transaction has.
    fn next_size(group: &mut Group) -> Option<usize> {
        Some(group.take()?.writes.iter().map(|write| write.steps.len()).sum())
    }

    #[test]
    fn a_second_lane_is_for_many_steps() {
        let mut group = Group::default();
        assert!(!group.fills_a_lane(5) && group.take().is_none());
        group.push(write(4, Atomicity::Each));
        assert!(!group.fills_a_lane(5) && group.takes_more(5));
        group.push(write(1, Atomicity::Each));
        assert!(group.fills_a_lane(5) && !group.takes_more(5));
        assert_eq!(next_size(&mut group), Some(5));
        assert!(!group.fills_a_lane(5) && group.take().is_none());
    }

    #[test]
    fn what_is_stored_as_a_whole_goes_by_itself_behind_what_came_before() {
        let mut group = Group::default();
        group.push(write(2, Atomicity::Each));
        group.push(write(3, Atomicity::All));
        assert!(!group.takes_more(GROUP_MAX), "nothing that came later may join the group in front of it");
        assert_eq!((next_size(&mut group), next_size(&mut group), next_size(&mut group)), (Some(2), Some(3), None));
        assert!(group.takes_more(GROUP_MAX));
    }
}
