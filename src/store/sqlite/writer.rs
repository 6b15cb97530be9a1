//! The one connection that writes, on a thread of its own.
//!
//! A commit is judged against the newest versions, in the overlay or in the tables, written as one record of the journal,
//! and answered once that record is on the disk. The tables take the changes in later, in small transactions between two
//! commits, so that no commit waits long for them.

mod forget;

use std::{
    collections::{HashMap, VecDeque},
    path::Path,
    sync::{
        Arc, PoisonError, RwLock,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::oneshot;

use forget::Slice;

use super::{
    buckets::{self, Buckets},
    checkpoints::Checkpoints,
    journal,
    overlay::{Change, Changes, Overlay, key_of},
    read, tables, unavailable,
};
use crate::{
    model::{Job, JobId, Step, log::JobLog},
    store::{Outcome, Outdated, StoreError},
};

/// Requests that may wait.
const REQUESTS_MAX: usize = 1_024;
/// Changes that the tables take in at once, while there is no hurry: half a millisecond that a commit may have to wait.
const SLICE: usize = 64;
/// The same where too many are ahead: larger slices cost less, and commits that come so fast have to wait anyway.
const SLICE_IN_HURRY: usize = 256;
/// Changes that may be ahead of the tables.
const AHEAD_MAX: usize = 4_096;
/// Their texts, in bytes.
const AHEAD_BYTES: usize = 16 << 20;
/// How long a change may be ahead of the tables. Most jobs of a busy service begin and end within it, and are then written
/// once in place of three times.
const AHEAD_FOR: Duration = Duration::from_millis(100);
/// Commits of changes that the journal has, and removals of old jobs: should one be lost, so is the trimming of the journal,
/// or the old jobs are removed again, and nothing else.
const RELAXED: &str = "PRAGMA synchronous = NORMAL";
const DURABLE: &str = "PRAGMA synchronous = FULL";

/// What a step that does not apply means for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Each,
    AllOrNothing,
}

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

enum Request {
    Commit(Vec<Step>, Mode, Answer<Vec<Outcome>>),
    AppendLogs(Vec<JobLog>, Answer<()>),
    Delete(JobId, u32, Answer<bool>),
    /// Removes those of the jobs that are outdated, from the first on, for as long as a commit may wait.
    Forget(Vec<JobId>, Outdated, Answer<Slice>),
    /// Brings the tables up to date.
    CatchUp(Answer<()>),
    Ping(Answer<()>),
    Close(Answer<()>),
}

/// The way to the writing thread.
pub(super) struct Writer {
    requests: SyncSender<Request>,
    overlay: Arc<RwLock<Overlay>>,
}

impl Writer {
    /// Takes in what the journal holds, and starts the thread.
    pub fn start(connection: Connection, path: &Path) -> Result<Writer, StoreError> {
        let (requests, inbox) = sync_channel(REQUESTS_MAX);
        buckets::drop_empty(&connection)?;
        let mut desk = Desk::new(connection)?;
        let overlay = desk.overlay.clone();
        desk.replay()?;
        let checkpoints = Checkpoints::start(path, &desk.connection).map_err(StoreError::Unavailable)?;
        let thread = std::thread::Builder::new().name("sqlite writer".to_owned());
        thread.spawn(move || desk.run(&inbox, checkpoints)).map_err(|error| StoreError::Unavailable(error.into()))?;
        Ok(Writer { requests, overlay })
    }

    pub async fn commit(&self, steps: &[Step], mode: Mode) -> Result<Vec<Outcome>, StoreError> {
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        self.ask(|answer| Request::Commit(steps.to_vec(), mode, answer)).await
    }

    pub async fn append_logs(&self, logs: &[JobLog]) -> Result<(), StoreError> {
        if logs.is_empty() {
            return Ok(());
        }
        self.ask(|answer| Request::AppendLogs(logs.to_vec(), answer)).await
    }

    pub async fn delete(&self, id: JobId, version: u32) -> Result<bool, StoreError> {
        // Commits go on meanwhile, so little is left for the deletion.
        self.catch_up().await?;
        self.ask(|answer| Request::Delete(id, version, answer)).await
    }

    pub async fn ping(&self) -> Result<(), StoreError> {
        self.ask(Request::Ping).await
    }

    /// Later calls fail as unavailable.
    pub async fn close(&self) {
        if let Err(error) = self.ask(Request::Close).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "the writer was closed before, or is stuck");
        }
    }

    /// Returns once the tables have everything that was stored before this call.
    pub async fn catch_up(&self) -> Result<(), StoreError> {
        if self.looking(|overlay| overlay.is_empty()) { Ok(()) } else { self.ask(Request::CatchUp).await }
    }

    /// Looks at what is ahead of the tables.
    pub fn looking<T>(&self, look: impl FnOnce(&Overlay) -> T) -> T {
        look(&self.overlay.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.requests.try_send(request(answer)).map_err(|error| {
            StoreError::Unavailable(match error {
                TrySendError::Full(_) => "too many writes wait for the database".into(),
                TrySendError::Disconnected(_) => "the database is closed".into(),
            })
        })?;
        answered.await.map_err(|_| StoreError::Unavailable("the database was closed meanwhile".into()))?
    }
}

/// Where the writing thread works.
struct Desk {
    connection: Connection,
    overlay: Arc<RwLock<Overlay>>,
    buckets: Buckets,
    /// No job that is stored has a newer id, so one that has is new.
    newest: Option<JobId>,
    /// Who waits for the tables, and until which change, in order.
    behind: VecDeque<(u64, Answer<()>)>,
}

impl Desk {
    fn new(connection: Connection) -> Result<Desk, StoreError> {
        let newest = tables::newest(&connection)?;
        let (overlay, buckets) = (Arc::default(), Buckets::default());
        Ok(Desk { connection, overlay, buckets, newest, behind: VecDeque::new() })
    }

    fn run(mut self, inbox: &Receiver<Request>, mut checkpoints: Checkpoints) {
        loop {
            let request = match self.patience() {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(patience) => inbox.recv_timeout(patience),
            };
            match request {
                Ok(Request::Close(answer)) => {
                    checkpoints.close();
                    let _ = answer.send(self.close());
                    return;
                }
                Ok(request) => self.serve(request),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    checkpoints.close();
                    if let Err(error) = self.close() {
                        tracing::error!(
                            error = &error as &dyn std::error::Error,
                            "the journal stays for the next start"
                        );
                    }
                    return;
                }
            }
            if let Err(error) = self.keep_up() {
                // What is ahead stays in the journal and in memory; the next turn tries again.
                tracing::error!(error = &error as &dyn std::error::Error, "the tables could not be brought up to date");
                self.refuse_to_wait();
            }
            checkpoints.keep_up();
        }
    }

    fn serve(&mut self, request: Request) {
        // Whoever asked may have gone away; what was asked for is done all the same.
        match request {
            Request::Commit(steps, mode, answer) => drop(answer.send(self.commit(&steps, mode))),
            Request::AppendLogs(logs, answer) => drop(answer.send(self.append_logs(&logs))),
            Request::Delete(id, version, answer) => drop(answer.send(self.delete(id, version))),
            Request::Forget(ids, outdated, answer) => drop(answer.send(self.forget(&ids, outdated))),
            Request::CatchUp(answer) => self.behind.push_back((self.looking(Overlay::entered), answer)),
            Request::Ping(answer) | Request::Close(answer) => drop(answer.send(tables::ping(&self.connection))),
        }
    }

    fn looking<T>(&self, look: impl FnOnce(&Overlay) -> T) -> T {
        look(&self.overlay.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn changing<T>(&self, change: impl FnOnce(&mut Overlay) -> T) -> T {
        change(&mut self.overlay.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// How long nothing has to be done for the tables; `None`: until something is asked for.
    fn patience(&self) -> Option<Duration> {
        if !self.behind.is_empty() {
            return Some(Duration::ZERO);
        }
        self.looking(Overlay::age).map(|age| AHEAD_FOR.saturating_sub(age))
    }

    fn commit(&mut self, steps: &[Step], mode: Mode) -> Result<Vec<Outcome>, StoreError> {
        let mut changes = Changes::default();
        let mut outcomes = Vec::with_capacity(steps.len());
        let mut newest = self.newest;
        for step in steps {
            let (outcome, in_tables) = self.judge(step, &changes, newest)?;
            if outcome == Outcome::Applied {
                newest = newest.max(Some(step.job.id));
                changes.put(Change::of(step, in_tables));
            }
            outcomes.push(outcome);
        }
        let is_applied = |outcome: &Outcome| *outcome == Outcome::Applied;
        if !outcomes.iter().any(is_applied) || (mode == Mode::AllOrNothing && !outcomes.iter().all(is_applied)) {
            return Ok(outcomes);
        }
        let applied = steps.iter().zip(&outcomes).filter(|(_, outcome)| is_applied(outcome)).map(|(step, _)| step);
        let record = tables::append_record(&self.connection, &journal::record(applied))?;
        self.newest = newest;
        self.changing(|overlay| overlay.absorb(changes, record));
        Ok(outcomes)
    }

    /// What becomes of a step after the `changes` before it, and whether the tables know its job.
    fn judge(&self, step: &Step, changes: &Changes, newest: Option<JobId>) -> Result<(Outcome, bool), StoreError> {
        let id = step.job.id;
        let of_change = |change: &Change| (Some(change.job.version), change.in_tables);
        let ahead = changes.get(id).map(of_change).or_else(|| self.looking(|overlay| overlay.get(id).map(of_change)));
        let (version, in_tables) = match ahead {
            Some(known) => known,
            None if newest.is_none_or(|newest| id > newest) => (None, false),
            None => {
                let version = tables::version(&self.connection, id)?;
                (version, version.is_some())
            }
        };
        let outcome = match step.expected {
            None => match self.key_holder(&step.job, changes)? {
                Some(holder) => Outcome::Duplicate(holder),
                None if version.is_some() => Outcome::Stale,
                None => Outcome::Applied,
            },
            expected if expected == version => Outcome::Applied,
            Some(_) => Outcome::Stale,
        };
        Ok((outcome, in_tables))
    }

    fn key_holder(&self, job: &Job, changes: &Changes) -> Result<Option<JobId>, StoreError> {
        let Some(key) = key_of(job) else { return Ok(None) };
        let ahead = changes.key_holder(&key).or_else(|| self.looking(|overlay| overlay.key_holder(&key)));
        match ahead {
            Some(holder) => Ok(Some(holder)),
            None => tables::key_holder(&self.connection, &key),
        }
    }

    /// Lets the tables take in what has been ahead for long, or is waited for, and whatever is too much. One slice at a time, so
    /// that no commit waits for more.
    fn keep_up(&mut self) -> Result<(), StoreError> {
        let is_old = |overlay: &Overlay| overlay.age().is_some_and(|age| age >= AHEAD_FOR);
        if self.answer_behind() || self.looking(is_old) {
            self.take_in_slice(SLICE)?;
            self.answer_behind();
        }
        while self.looking(|overlay| overlay.len() > AHEAD_MAX || overlay.bytes() > AHEAD_BYTES) {
            self.take_in_slice(SLICE_IN_HURRY)?;
        }
        Ok(())
    }

    /// Answers those whose changes the tables have; true where somebody waits still.
    fn answer_behind(&mut self) -> bool {
        let left = self.looking(Overlay::left);
        while let Some((_, answer)) = self.behind.pop_front_if(|(until, _)| *until <= left) {
            let _ = answer.send(Ok(()));
        }
        !self.behind.is_empty()
    }

    fn refuse_to_wait(&mut self) {
        for (_, answer) in self.behind.drain(..) {
            let _ = answer.send(Err(StoreError::Unavailable("the tables could not be brought up to date".into())));
        }
    }

    fn take_in_slice(&mut self, most: usize) -> Result<(), StoreError> {
        let taken = self.relaxed(|connection, overlay, buckets| take_in(connection, overlay, buckets, most))?;
        self.changing(|overlay| overlay.remove_first(taken));
        Ok(())
    }

    fn catch_up(&mut self) -> Result<(), StoreError> {
        while !self.looking(Overlay::is_empty) {
            self.take_in_slice(SLICE_IN_HURRY)?;
        }
        Ok(())
    }

    /// Like [`Desk::transaction`], for what may be lost with the machine's power.
    fn relaxed<T>(
        &mut self,
        write: impl FnOnce(&Connection, &RwLock<Overlay>, &mut Buckets) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.connection.execute_batch(RELAXED).map_err(unavailable)?;
        let written = self.transaction(write);
        self.connection.execute_batch(DURABLE).map_err(unavailable)?;
        written
    }

    /// Commits what `write` does, or nothing of it.
    fn transaction<T>(
        &mut self,
        write: impl FnOnce(&Connection, &RwLock<Overlay>, &mut Buckets) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // It has the write lock from the start: one that took it later could find its reads outdated.
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(unavailable)?;
        let written = write(&transaction, &self.overlay, &mut self.buckets);
        let stored = written.and_then(|written| transaction.commit().map_err(unavailable).map(|()| written));
        if stored.is_err() {
            self.buckets.forget();
        }
        stored
    }

    fn append_logs(&mut self, logs: &[JobLog]) -> Result<(), StoreError> {
        self.transaction(|connection, overlay, _| {
            let overlay = overlay.read().unwrap_or_else(PoisonError::into_inner);
            tables::append_logs(connection, logs, |id| overlay.get(id).is_some())
        })
    }

    fn delete(&mut self, id: JobId, version: u32) -> Result<bool, StoreError> {
        // The journal must be empty: a record that is read again would bring the job back.
        let (deleted, taken) = self.transaction(|connection, overlay, buckets| {
            let taken = take_in(connection, overlay, buckets, usize::MAX)?;
            Ok((tables::delete(connection, buckets, id, version)?, taken))
        })?;
        self.changing(|overlay| overlay.remove_first(taken));
        Ok(deleted)
    }

    /// What the process before has left in the journal.
    fn replay(&mut self) -> Result<(), StoreError> {
        let records = tables::records(&self.connection)?;
        let corrupt = |record| StoreError::Corrupt(format!("table journal, column steps, row {record}"));
        let mut removed: HashMap<JobId, i64> = HashMap::new();
        for (record, bytes) in &records {
            let ids = journal::removed(bytes).ok_or_else(|| corrupt(*record))?;
            removed.extend(ids.into_iter().map(|id| (id, *record)));
        }
        for (record, bytes) in records {
            let mut changes = Changes::default();
            for entry in journal::entries(&bytes).ok_or_else(|| corrupt(record))? {
                let id = entry.id();
                if removed.get(&id).is_some_and(|removal| *removal > record) {
                    continue;
                }
                let known = |change: &Change| (change.job.clone(), change.in_tables);
                let ahead = changes.get(id).map(known).or_else(|| self.looking(|overlay| overlay.get(id).map(known)));
                let stands = match ahead {
                    Some(known) => Some(known),
                    None => read::job(&self.connection, id)?.map(|job| (Arc::new(job), true)),
                };
                let in_tables = stands.as_ref().is_some_and(|(_, in_tables)| *in_tables);
                if let Some(step) = entry.onto(stands.as_ref().map(|(job, _)| &**job)) {
                    self.newest = self.newest.max(Some(id));
                    changes.put(Change::of(&step, in_tables));
                }
            }
            self.changing(|overlay| overlay.absorb(changes, record));
            self.keep_up()?;
        }
        self.catch_up()?;
        // Of records that told nothing new, no change is left that would trim them.
        self.transaction(|connection, _, buckets| tables::take_in(connection, buckets, &[], None))
    }

    fn close(mut self) -> Result<(), StoreError> {
        self.catch_up()?;
        self.answer_behind();
        self.connection.close().map_err(|(_, error)| unavailable(error))
    }
}

/// Lets the tables take in the first `most` changes; tells how many these are.
fn take_in(
    connection: &Connection,
    overlay: &RwLock<Overlay>,
    buckets: &mut Buckets,
    most: usize,
) -> Result<usize, StoreError> {
    let (mut changes, needed) = {
        let overlay = overlay.read().unwrap_or_else(PoisonError::into_inner);
        let changes = overlay.first(most);
        let needed = overlay.record_behind(changes.len());
        (changes, needed)
    };
    let taken = changes.len();
    // In the order of the rows, neighbours share their pages.
    changes.sort_unstable_by_key(|change| change.job.id);
    tables::take_in(connection, buckets, &changes, needed)?;
    Ok(taken)
}

#[cfg(test)]
impl Desk {
    /// On the database that is there, or on a new one.
    fn open(path: &Path) -> Desk {
        std::fs::OpenOptions::new().create(true).append(true).open(path).expect("a file");
        let mut connection = super::connect(path, false).expect("a connection");
        super::schema::migrate(&mut connection).expect("a schema");
        Desk::new(connection).expect("a desk")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{JobSpec, Timestamp, create};

    fn creations(ids: std::ops::Range<u128>) -> Vec<Step> {
        let creation = |id| create(JobId(uuid::Uuid::from_u128(id)), JobSpec::sample(), "ann".into(), Timestamp(1));
        ids.map(|id| creation(id).expect("a job")).collect()
    }

    #[test]
    fn who_waits_for_the_tables_holds_commits_up_for_a_slice_at_a_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut desk = Desk::open(&folder.path().join("jobs.db"));
        let before = SLICE as u128 + 1;
        desk.commit(&creations(0..before), Mode::Each).expect("a commit");
        let (answer, mut answered) = oneshot::channel();
        desk.serve(Request::CatchUp(answer));
        assert_eq!(desk.patience(), Some(Duration::ZERO));
        desk.keep_up().expect("a slice");
        assert_eq!(desk.looking(Overlay::len), 1);
        assert!(answered.try_recv().is_err());
        // Nobody waits for what comes later.
        desk.commit(&creations(before..before + SLICE as u128), Mode::Each).expect("a commit");
        desk.keep_up().expect("a slice");
        assert_eq!(desk.looking(Overlay::len), 1);
        assert!(matches!(answered.try_recv(), Ok(Ok(()))));
        assert!(desk.patience() > Some(Duration::ZERO));
    }
}
