//! Buckets as the writing thread keeps them: it knows each job's bucket without asking, and counts what enters and leaves.
//!
//! A bucket has the jobs that lists cannot tell apart by anything they filter by: see the table in `migrations`. What is
//! written here belongs to the transaction that writes the jobs.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use rusqlite::{Connection, OptionalExtension, params};

use super::unavailable;
use crate::{
    model::{Job, JobId},
    store::{StoreError, codes::code},
};

/// How many buckets there may be. A list reads them all, which takes some 20 ms then; jobs that would need more share one.
const BUCKETS_MAX: u64 = 50_000;
/// How many of them are known without a look into the table.
const KNOWN_MAX: usize = 8_192;
/// The bucket that jobs share where there are too many others.
pub(super) const SHARED: i64 = 0;

/// What the jobs of a bucket have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Traits {
    owner: Arc<str>,
    channel: Arc<str>,
    func: Arc<str>,
    broadcast: bool,
    /// The code of how they ended, or 0.
    status: i32,
    /// Who ran those that have ended.
    runner_id: Option<Arc<str>>,
}

impl Traits {
    fn of(job: &Job) -> Traits {
        let has_ended = job.status.is_terminal();
        Traits {
            status: if has_ended { code(job.status) } else { 0 },
            runner_id: job.runner_id.clone().filter(|_| has_ended),
            ..Traits::unfinished(job)
        }
    }

    /// Those that it had, or would have, before its end.
    fn unfinished(job: &Job) -> Traits {
        Traits {
            owner: job.owner.clone(),
            channel: job.channel.clone(),
            func: job.func.clone(),
            broadcast: job.broadcast,
            status: 0,
            runner_id: None,
        }
    }
}

/// What a transaction does to a bucket.
#[derive(Debug, Clone, Copy)]
struct Change {
    jobs: i64,
    /// Of those that enter; none where jobs only leave.
    ids: Option<(JobId, JobId)>,
}

/// What is known of the buckets, and what the open transaction does to them.
#[derive(Debug)]
pub(super) struct Buckets {
    /// How many there may be.
    most: u64,
    known: HashMap<Traits, i64>,
    /// How many there are, once that is known.
    count: Option<u64>,
    /// Whether the shared one has jobs, once that is known.
    is_sharing: Option<bool>,
    changes: BTreeMap<i64, Change>,
}

impl Default for Buckets {
    fn default() -> Buckets {
        Buckets::up_to(BUCKETS_MAX)
    }
}

impl Buckets {
    fn up_to(most: u64) -> Buckets {
        Buckets { most, known: HashMap::new(), count: None, is_sharing: None, changes: BTreeMap::new() }
    }

    /// A new job enters; answers its bucket. Parts of broadcast jobs have none.
    pub fn enter(&mut self, connection: &Connection, job: &Job) -> Result<Option<i64>, StoreError> {
        if job.parent_id.is_some() {
            return Ok(None);
        }
        let bucket = self.bucket(connection, Traits::of(job), job.id)?;
        let change = self.changes.entry(bucket).or_insert(Change { jobs: 0, ids: None });
        change.jobs += 1;
        let (oldest, newest) = change.ids.unwrap_or((job.id, job.id));
        change.ids = Some((oldest.min(job.id), newest.max(job.id)));
        Ok(Some(bucket))
    }

    /// A job of the tables that was unfinished there has ended: it goes to another bucket.
    pub fn pass(&mut self, connection: &Connection, job: &Job) -> Result<Option<i64>, StoreError> {
        let earlier = if self.is_sharing(connection)? {
            stored(connection, job.id)?
        } else {
            Some(self.bucket(connection, Traits::unfinished(job), job.id)?)
        };
        if let Some(earlier) = earlier {
            self.leave(earlier);
        }
        self.enter(connection, job)
    }

    /// A job is removed from the tables.
    pub fn leave(&mut self, bucket: i64) {
        self.changes.entry(bucket).or_insert(Change { jobs: 0, ids: None }).jobs -= 1;
    }

    /// Writes down what has changed. What nobody is in any more is dropped where `drops`, to make room.
    pub fn write(&mut self, connection: &Connection, drops: bool) -> Result<(), StoreError> {
        let count = "-- name count_bucket\nUPDATE buckets SET jobs = jobs + ? WHERE id = ?";
        let widen = "-- name widen_bucket
            UPDATE buckets SET jobs = jobs + ?2, oldest = iif(jobs = 0, ?3, MIN(oldest, ?3)),
                newest = iif(jobs = 0, ?4, MAX(newest, ?4))
            WHERE id = ?1";
        let mut count = connection.prepare_cached(count).map_err(unavailable)?;
        let mut widen = connection.prepare_cached(widen).map_err(unavailable)?;
        for (bucket, change) in std::mem::take(&mut self.changes) {
            if bucket == SHARED {
                self.is_sharing = None;
            }
            match change.ids {
                Some((oldest, newest)) => {
                    widen.execute(params![bucket, change.jobs, oldest.as_bytes(), newest.as_bytes()])
                }
                None => count.execute([change.jobs, bucket]),
            }
            .map_err(unavailable)?;
            if drops && change.jobs < 0 && drop_if_empty(connection, bucket)? {
                self.forget();
            }
        }
        Ok(())
    }

    /// What is known may be wrong: a transaction was rolled back, or a bucket was dropped.
    pub fn forget(&mut self) {
        *self = Buckets::up_to(self.most);
    }

    fn bucket(&mut self, connection: &Connection, traits: Traits, id: JobId) -> Result<i64, StoreError> {
        if let Some(bucket) = self.known.get(&traits) {
            return Ok(*bucket);
        }
        let bucket = match find(connection, &traits)? {
            Some(bucket) => bucket,
            None if self.has_room(connection)? => {
                self.count = self.count.map(|count| count + 1);
                make(connection, &traits, id)?
            }
            None => {
                self.is_sharing = Some(true);
                return Ok(SHARED);
            }
        };
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(traits, bucket);
        Ok(bucket)
    }

    fn has_room(&mut self, connection: &Connection) -> Result<bool, StoreError> {
        let count = match self.count {
            Some(count) => count,
            None => number(connection, "-- name count_buckets\nSELECT COUNT(*) FROM buckets")?,
        };
        self.count = Some(count);
        Ok(count < self.most)
    }

    fn is_sharing(&mut self, connection: &Connection) -> Result<bool, StoreError> {
        let is_sharing = match self.is_sharing {
            Some(is_sharing) => is_sharing,
            None => shared_jobs(connection)? > 0,
        };
        self.is_sharing = Some(is_sharing);
        Ok(is_sharing)
    }
}

/// How many jobs share a bucket because there are too many others.
pub(super) fn shared_jobs(connection: &Connection) -> Result<u64, StoreError> {
    number(connection, "-- name shared_bucket\nSELECT jobs FROM buckets WHERE id = 0")
}

/// Drops all buckets without jobs.
pub(super) fn drop_empty(connection: &Connection) -> Result<(), StoreError> {
    let delete = "-- name drop_empty_buckets\nDELETE FROM buckets WHERE jobs = 0 AND id <> 0";
    connection.execute(delete, []).map_err(unavailable)?;
    Ok(())
}

/// Drops this bucket if it has no jobs; tells whether it had none.
fn drop_if_empty(connection: &Connection, bucket: i64) -> Result<bool, StoreError> {
    let delete = "-- name drop_empty_bucket\nDELETE FROM buckets WHERE id = ? AND jobs = 0 AND id <> 0";
    let mut delete = connection.prepare_cached(delete).map_err(unavailable)?;
    Ok(delete.execute([bucket]).map_err(unavailable)? > 0)
}

/// The bucket of a job in the tables.
fn stored(connection: &Connection, id: JobId) -> Result<Option<i64>, StoreError> {
    let select = "-- name bucket_of\nSELECT bucket FROM jobs WHERE id = ?";
    let mut select = connection.prepare_cached(select).map_err(unavailable)?;
    Ok(select.query_row([id.as_bytes()], |row| row.get(0)).optional().map_err(unavailable)?.flatten())
}

fn find(connection: &Connection, traits: &Traits) -> Result<Option<i64>, StoreError> {
    let select = "-- name find_bucket
        SELECT id FROM buckets
        WHERE owner = ? AND channel = ? AND func = ? AND broadcast = ? AND status = ? AND runner_id = ? AND id <> 0";
    let mut select = connection.prepare_cached(select).map_err(unavailable)?;
    let Traits { owner, channel, func, broadcast, status, runner_id } = traits;
    let runner_id = runner_id.as_deref().unwrap_or_default();
    let parameters = params![&**owner, &**channel, &**func, broadcast, status, runner_id];
    select.query_row(parameters, |row| row.get(0)).optional().map_err(unavailable)
}

fn make(connection: &Connection, traits: &Traits, id: JobId) -> Result<i64, StoreError> {
    let insert = "-- name make_bucket
        INSERT INTO buckets (owner, channel, func, broadcast, status, runner_id, jobs, oldest, newest)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7, ?7)";
    let mut insert = connection.prepare_cached(insert).map_err(unavailable)?;
    let Traits { owner, channel, func, broadcast, status, runner_id } = traits;
    let runner_id = runner_id.as_deref().unwrap_or_default();
    let parameters = params![&**owner, &**channel, &**func, broadcast, status, runner_id, id.as_bytes()];
    insert.execute(parameters).map_err(unavailable)?;
    Ok(connection.last_insert_rowid())
}

fn number(connection: &Connection, select: &str) -> Result<u64, StoreError> {
    let mut select = connection.prepare_cached(select).map_err(unavailable)?;
    let number: i64 = select.query_row([], |row| row.get(0)).map_err(unavailable)?;
    u64::try_from(number).map_err(|_| StoreError::Corrupt("table buckets, column jobs".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Input, JobSpec, Step, Timestamp, create, step},
        store::sqlite::{connect, overlay::Change as Changed, schema, tables},
    };

    const NOW: Timestamp = Timestamp(1_700_000_000_000_000);

    fn created(number: u128, func: &str) -> Step {
        let spec = JobSpec { func: func.into(), ..JobSpec::sample() };
        create(JobId(uuid::Uuid::from_u128(number)), spec, "ann".into(), NOW).expect("a job")
    }

    fn canceled(earlier: &Step) -> Step {
        step(&earlier.job, Input::Cancel, NOW, 0).expect("an end")
    }

    struct Bench {
        connection: Connection,
        buckets: Buckets,
        _folder: tempfile::TempDir,
    }

    impl Bench {
        fn new(most: u64) -> Bench {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("jobs.db");
            std::fs::write(&path, "").expect("a file");
            let mut connection = connect(&path, false).expect("a connection");
            schema::migrate(&mut connection).expect("a schema");
            Bench { connection, buckets: Buckets::up_to(most), _folder: folder }
        }

        fn take_in(&mut self, step: &Step) {
            let changes = [Changed::of(step, step.expected.is_some())];
            tables::take_in(&self.connection, &mut self.buckets, &changes, None).expect("a change");
        }

        /// Of each bucket with jobs or without: whether it is the shared one, its function, its status and its jobs.
        fn all(&self) -> Vec<(bool, String, i32, i64)> {
            let mut select = self
                .connection
                .prepare("SELECT id = 0, func, status, jobs FROM buckets ORDER BY id")
                .expect("a statement");
            let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)));
            rows.expect("rows").collect::<Result<_, _>>().expect("buckets")
        }
    }

    #[test]
    fn a_job_goes_from_one_bucket_to_another_as_it_ends() {
        let mut bench = Bench::new(9);
        let first = created(1, "a");
        bench.take_in(&first);
        bench.take_in(&created(2, "a"));
        bench.take_in(&canceled(&first));
        let [shared, unfinished, ended] = [(true, "", 0, 0), (false, "a", 0, 1), (false, "a", 4, 1)]
            .map(|(shared, func, status, jobs)| (shared, func.to_owned(), status, jobs));
        assert_eq!(bench.all(), [shared.clone(), unfinished.clone(), ended]);
        tables::delete(&bench.connection, &mut bench.buckets, first.job.id, 2).expect("a deletion");
        assert_eq!(bench.all(), [shared, unfinished]);
    }

    #[test]
    fn where_there_are_too_many_jobs_share_one() {
        let mut bench = Bench::new(2);
        let (first, second) = (created(1, "a"), created(2, "b"));
        bench.take_in(&first);
        bench.take_in(&second);
        let shared = |jobs| (true, String::new(), 0, jobs);
        let of_first = |jobs| (false, "a".to_owned(), 0, jobs);
        assert_eq!(bench.all(), [shared(1), of_first(1)]);
        bench.take_in(&canceled(&second));
        assert_eq!(bench.all(), [shared(1), of_first(1)]);
        bench.take_in(&canceled(&first));
        assert_eq!(bench.all(), [shared(2), of_first(0)]);
        // There is room again once a bucket that is empty has gone, and who shares stays where it is.
        drop_empty(&bench.connection).expect("a look");
        bench.buckets.forget();
        bench.take_in(&created(3, "c"));
        assert_eq!(bench.all(), [shared(2), (false, "c".to_owned(), 0, 1)]);
    }
}
