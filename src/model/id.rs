//! Job ids.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasherDefault, Hasher},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Timestamp;

/// A UUIDv7, spelt as 32 lowercase hex digits, so ids sort by creation time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(pub Uuid);

impl JobId {
    /// The 16 bytes in order of significance: they sort as the ids do.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The lowest id of those that are made at `at` or later: an id starts with 48 bits of milliseconds.
    pub fn first_made_at(at: Timestamp) -> JobId {
        let millis = u128::try_from(at.0.div_euclid(1_000)).unwrap_or(0);
        JobId(Uuid::from_u128(millis << 80))
    }

    /// An id above those of all jobs that were created at `at` or earlier: see [`JobId::made_at`].
    pub fn first_made_behind(at: Timestamp) -> JobId {
        JobId::first_made_at(Timestamp(at.0.saturating_add(1_000)))
    }

    /// The id right before this one; the lowest has none before it.
    pub fn previous(&self) -> JobId {
        JobId(Uuid::from_u128(self.0.as_u128().saturating_sub(1)))
    }

    /// When it was made, to the millisecond. Its job was not created before that.
    pub fn made_at(&self) -> Timestamp {
        let millis = i64::try_from(self.0.as_u128() >> 80).unwrap_or(0);
        Timestamp(millis * 1_000)
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

/// Values by job.
pub type IdMap<V> = HashMap<JobId, V, BuildHasherDefault<IdHasher>>;

/// Hashes ids, and what has an id in it. The ids are made by the service, and their last bits at random, so nobody can
/// choose some that collide.
#[derive(Debug, Default, Clone, Copy)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            // The golden ratio in 64 bits: an odd number without a pattern, so that every bit reaches the highest ones.
            self.0 = (self.0.rotate_left(29) ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn finish(&self) -> u64 {
        // The map takes the lowest bits as well as the highest.
        self.0 ^ self.0 >> 32
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
