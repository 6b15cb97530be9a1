//! Errors as REST spells them: the only place where a gRPC status becomes an HTTP one.

use axum::{
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use tonic::Code;
use tonic_types::StatusExt;

/// The core's reason for a payload over the limit.
const PAYLOAD_TOO_LARGE: &str = "PAYLOAD_TOO_LARGE";

/// An answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub code: StatusCode,
    /// One sentence.
    pub error: String,
}

impl Problem {
    pub fn new(code: StatusCode, error: impl Into<String>) -> Problem {
        Problem { code, error: error.into() }
    }

    /// The request is at fault; the sentence says how.
    pub fn invalid(error: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, error)
    }

    /// A field or parameter is at fault.
    pub fn field(name: &str, wanted: &str) -> Problem {
        Problem::invalid(format!("Invalid {name}: {wanted}"))
    }

    pub fn unauthenticated() -> Problem {
        Problem::new(StatusCode::UNAUTHORIZED, "Authentication required")
    }

    pub fn late() -> Problem {
        Problem::new(StatusCode::GATEWAY_TIMEOUT, "The job service did not answer in time")
    }

    pub fn internal() -> Problem {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal error")
    }

    pub fn unreachable() -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "The job service cannot be reached")
    }
}

impl From<tonic::Status> for Problem {
    fn from(status: tonic::Status) -> Problem {
        let reason = status.get_details_error_info().map(|info| info.reason);
        let code = match status.code() {
            Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => StatusCode::BAD_REQUEST,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::AlreadyExists => StatusCode::CONFLICT,
            Code::ResourceExhausted if reason.as_deref() == Some(PAYLOAD_TOO_LARGE) => StatusCode::PAYLOAD_TOO_LARGE,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::DeadlineExceeded => return Problem::late(),
            // A reason comes from the core itself; without one, the transport speaks, and its words are not for users.
            Code::Unavailable if reason.is_some() => StatusCode::SERVICE_UNAVAILABLE,
            Code::Unavailable | Code::Unknown | Code::Cancelled => {
                tracing::warn!(error = %status, "the core could not be reached");
                return Problem::unreachable();
            }
            _ => {
                tracing::error!(error = %status, "the core answered with an internal error");
                return Problem::internal();
            }
        };
        Problem::new(code, status.message())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "status": false, "error": self.error, "code": self.code.as_u16() }).to_string();
        let json = HeaderValue::from_static("application/json");
        (self.code, [(CONTENT_TYPE, json)], body).into_response()
    }
}
