//! What goes wrong for a publisher, by what can be done about it.

use tonic::{Code, Status};

use crate::{EndpointError, JobStatus, endpoint::innermost};

/// Why a call did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for cannot be; the text names the field at fault.
    #[error("{0}")]
    Invalid(String),
    /// No token, or one that does not allow this.
    #[error("{0}")]
    Denied(String),
    /// There is no such job, or it is somebody else's.
    #[error("{0}")]
    NotFound(String),
    /// The job is in no state for this, or its idempotency key was used for something else.
    #[error("{0}")]
    Refused(String),
    /// The service has no room for it; later it may. A payload over the limit never will.
    #[error("{0}")]
    Busy(String),
    /// No server answers.
    #[error("{0}")]
    Unavailable(String),
    /// The service failed.
    #[error("{0}")]
    Internal(String),
    /// The job has no result.
    #[error("job {job_id} is {status:?}: {error}")]
    NotCompleted { job_id: String, status: JobStatus, error: String },
    /// JSON that is not what it was read as, or a value that JSON cannot say.
    #[error("the {what} of job {job_id} is not what was expected: {source}")]
    Json { what: &'static str, job_id: String, source: serde_json::Error },
}

impl From<EndpointError> for Error {
    fn from(error: EndpointError) -> Self {
        match error {
            EndpointError::Invalid(message) => Self::Invalid(message),
            EndpointError::Unreachable { .. } => Self::Unavailable(error.to_string()),
        }
    }
}

/// True where the connection broke, or was never there: a server's own answer has no error beneath it.
pub(crate) fn is_broken_off(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => true,
        Code::Unknown | Code::Internal | Code::Cancelled => std::error::Error::source(status).is_some(),
        _ => false,
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        if status.code() != Code::Unavailable && is_broken_off(&status) {
            return Self::Unavailable(format!("the connection broke: {}", innermost(&status)));
        }
        let message = match status.message() {
            "" => status.code().to_string(),
            message => message.to_owned(),
        };
        match status.code() {
            Code::InvalidArgument | Code::OutOfRange => Self::Invalid(message),
            Code::Unauthenticated | Code::PermissionDenied => Self::Denied(message),
            Code::NotFound => Self::NotFound(message),
            Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => Self::Refused(message),
            Code::ResourceExhausted => Self::Busy(message),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Self::Unavailable(message),
            _ => Self::Internal(message),
        }
    }
}
