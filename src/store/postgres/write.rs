//! Storing steps: one transaction, and in it one statement for each kind of change.
//!
//! A step compares the version it starts from, so it needs no lock that is held from reading to writing. What locks rows
//! locks them in order of their ids, so that commits at the same time wait for each other but never in a circle; where
//! Postgres sees one all the same, the transaction is tried again.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    arrivals,
    columns::{JobChange, NewJob, brought, changed, job_columns, kept},
    connections::{Connections, Failure, Kind, Statement, Transaction},
    events, keys,
    row::Fields,
    text::stored,
};
use crate::{
    model::{JobEvent, JobId, Step, log::JobLog},
    store::{Outcome, StoreError, codes::code, ends::Ends},
};

/// How often a transaction is tried where others are in its way.
const TRIES_MAX: u32 = 8;

/// What a step that does not apply means for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Each,
    AllOrNothing,
}

/// `slot` is the one of `errand.tallies` that this commit counts in.
pub(super) async fn commit(
    writers: &Connections,
    steps: &[Step],
    mode: Mode,
    slot: i32,
) -> Result<Vec<Outcome>, StoreError> {
    if steps.is_empty() {
        return Ok(Vec::new());
    }
    let mut tries = 1;
    loop {
        match attempt(writers, steps, mode, slot).await {
            Err(Failure::Conflict(cause)) if tries < TRIES_MAX => {
                tracing::debug!(%cause, tries, "a commit was in the way of another and is tried again");
                tries += 1;
            }
            done => return Ok(done?),
        }
    }
}

async fn attempt(writers: &Connections, steps: &[Step], mode: Mode, slot: i32) -> Result<Vec<Outcome>, Failure> {
    let mut transaction = writers.begin(Kind::Commit).await?;
    let mut batch = Batch::new(steps);
    match apply(&mut transaction, &mut batch).await {
        Err(conflict @ Failure::Conflict(_)) => {
            transaction.roll_back().await?;
            return Err(conflict);
        }
        applied => applied?,
    }
    let applied = batch.applied();
    if applied.is_empty() || (mode == Mode::AllOrNothing && applied.len() < steps.len()) {
        transaction.roll_back().await?;
        return Ok(batch.outcomes);
    }
    insert_late_events(&mut transaction, &applied).await?;
    add_to_tallies(&mut transaction, &batch.changes(), slot).await?;
    transaction.commit().await?;
    Ok(batch.outcomes)
}

/// Steps, and what became of them so far.
struct Batch<'a> {
    steps: &'a [Step],
    outcomes: Vec<Outcome>,
    /// Steps that ended a job, in no order.
    ends: Vec<usize>,
}

impl<'a> Batch<'a> {
    fn new(steps: &'a [Step]) -> Batch<'a> {
        Batch { steps, outcomes: vec![Outcome::Stale; steps.len()], ends: Vec::new() }
    }

    fn applied(&self) -> Vec<&'a Step> {
        let applied = self.steps.iter().zip(&self.outcomes).filter(|(_, outcome)| **outcome == Outcome::Applied);
        applied.map(|(step, _)| step).collect()
    }

    /// Indexes of the steps that make a job.
    fn creations(&self) -> Vec<usize> {
        (0..self.steps.len()).filter(|index| self.steps[*index].expected.is_none()).collect()
    }

    /// The step behind one that makes a job, if it moves the same job on: the row is written as it stands after both.
    fn follower(&self, creation: usize) -> Option<usize> {
        let (made, next) = (&self.steps[creation].job, self.steps.get(creation + 1)?);
        let follows = next.job.id == made.id && next.expected == Some(made.version) && !next.job.status.is_terminal();
        follows.then_some(creation + 1)
    }

    /// Indexes of the steps that change a job, but for followers that are written: first each job's first one, then each job's second one, and so on, because one
    /// statement can change a row only once. Each wave is in order of id. A step that stands before the one that made its job
    /// is left out, for it is stale.
    fn waves(&self) -> Vec<Vec<usize>> {
        let is_made = |index: &usize| self.outcomes[*index] == Outcome::Applied;
        let made: HashMap<JobId, usize> =
            self.creations().into_iter().filter(is_made).map(|index| (self.steps[index].job.id, index)).collect();
        let mut waves: Vec<Vec<usize>> = Vec::new();
        let mut steps_of: HashMap<JobId, usize> = HashMap::new();
        for (index, step) in self.steps.iter().enumerate() {
            let is_written = self.outcomes[index] == Outcome::Applied;
            if step.expected.is_none() || is_written || made.get(&step.job.id).is_some_and(|made| *made > index) {
                continue;
            }
            let wave = steps_of.entry(step.job.id).or_default();
            if waves.len() == *wave {
                waves.push(Vec::new());
            }
            waves[*wave].push(index);
            *wave += 1;
        }
        for wave in &mut waves {
            wave.sort_by_key(|index| self.steps[*index].job.id);
        }
        waves
    }

    fn new_job(&self, creation: usize) -> NewJob<'a> {
        NewJob { made: &self.steps[creation], moved: self.follower(creation).map(|index| &self.steps[index]) }
    }

    fn of(&self, indexes: &[usize]) -> Vec<&'a Step> {
        indexes.iter().map(|index| &self.steps[*index]).collect()
    }

    /// Marks those of the steps whose job is among `ids`; returns the others.
    fn mark(&mut self, indexes: Vec<usize>, ids: &HashSet<JobId>) -> Vec<usize> {
        let (applied, others): (Vec<usize>, Vec<usize>) =
            indexes.into_iter().partition(|index| ids.contains(&self.steps[*index].job.id));
        for index in applied {
            self.outcomes[index] = Outcome::Applied;
        }
        others
    }

    fn is_end(&self, index: usize) -> bool {
        self.steps[index].job.status.is_terminal()
    }

    /// By how much the counts of each channel change. Parts of broadcast jobs are not counted.
    fn changes(&self) -> BTreeMap<&'a str, Change> {
        let mut changes: BTreeMap<&str, Change> = BTreeMap::new();
        let is_counted = |step: &&Step| step.job.parent_id.is_none();
        for step in self.applied().into_iter().filter(|step| step.expected.is_none()).filter(is_counted) {
            changes.entry(&step.job.channel).or_default().live += 1;
        }
        for step in self.of(&self.ends).into_iter().filter(is_counted) {
            let change = changes.entry(&step.job.channel).or_default();
            change.live -= 1;
            change.ends.add(step.job.status, 1);
        }
        changes
    }
}

async fn apply(transaction: &mut Transaction, batch: &mut Batch<'_>) -> Result<(), Failure> {
    create(transaction, batch).await?;
    let waves = batch.waves();
    let is_mixed = |wave: &Vec<usize>| {
        let ends = wave.iter().filter(|index| batch.is_end(**index)).count();
        0 < ends && ends < wave.len()
    };
    if waves.len() > 1 || waves.iter().any(is_mixed) {
        // Several statements change these rows: each for itself would lock them in order, but not all of them together.
        lock(transaction, &batch.of(&waves[0])).await?;
    }
    for wave in waves {
        let (ends, others): (Vec<usize>, Vec<usize>) = wave.into_iter().partition(|index| batch.is_end(*index));
        let updated = write_changes(transaction, UPDATE_JOBS, &batch.of(&others)).await?;
        batch.mark(others, &updated);
        let finished = write_changes(transaction, FINISH_JOBS, &batch.of(&ends)).await?;
        batch.ends.extend(ends.iter().filter(|index| finished.contains(&batch.steps[**index].job.id)));
        // What is left may be a note on a job that has ended before.
        let notes = batch.mark(ends, &finished);
        let noted = write_changes(transaction, UPDATE_FINISHED, &batch.of(&notes)).await?;
        batch.mark(notes, &noted);
    }
    Ok(())
}

async fn create(transaction: &mut Transaction, batch: &mut Batch<'_>) -> Result<(), Failure> {
    let mut creations = batch.creations();
    let arriving: Vec<JobId> =
        batch.of(&creations).iter().filter(|step| step.arrives).map(|step| step.job.id).collect();
    if !arriving.is_empty() {
        let held = arrivals::hold(transaction, arriving).await?;
        creations.retain(|index| !batch.steps[*index].arrives || held.contains(&batch.steps[*index].job.id));
    }
    let is_keyed = creations.iter().any(|index| batch.steps[*index].job.idempotency_key.is_some());
    if is_keyed {
        let outcomes = keys::claim(transaction, &batch.of(&creations)).await?;
        for (index, outcome) in creations.iter().zip(outcomes) {
            batch.outcomes[*index] = outcome;
        }
        creations.retain(|index| batch.outcomes[*index] == Outcome::Applied);
    }
    // Stable: of two with the same id, the first is inserted.
    creations.sort_by_key(|index| batch.steps[*index].job.id);
    let rows: Vec<NewJob> = creations.iter().map(|index| batch.new_job(*index)).collect();
    let mut inserted = insert_jobs(transaction, rows).await?;
    if is_keyed && inserted.len() < creations.len() {
        return Err(Failure::Conflict("a job was inserted at the same time".into()));
    }
    let mut taken_in = Vec::new();
    for index in creations {
        let step = &batch.steps[index];
        if inserted.remove(&step.job.id) {
            batch.outcomes[index] = Outcome::Applied;
            if let Some(follower) = batch.follower(index) {
                batch.outcomes[follower] = Outcome::Applied;
            }
            taken_in.extend(step.arrives.then_some(step.job.id));
        }
    }
    if taken_in.is_empty() { Ok(()) } else { arrivals::remove(transaction, taken_in).await }
}

const INSERT_JOBS: &str = concat!(
    "-- name insert_jobs
    INSERT INTO errand.jobs (",
    job_columns!(),
    ", events) SELECT ",
    job_columns!(),
    ", events FROM unnest($1) AS v
    WHERE NOT EXISTS (SELECT 1 FROM errand.finished AS f WHERE f.id = v.id)
    ON CONFLICT (id) DO NOTHING RETURNING id"
);

async fn insert_jobs(transaction: &mut Transaction, rows: Vec<NewJob<'_>>) -> Result<HashSet<JobId>, Failure> {
    if rows.is_empty() {
        return Ok(HashSet::new());
    }
    ids(transaction, sqlx::query(INSERT_JOBS).bind(rows)).await
}

pub(super) const UPDATE_JOBS: &str = concat!(
    "-- name update_jobs
    UPDATE errand.jobs AS j SET (",
    changed!(),
    ", events) = (",
    brought!(),
    ", j.events || v.events) FROM unnest($1) AS v WHERE j.id = v.job_id AND j.version = v.expected RETURNING j.id"
);

/// Moves jobs from the unfinished to the finished ones.
pub(super) const FINISH_JOBS: &str = concat!(
    "-- name finish_jobs
    WITH ended AS (
        DELETE FROM errand.jobs AS j USING unnest($1) AS v WHERE j.id = v.job_id AND j.version = v.expected RETURNING ",
    kept!(),
    ", ",
    brought!(),
    ", j.events || v.events AS events
    )
    INSERT INTO errand.finished (",
    job_columns!(),
    ", events) SELECT ",
    job_columns!(),
    ", events FROM ended RETURNING id"
);

const UPDATE_FINISHED: &str = concat!(
    "-- name update_finished
    UPDATE errand.finished AS f SET (",
    changed!(),
    ", events) = (",
    brought!(),
    ", f.events || v.events) FROM unnest($1) AS v WHERE f.id = v.job_id AND f.version = v.expected RETURNING f.id"
);

/// Writes one of the statements above; tells for which jobs it did.
async fn write_changes(
    transaction: &mut Transaction,
    statement: &'static str,
    steps: &[&Step],
) -> Result<HashSet<JobId>, Failure> {
    if steps.is_empty() {
        return Ok(HashSet::new());
    }
    let rows: Vec<JobChange> = steps.iter().map(|step| JobChange(step)).collect();
    ids(transaction, sqlx::query(statement).bind(rows)).await
}

async fn ids(transaction: &mut Transaction, query: Statement<'_>) -> Result<HashSet<JobId>, Failure> {
    let rows = transaction.rows(query).await?;
    Ok(rows.iter().map(|row| Fields::new("errand.jobs", "id", row).id("id")).collect::<Result<_, _>>()?)
}

/// One column of many rows.
pub(super) fn column<'q, R, T>(rows: &'q [R], value: impl Fn(&'q R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

async fn lock(transaction: &mut Transaction, steps: &[&Step]) -> Result<(), Failure> {
    let query = sqlx::query(
        "-- name lock_jobs
        SELECT 1 FROM errand.jobs WHERE id = ANY($1) ORDER BY id FOR UPDATE",
    );
    transaction.execute(query.bind(column(steps, |step| step.job.id.0))).await.map(drop)
}

async fn insert_late_events(transaction: &mut Transaction, applied: &[&Step]) -> Result<(), Failure> {
    let late: Vec<&JobEvent> = applied.iter().filter_map(|step| events::late(step)).collect();
    if late.is_empty() {
        return Ok(());
    }
    let query = sqlx::query(
        "-- name insert_late_events
        INSERT INTO errand.late_events (job_id, seq, line) SELECT * FROM unnest($1, $2, $3)",
    );
    let query = query.bind(column(&late, |event| event.job_id.0)).bind(column(&late, |event| i64::from(event.seq)));
    transaction.execute(query.bind(column(&late, |event| events::line(event)))).await.map(drop)
}

pub(super) async fn append_logs(writers: &Connections, logs: &[JobLog]) -> Result<(), StoreError> {
    if logs.is_empty() {
        return Ok(());
    }
    let mut transaction = writers.begin(Kind::Write).await?;
    // Ids grow in the order of the lines, because the sequence is asked above the sorted rows.
    let query = sqlx::query(
        "-- name append_logs
        INSERT INTO errand.logs (id, job_id, created, kind, channel, message, meta)
        SELECT nextval('errand.log_id'), v.job_id, v.created, v.kind, v.channel, v.message, v.meta
        FROM (
            SELECT * FROM unnest($1, $2, $3, $4, $5, $6)
                WITH ORDINALITY AS v (job_id, created, kind, channel, message, meta, line)
            WHERE EXISTS (SELECT 1 FROM errand.jobs AS j WHERE j.id = v.job_id)
                OR EXISTS (SELECT 1 FROM errand.finished AS f WHERE f.id = v.job_id)
            ORDER BY line
        ) AS v",
    );
    let query = query.bind(column(logs, |log| log.job_id.0)).bind(column(logs, |log| log.created.0));
    let query = query.bind(column(logs, |log| code(log.kind))).bind(column(logs, |log| stored(&log.channel)));
    let query = query.bind(column(logs, |log| stored(&log.message))).bind(column(logs, |log| stored(&log.meta)));
    transaction.execute(query).await?;
    Ok(transaction.commit().await?)
}

/// By how much a channel's counts change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) live: i64,
    pub(super) ends: Ends,
}

/// The last statement of a transaction, so that whoever counts in the same slot waits for the disk and no longer. Channels
/// come in order, as ids do.
pub(super) async fn add_to_tallies<C: AsRef<str> + Ord>(
    transaction: &mut Transaction,
    changes: &BTreeMap<C, Change>,
    slot: i32,
) -> Result<(), Failure> {
    let changes: Vec<(&str, Change)> = changes
        .iter()
        .filter(|(_, change)| **change != Change::default())
        .map(|(channel, change)| (channel.as_ref(), *change))
        .collect();
    if changes.is_empty() {
        return Ok(());
    }
    let query = sqlx::query(
        "-- name add_to_tallies
        INSERT INTO errand.tallies AS t (channel, slot, live, completed, failed, canceled, expired)
        SELECT v.channel, $7, v.live, v.completed, v.failed, v.canceled, v.expired
        FROM unnest($1, $2, $3, $4, $5, $6) AS v (channel, live, completed, failed, canceled, expired)
        ON CONFLICT (channel, slot) DO UPDATE SET live = t.live + excluded.live, completed = t.completed + excluded.completed,
            failed = t.failed + excluded.failed, canceled = t.canceled + excluded.canceled,
            expired = t.expired + excluded.expired",
    );
    let counts = |count: fn(&Change) -> i64| changes.iter().map(|(_, change)| count(change)).collect::<Vec<i64>>();
    let query = query.bind(changes.iter().map(|(channel, _)| stored(channel)).collect::<Vec<_>>());
    let query = query.bind(counts(|change| change.live)).bind(counts(|change| change.ends.completed));
    let query = query.bind(counts(|change| change.ends.failed)).bind(counts(|change| change.ends.canceled));
    transaction.execute(query.bind(counts(|change| change.ends.expired)).bind(slot)).await.map(drop)
}
