//! Job ids.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A UUIDv7, spelt as 32 lowercase hex digits, so ids sort by creation time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(pub Uuid);

impl JobId {
    /// The 16 bytes in order of significance: they sort as the ids do.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From 16 bytes; `None` for any other length.
    pub fn from_slice(bytes: &[u8]) -> Option<JobId> {
        Uuid::from_slice(bytes).ok().map(JobId)
    }

    /// The first and the last possible id that is spelt with this prefix; none where no id is.
    pub fn range_with_prefix(prefix: &str) -> Option<(JobId, JobId)> {
        let first = format!("{prefix:0<32}").parse().ok()?;
        let last = format!("{prefix:f<32}").parse().ok()?;
        Some((first, last))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.simple(), f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not the id of any job.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a job id is 32 hex digits")]
pub struct NotAnId;

impl FromStr for JobId {
    type Err = NotAnId;

    /// Accepts 32 hex digits of either case.
    fn from_str(text: &str) -> Result<JobId, NotAnId> {
        if text.len() != 32 {
            return Err(NotAnId);
        }
        Uuid::try_parse(text).map(JobId).map_err(|_| NotAnId)
    }
}
