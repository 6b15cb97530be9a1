//! What an operation of the engine may fail with, named by what the caller can do about it.

use crate::{
    model::{Invalid, access::Denied},
    store::StoreError,
};

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no such thing, as far as the caller may know.
    #[error("{0}")]
    NotFound(&'static str),
    #[error(transparent)]
    Denied(#[from] Denied),
    /// A token that is bound to channels was used for another.
    #[error("Permission denied: the token is not bound to channel {0}")]
    ChannelDenied(String),
    /// The thing is in a state that does not allow it.
    #[error("{0}")]
    Refused(String),
    /// A field is at fault.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Something else already has that name.
    #[error("{0}")]
    Conflict(String),
    /// A limit is reached; trying later may do.
    #[error("{0}")]
    Busy(&'static str),
    /// The database does not answer; trying later may do.
    #[error("the database is unavailable; try again")]
    Unavailable(#[source] StoreError),
    /// The service is going away.
    #[error("the service is shutting down; try again")]
    Draining,
    /// Stored data that no version writes.
    #[error("stored data is corrupt; the log says where")]
    Corrupt(#[source] StoreError),
}

impl From<StoreError> for EngineError {
    fn from(error: StoreError) -> EngineError {
        match error {
            StoreError::Unavailable(_) => EngineError::Unavailable(error),
            StoreError::Corrupt(_) => EngineError::Corrupt(error),
        }
    }
}

/// The answer for a job that is not there, or not the caller's to see.
pub const JOB_NOT_FOUND: EngineError = EngineError::NotFound("Job not found");
/// The answer for a runner that is not connected.
pub const RUNNER_NOT_FOUND: EngineError = EngineError::NotFound("Runner not found");
