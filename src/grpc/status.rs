//! From what went wrong to what the caller is told: the only place that makes a gRPC status.
//!
//! Every status carries a `google.rpc.ErrorInfo` of the domain `errand.v1` whose reason a program can match on. A
//! failure of the service itself is logged here, with its sources, which the caller never sees.

use std::{
    error::Error,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::HeaderMap;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::auth::Unauthenticated;
use crate::{engine::EngineError, model::Invalid};

const DOMAIN: &str = "errand.v1";
/// An unavailable database fails every call; one line in this time tells it.
const UNAVAILABLE_LOG_INTERVAL: Duration = Duration::from_secs(1);

impl From<EngineError> for Status {
    fn from(error: EngineError) -> Status {
        log(&error);
        let (code, reason) = match &error {
            EngineError::NotFound("Job not found") => (Code::NotFound, "JOB_NOT_FOUND"),
            EngineError::NotFound("Runner not found") => (Code::NotFound, "RUNNER_NOT_FOUND"),
            EngineError::NotFound(_) => (Code::NotFound, "NOT_FOUND"),
            EngineError::Denied(_) | EngineError::ChannelDenied(_) => (Code::PermissionDenied, "PERMISSION_DENIED"),
            EngineError::Refused(_) => (Code::FailedPrecondition, "FAILED_PRECONDITION"),
            EngineError::Invalid(invalid) => return refuse(invalid),
            EngineError::Conflict(_) => (Code::AlreadyExists, "ALREADY_EXISTS"),
            EngineError::Busy(_) => (Code::ResourceExhausted, "BUSY"),
            EngineError::Unavailable(_) => (Code::Unavailable, "UNAVAILABLE"),
            EngineError::Draining => (Code::Unavailable, "DRAINING"),
            EngineError::Corrupt(_) => (Code::Internal, "CORRUPT"),
        };
        status(code, reason, error.to_string())
    }
}

impl From<Invalid> for Status {
    fn from(invalid: Invalid) -> Status {
        refuse(&invalid)
    }
}

impl From<Unauthenticated> for Status {
    fn from(error: Unauthenticated) -> Status {
        status(Code::Unauthenticated, "UNAUTHENTICATED", error.to_string())
    }
}

/// A limit of calls is reached.
pub fn busy() -> Status {
    EngineError::Busy("too many calls at once; try again").into()
}

/// The caller's deadline has passed.
pub fn deadline_exceeded() -> Status {
    status(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "the deadline has passed".to_owned())
}

/// A handler panicked.
pub fn crashed() -> Status {
    status(Code::Internal, "INTERNAL", "internal error; the log says more".to_owned())
}

/// A handler was reached without anybody having been authenticated.
pub fn unguarded() -> Status {
    Unauthenticated::Missing.into()
}

/// What the transport refused before a handler saw it, told with a reason; `None` where the headers of an answer tell of no
/// refusal, or of one that has its reason.
pub fn explained(headers: &HeaderMap, message_max: usize) -> Option<Status> {
    let told = Status::from_header_map(headers).filter(|told| told.code() != Code::Ok && told.details().is_empty())?;
    Some(match told.code() {
        // The only bound that the transport keeps is that of a message.
        Code::OutOfRange => status(
            Code::ResourceExhausted,
            "TOO_LARGE",
            format!("a message exceeds the maximum of {message_max} bytes"),
        ),
        Code::Unimplemented => status(told.code(), "UNIMPLEMENTED", "there is no such call".to_owned()),
        // A message that does not parse, or is compressed in a way unknown here.
        Code::Internal => status(Code::InvalidArgument, "INVALID_ARGUMENT", "the message cannot be read".to_owned()),
        code => status(code, "REFUSED", told.message().to_owned()),
    })
}

fn status(code: Code, reason: &str, message: String) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, []);
    Status::with_error_details(code, message, details)
}

fn refuse(invalid: &Invalid) -> Status {
    let (code, reason) = match (invalid.too_large, invalid.field) {
        (false, _) => (Code::InvalidArgument, "INVALID_ARGUMENT"),
        (true, "payload") => (Code::ResourceExhausted, "PAYLOAD_TOO_LARGE"),
        (true, _) => (Code::ResourceExhausted, "TOO_LARGE"),
    };
    let field = [("field".to_owned(), invalid.field.to_owned())];
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, field);
    details.add_bad_request_violation(invalid.field, &invalid.message);
    Status::with_error_details(code, invalid.message.clone(), details)
}

fn log(error: &EngineError) {
    match error {
        EngineError::Corrupt(_) => tracing::error!(error = sources(error), "stored data is corrupt"),
        EngineError::Unavailable(_) if unavailable_log_is_due() => {
            tracing::warn!(error = sources(error), "the database is unavailable");
        }
        _ => {}
    }
}

fn unavailable_log_is_due() -> bool {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let due = last.is_none_or(|last| last.elapsed() >= UNAVAILABLE_LOG_INTERVAL);
    if due {
        *last = Some(Instant::now());
    }
    due
}

/// The error and what caused it, outermost first.
fn sources(error: &EngineError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::error::JOB_NOT_FOUND,
        model::access::{Denied, Permission},
        store::StoreError,
    };

    fn told(error: EngineError) -> (Code, String, String) {
        let status = Status::from(error);
        let info = status.get_details_error_info().expect("every status has an ErrorInfo");
        assert_eq!(info.domain, DOMAIN);
        (status.code(), info.reason, status.message().to_owned())
    }

    #[test]
    fn every_error_has_its_code_and_reason() {
        let cases = [
            (JOB_NOT_FOUND, Code::NotFound, "JOB_NOT_FOUND"),
            (EngineError::NotFound("Channel not found"), Code::NotFound, "NOT_FOUND"),
            (Denied(Permission::ManageJobs).into(), Code::PermissionDenied, "PERMISSION_DENIED"),
            (EngineError::ChannelDenied("a".into()), Code::PermissionDenied, "PERMISSION_DENIED"),
            (EngineError::Refused("no".into()), Code::FailedPrecondition, "FAILED_PRECONDITION"),
            (EngineError::Conflict("no".into()), Code::AlreadyExists, "ALREADY_EXISTS"),
            (EngineError::Busy("no"), Code::ResourceExhausted, "BUSY"),
            (EngineError::Draining, Code::Unavailable, "DRAINING"),
        ];
        for (error, code, reason) in cases {
            let message = error.to_string();
            assert_eq!(told(error), (code, reason.to_owned(), message));
        }
    }

    #[test]
    fn sources_are_never_told() {
        let secret = StoreError::Unavailable("disk of host db-7 is full".into());
        let (code, reason, message) = told(secret.into());
        assert_eq!((code, reason.as_str()), (Code::Unavailable, "UNAVAILABLE"));
        assert!(!message.contains("db-7"));
        let (code, _, message) = told(StoreError::Corrupt("jobs.status of row 7".into()).into());
        assert_eq!(code, Code::Internal);
        assert!(!message.contains("row 7"));
    }

    #[test]
    fn an_invalid_field_is_named() {
        let status = Status::from(Invalid::new("run_at", "must be a time"));
        assert_eq!(status.code(), Code::InvalidArgument);
        let info = status.get_details_error_info().expect("an ErrorInfo");
        assert_eq!(info.metadata.get("field").map(String::as_str), Some("run_at"));
        let request = status.get_details_bad_request().expect("a BadRequest");
        assert_eq!(request.field_violations[0].field, "run_at");
    }

    #[test]
    fn a_large_payload_exhausts() {
        let invalid = Invalid { field: "payload", too_large: true, message: "Payload exceeds it".into() };
        let (code, reason, _) = told(invalid.into());
        assert_eq!((code, reason.as_str()), (Code::ResourceExhausted, "PAYLOAD_TOO_LARGE"));
    }
}
