//! How many jobs came to which end: what a store keeps so that nobody counts history.

use crate::model::{EventKind, Status, Step};

/// How many jobs that are no parts came to which end, or by how much that changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ends {
    pub completed: i64,
    pub failed: i64,
    pub canceled: i64,
    pub expired: i64,
}

impl Ends {
    /// A terminal job takes only one more step, the note that it was published anew, so any other step to a terminal status
    /// is that job's end.
    pub fn is_end(step: &Step) -> bool {
        let is_note = step.event.as_ref().is_some_and(|event| event.kind == EventKind::Retry);
        step.job.status.is_terminal() && step.job.parent_id.is_none() && !is_note
    }

    pub fn add(&mut self, status: Status, jobs: i64) {
        match status {
            Status::Pending | Status::Running => {}
            Status::Completed => self.completed += jobs,
            Status::Failed => self.failed += jobs,
            Status::Canceled => self.canceled += jobs,
            Status::Expired => self.expired += jobs,
        }
    }
}
