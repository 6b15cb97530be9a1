//! The journal: what was answered as stored and is not in the tables yet.
//!
//! A record holds the steps of one commit, or names jobs that were removed. Writing it is one row and one wait for the disk, whatever the tables' indexes
//! would cost; the tables follow in the background, several changes of a job at once. A process that dies leaves a
//! journal, and the next one takes it in before anything else. Reading a record again changes nothing: a step that the
//! tables already have is known by its version.

use std::sync::Arc;

use super::codec::{Decoder, Encoder, unread};
use crate::model::{Hint, Job, JobEvent, JobId, Step};

/// The first byte of each record says what it holds; another format gets another number.
const STEPS: u8 = 1;
const REMOVALS: u8 = 2;

/// How a step begins: a new job whole, or what changed of one that was there.
const NEW: u8 = 0;
const CHANGED: u8 = 1;

/// A record of these steps, in order.
pub(super) fn record<'s>(steps: impl Iterator<Item = &'s Step>) -> Vec<u8> {
    let mut bytes = vec![STEPS];
    for step in steps {
        let mut encoder = Encoder(&mut bytes);
        match step.expected {
            None => {
                encoder.0.push(NEW);
                encoder.identity(&step.job);
            }
            Some(expected) => {
                encoder.0.push(CHANGED);
                encoder.id(step.job.id);
                encoder.number(expected);
            }
        }
        encoder.state(&step.job);
        encoder.optional(step.event.as_ref(), Encoder::event);
    }
    bytes
}

/// A record of jobs that are gone from the tables, whatever earlier records tell of them.
pub(super) fn removals(ids: &[JobId]) -> Vec<u8> {
    let mut bytes = vec![REMOVALS];
    ids.iter().for_each(|id| Encoder(&mut bytes).id(*id));
    bytes
}

/// The jobs that a record says are gone; `None`: the bytes are no record.
pub(super) fn removed(record: &[u8]) -> Option<Vec<JobId>> {
    let mut decoder = Decoder(record);
    let mut ids = Vec::new();
    if decoder.byte()? == REMOVALS {
        while !decoder.is_at_end() {
            ids.push(decoder.id()?);
        }
    }
    Some(ids)
}

/// A step as a record tells it.
pub(super) struct Entry {
    expected: Option<u32>,
    /// Of a job that was there, only the state is told.
    job: Job,
    event: Option<JobEvent>,
}

/// The steps of a record, in order; `None`: the bytes are no record.
pub(super) fn entries(record: &[u8]) -> Option<Vec<Entry>> {
    let mut decoder = Decoder(record);
    match decoder.byte()? {
        STEPS => {}
        REMOVALS => return Some(Vec::new()),
        _ => return None,
    }
    let mut entries = Vec::new();
    while !decoder.is_at_end() {
        let (expected, mut job) = match decoder.byte()? {
            NEW => (None, decoder.identity()?),
            CHANGED => {
                let id = decoder.id()?;
                (Some(decoder.number()?), unread(id))
            }
            _ => return None,
        };
        decoder.state(&mut job)?;
        let event = decoder.optional(|decoder| decoder.event(job.id, &job.channel))?;
        entries.push(Entry { expected, job, event });
    }
    Some(entries)
}

impl Entry {
    pub fn id(&self) -> JobId {
        self.job.id
    }

    /// The step, where it leads on from how the job stands; `None` where the job is past it, or gone.
    pub fn onto(self, stands: Option<&Job>) -> Option<Step> {
        let Entry { expected, job, mut event } = self;
        if stands.map(|job| job.version) != expected {
            return None;
        }
        let step = |job: Job, event| Step { expected, job: Arc::new(job), event, hint: Hint::None, arrives: false };
        let Some(stands) = stands else { return Some(step(job, event)) };
        if let Some(event) = &mut event {
            event.channel = stands.channel.clone();
        }
        let job = Job {
            version: job.version,
            status: job.status,
            run_at: job.run_at,
            ready_at: job.ready_at,
            expires_at: job.expires_at,
            attempt: job.attempt,
            releases: job.releases,
            cancel_requested: job.cancel_requested,
            runner_id: job.runner_id,
            last_error: job.last_error,
            stack_trace: job.stack_trace,
            metadata: job.metadata,
            result: job.result,
            modified: job.modified,
            started_at: job.started_at,
            finished_at: job.finished_at,
            event_seq: job.event_seq,
            ..stands.clone()
        };
        Some(step(job, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Expiry, Input, JobSpec, Start, Timestamp, create, step};

    fn story() -> Vec<Step> {
        let spec = JobSpec {
            func: "send".into(),
            payload: r#"{"ü":1}"#.into(),
            channel: "a".into(),
            start: Start::In(5),
            expiry: Expiry::In(60),
            max_retries: 3,
            backoff_base: 1.5,
            backoff_max_seconds: 60,
            broadcast: false,
            max_exec_seconds: Some(9),
            idempotency_key: Some("k".into()),
            priority: -7,
            traceparent: "00-1-2-03".into(),
            fingerprint: [7; 16],
        };
        let now = Timestamp(1_700_000_000_000_000);
        let id = JobId(uuid::Uuid::from_u128(1));
        let created = create(id, spec, "ann".into(), now).expect("a job");
        let later = now.plus_seconds(6);
        let claimed = step(&created.job, Input::Claim { runner_id: "r".into() }, later, 0).expect("a claim");
        let end = Input::Complete { attempt: 1, result: "1".into(), metadata: Some("{}".into()) };
        let ended = step(&claimed.job, end, later, 0).expect("an end");
        vec![created, claimed, ended]
    }

    /// Reads the record from how the job stands, and returns how it stands then, with the steps that led on.
    fn replayed(record: &[u8], mut stands: Option<Arc<Job>>) -> (Option<Arc<Job>>, usize) {
        let mut led_on = 0;
        for entry in entries(record).expect("a record") {
            if let Some(step) = entry.onto(stands.as_deref()) {
                stands = Some(step.job);
                led_on += 1;
            }
        }
        (stands, led_on)
    }

    #[test]
    fn a_record_tells_every_step_with_its_event() {
        let story = story();
        let mut stands: Option<Arc<Job>> = None;
        for (entry, step) in entries(&record(story.iter())).expect("a record").into_iter().zip(&story) {
            let told = entry.onto(stands.as_deref()).expect("it leads on");
            assert_eq!((&told.job, &told.event, told.expected), (&step.job, &step.event, step.expected));
            stands = Some(told.job);
        }
    }

    #[test]
    fn a_record_read_again_changes_nothing() {
        let story = story();
        let record = record(story.iter());
        let newest = story[2].job.clone();
        assert_eq!(replayed(&record, None), (Some(newest.clone()), 3));
        assert_eq!(replayed(&record, Some(story[1].job.clone())), (Some(newest.clone()), 1));
        assert_eq!(replayed(&record, Some(newest.clone())), (Some(newest), 0));
    }

    #[test]
    fn bytes_that_are_no_record_are_none() {
        let record = record(story().iter());
        for length in 0..record.len() {
            let is_whole = entries(&record[..length]).is_some_and(|entries| entries.len() == 3);
            assert!(!is_whole, "{length} of {} bytes", record.len());
        }
        assert!(entries(&[REMOVALS + 1]).is_none());
    }

    #[test]
    fn a_record_of_removals_tells_no_steps() {
        let ids = [3, 9].map(|number| JobId(uuid::Uuid::from_u128(number)));
        let record = removals(&ids);
        assert_eq!(removed(&record), Some(ids.to_vec()));
        assert_eq!(entries(&record).map(|entries| entries.len()), Some(0));
        assert_eq!(removed(&record[..20]), None);
        assert_eq!(removed(&super::record(story().iter())), Some(Vec::new()));
    }
}
