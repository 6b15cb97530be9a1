//! Removing jobs whose time is over: a few at a time between two commits, so that no commit waits long for it.
//!
//! The journal may still tell of a job that is removed: what one record tells leaves it together, when the last of it is in
//! the tables. A record of removals then stands behind it, and whoever reads the journal again leaves these jobs out.

use std::{
    sync::{PoisonError, RwLock},
    time::Duration,
};

use rusqlite::Connection;
use tokio::time::Instant;

use super::{Buckets, Desk, Overlay, Request, Writer, journal, tables};
use crate::{
    model::JobId,
    store::{Outdated, StoreError, ends::Ends, sqlite::tables::Removal},
};

/// How long a commit may have to wait for removals, what it takes to commit them not counted.
const SLICE_FOR: Duration = Duration::from_millis(2);

/// How far one slice came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::store::sqlite) struct Slice {
    /// Jobs that are done with, whether they are gone or stay.
    looked_at: usize,
    /// Jobs that are gone.
    jobs: u64,
}

impl Writer {
    /// Removes those of the jobs that are outdated, slice after slice; tells how many.
    pub async fn forget(&self, ids: &[JobId], outdated: Outdated) -> Result<u64, StoreError> {
        let mut jobs = 0;
        let mut rest = ids;
        while !rest.is_empty() && jobs < outdated.jobs_max {
            let outdated = Outdated { jobs_max: outdated.jobs_max - jobs, ..outdated };
            let slice = self.ask(|answer| Request::Forget(rest.to_vec(), outdated, answer)).await?;
            jobs += slice.jobs;
            rest = rest.get(slice.looked_at..).unwrap_or_default();
        }
        Ok(jobs)
    }
}

impl Desk {
    pub(super) fn forget(&mut self, ids: &[JobId], outdated: Outdated) -> Result<Slice, StoreError> {
        self.relaxed(|connection, overlay, buckets| slice(connection, overlay, buckets, ids, outdated))
    }
}

/// At least the first job, or some of what belongs to it.
fn slice(
    connection: &Connection,
    overlay: &RwLock<Overlay>,
    buckets: &mut Buckets,
    ids: &[JobId],
    outdated: Outdated,
) -> Result<Slice, StoreError> {
    let overlay = overlay.read().unwrap_or_else(PoisonError::into_inner);
    let started = Instant::now();
    let mut slice = Slice::default();
    let mut gone = Vec::new();
    let mut ended = Ends::default();
    for id in ids {
        if slice.jobs >= outdated.jobs_max || (slice.looked_at > 0 && started.elapsed() >= SLICE_FOR) {
            break;
        }
        // What is ahead of the tables has changed a moment ago; there will be another look at it.
        let is_ahead = |id| overlay.get(id).is_some();
        match tables::forget(connection, buckets, *id, outdated.finished_before, is_ahead)? {
            Removal::Stays => {}
            Removal::Done(status, ids) => {
                ended.add(status, -1);
                gone.extend(ids);
                slice.jobs += 1;
            }
            Removal::Begun => break,
        }
        slice.looked_at += 1;
    }
    tables::add_to_totals(connection, &ended)?;
    buckets.write(connection, true)?;
    if !gone.is_empty() && !overlay.is_empty() {
        tables::append_record(connection, &journal::removals(&gone))?;
    }
    Ok(slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Input, JobSpec, Step, Timestamp, create, step},
        store::sqlite::{writer::Mode, writer::take_in},
    };

    fn at(seconds: u32) -> Timestamp {
        Timestamp(1_700_000_000_000_000).plus_seconds(seconds)
    }

    fn story(number: u128) -> Vec<Step> {
        let created =
            create(JobId(uuid::Uuid::from_u128(number)), JobSpec::sample(), "ann".into(), at(0)).expect("a job");
        let claimed = step(&created.job, Input::Claim { runner_id: "r".into() }, at(1), 0).expect("a claim");
        let completed = Input::Complete { attempt: 1, result: String::new(), metadata: None };
        let ended = step(&claimed.job, completed, at(2), 0).expect("an end");
        vec![created, claimed, ended]
    }

    /// Both jobs stand in one record, which stays for as long as one of them is ahead of the tables.
    #[test]
    fn a_journal_that_is_read_again_brings_no_removed_job_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("jobs.db");
        let mut desk = Desk::open(&path);
        desk.commit(&[story(1), story(2)].concat(), Mode::Each).expect("a commit");
        let taken = desk
            .transaction(|connection, overlay, buckets| take_in(connection, overlay, buckets, 1))
            .expect("one of them");
        desk.changing(|overlay| overlay.remove_first(taken));
        let ids = [1, 2].map(|number| JobId(uuid::Uuid::from_u128(number)));
        let outdated = Outdated { finished_before: at(9), leisure: Duration::ZERO, jobs_max: 9 };
        assert_eq!(forget_all(&mut desk, &ids, outdated), 1);
        let is_ahead = |id| desk.looking(|overlay| overlay.get(id).is_some());
        let left: Vec<JobId> = ids.into_iter().filter(|id| is_ahead(*id)).collect();
        assert_eq!(left.len(), 1);
        drop(desk);

        let mut desk = Desk::open(&path);
        desk.replay().expect("the journal");
        let versions = ids.map(|id| tables::version(&desk.connection, id).expect("a version"));
        assert_eq!(versions.map(|version| version.is_some()), ids.map(|id| left.contains(&id)));
        assert_eq!(tables::records(&desk.connection).expect("records"), []);
        assert_eq!(forget_all(&mut desk, &ids, outdated), 1);
    }

    /// A busy machine needs several slices for what another does in one.
    fn forget_all(desk: &mut Desk, mut ids: &[JobId], outdated: Outdated) -> u64 {
        let mut jobs = 0;
        while !ids.is_empty() {
            let slice = desk.forget(ids, outdated).expect("a slice");
            jobs += slice.jobs;
            ids = &ids[slice.looked_at..];
        }
        jobs
    }
}
