//! Progress on its way: what running executions reported and the session has not said yet.
//!
//! Executions never wait here and the session never polls: an execution that has something to say stands in line
//! once, and the session takes what has gathered by then. So lines batch by themselves and metadata that was
//! overwritten before it could be sent is never sent. What does not fit is handed back.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use errand_proto::v1::{LogLine, Progress};
use tokio::sync::Notify;

use super::ledger::LeaseKey;

/// Log lines of one execution that may wait for the session, e.g. while there is no connection.
const LINES_MAX: usize = 10_000;
/// Their bytes.
const BYTES_MAX: usize = 1024 * 1024;
/// Lines in one message; the service takes 1,000.
const MESSAGE_LINES_MAX: usize = 500;
/// Bytes of lines in one message, unless a single line is longer.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// The executions that have something to say, each of them once.
#[derive(Debug, Default)]
pub(super) struct Reports {
    due: Mutex<VecDeque<LeaseKey>>,
    notify: Notify,
}

impl Reports {
    /// The next execution that has something to say. Cancel-safe: nothing is awaited once it was taken.
    pub(super) async fn due(&self) -> LeaseKey {
        loop {
            let next = lock(&self.due).pop_front();
            match next {
                Some(key) => return key,
                None => self.notify.notified().await,
            }
        }
    }

    fn push(&self, key: LeaseKey) {
        lock(&self.due).push_back(key);
        self.notify.notify_one();
    }
}

#[derive(Debug, Default)]
struct Pending {
    lines: VecDeque<LogLine>,
    bytes: usize,
    metadata: Option<String>,
    last_metadata: Option<String>,
    /// Stands in line.
    is_due: bool,
}

/// Takes logs and metadata of one execution; may be handed to a task or thread beside it.
#[derive(Clone, Debug)]
pub struct Reporter {
    key: LeaseKey,
    pending: Arc<Mutex<Pending>>,
    reports: Arc<Reports>,
}

impl Reporter {
    pub(super) fn new(key: LeaseKey, reports: Arc<Reports>) -> Self {
        Self { key, pending: Arc::default(), reports }
    }

    /// Hands the lines over, all of them, or hands them back where too many wait already.
    pub fn try_log(&self, lines: Vec<LogLine>) -> Result<(), Vec<LogLine>> {
        let bytes: usize = lines.iter().map(size).sum();
        let mut pending = lock(&self.pending);
        let fits = pending.lines.len() + lines.len() <= LINES_MAX && pending.bytes + bytes <= BYTES_MAX;
        // One that is too long for an empty buffer would never fit.
        if !fits && !pending.lines.is_empty() {
            return Err(lines);
        }
        pending.bytes += bytes;
        pending.lines.extend(lines);
        self.stand_in_line(pending);
        Ok(())
    }

    /// Replaces the job's metadata, a JSON object. The last one is never lost: it goes with the result as well.
    pub fn set_metadata(&self, metadata_json: String) {
        let mut pending = lock(&self.pending);
        pending.metadata = Some(metadata_json.clone());
        pending.last_metadata = Some(metadata_json);
        self.stand_in_line(pending);
    }

    /// What has gathered, as much of it as one message takes; what is left stands in line again.
    pub(crate) fn take(&self) -> Option<Progress> {
        let mut pending = lock(&self.pending);
        pending.is_due = false;
        let (mut logs, mut bytes) = (Vec::new(), 0);
        while logs.len() < MESSAGE_LINES_MAX
            && let Some(line) = pending.lines.pop_front_if(|line| bytes == 0 || bytes + size(line) <= MESSAGE_BYTES_MAX)
        {
            bytes += size(&line);
            logs.push(line);
        }
        pending.bytes -= bytes;
        let metadata_json = pending.metadata.take();
        if !pending.lines.is_empty() {
            self.stand_in_line(pending);
        }
        let says_something = !logs.is_empty() || metadata_json.is_some();
        says_something.then(|| Progress { lease: Some((&self.key).into()), metadata_json, logs })
    }

    /// The metadata reported last.
    pub(crate) fn last_metadata(&self) -> Option<String> {
        mem::take(&mut lock(&self.pending).last_metadata)
    }

    fn stand_in_line(&self, mut pending: MutexGuard<'_, Pending>) {
        if !mem::replace(&mut pending.is_due, true) {
            drop(pending);
            self.reports.push(self.key.clone());
        }
    }
}

/// About what a line takes on the wire.
fn size(line: &LogLine) -> usize {
    32 + line.message.len() + line.meta_json.len()
}

/// Nothing here panics while it holds a lock; what a poisoned one guards is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn reporter() -> Reporter {
        Reporter::new(LeaseKey { job_id: "a".into(), attempt: 1 }, Arc::default())
    }

    fn lines(count: usize, bytes: usize) -> Vec<LogLine> {
        vec![LogLine { message: "x".repeat(bytes), ..LogLine::default() }; count]
    }

    #[test]
    fn metadata_that_was_overwritten_is_never_sent() {
        let reporter = reporter();
        reporter.set_metadata("{\"n\": 1}".to_owned());
        reporter.set_metadata("{\"n\": 2}".to_owned());
        assert_eq!(reporter.take().unwrap().metadata_json.unwrap(), "{\"n\": 2}");
        assert!(reporter.take().is_none());
        assert_eq!(reporter.last_metadata().unwrap(), "{\"n\": 2}");
    }

    #[test]
    fn many_lines_come_in_messages_of_bounded_size() {
        let reporter = reporter();
        reporter.try_log(lines(1_200, 10)).unwrap();
        let counts: Vec<_> = std::iter::from_fn(|| reporter.take()).map(|progress| progress.logs.len()).collect();
        assert_eq!(counts, [500, 500, 200]);
        reporter.try_log(lines(3, 60_000)).unwrap();
        assert_eq!(std::iter::from_fn(|| reporter.take()).count(), 3);
    }

    #[test]
    fn a_full_buffer_hands_back() {
        let reporter = reporter();
        reporter.try_log(lines(LINES_MAX, 1)).unwrap();
        assert_eq!(reporter.try_log(lines(1, 1)).unwrap_err().len(), 1);
    }

    #[test]
    fn an_execution_stands_in_line_once() {
        let reporter = reporter();
        reporter.set_metadata("{}".to_owned());
        reporter.try_log(lines(1, 1)).unwrap();
        assert!(reporter.reports.due().now_or_never().is_some());
        assert!(reporter.reports.due().now_or_never().is_none());
        reporter.take().unwrap();
        reporter.try_log(lines(1, 1)).unwrap();
        assert!(reporter.reports.due().now_or_never().is_some());
    }
}
