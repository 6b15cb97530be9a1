//! What goes wrong for a client, by what can be done about it.

use std::process::ExitCode;

use errand_client::{Dialer, EndpointError, session::SessionError};
use tonic::{Code, Status};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The service said no, or the job did not complete.
    #[error("{0}")]
    Failed(String),
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// There is no service.
    #[error("{0}")]
    Unreachable(String),
}

impl ClientError {
    /// 1 refused or failed, 64 (EX_USAGE) and 69 (EX_UNAVAILABLE) as sysexits.h has them.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 64,
            Self::Unreachable(_) => 69,
        }
    }

    /// Explains what the service answered, and names the remedy.
    pub fn refusal(status: &Status, servers: &Dialer) -> Self {
        let (message, names) = (status.message(), servers.names());
        match status.code() {
            Code::Unauthenticated if !servers.has_token() => Self::Failed(
                "the service wants a token: set --token or ERRAND_TOKEN; `errand token --subject NAME` prints one"
                    .to_owned(),
            ),
            Code::Unauthenticated => Self::Failed(format!(
                "the service refused the token ({message}): `errand token --subject NAME` prints another"
            )),
            Code::PermissionDenied => Self::Failed(format!(
                "{message}; `errand token --subject NAME --permission P` prints a token that may do more"
            )),
            Code::Unimplemented => Self::Failed(format!("{names} is no Errand service, or an older one")),
            Code::Unavailable | Code::DeadlineExceeded => {
                Self::Unreachable(format!("the service at {names} does not answer: {message}"))
            }
            code if message.is_empty() => Self::Failed(format!("the service refused: {code}")),
            _ => Self::Failed(message.to_owned()),
        }
    }

    /// Explains why a runner could not start.
    pub fn runner(error: SessionError, servers: &Dialer) -> Self {
        match error {
            SessionError::Refused(status) => Self::refusal(&status, servers),
            SessionError::Taken { .. } => Self::Failed(format!("{error}; --runner-id chooses another")),
            SessionError::Thread(_) => Self::Failed(error.to_string()),
        }
    }
}

impl From<errand_client::Error> for ClientError {
    fn from(error: errand_client::Error) -> Self {
        match error {
            errand_client::Error::Invalid(message) => Self::Usage(message),
            errand_client::Error::Unavailable(message) => Self::Unreachable(message),
            error => Self::Failed(error.to_string()),
        }
    }
}

impl From<EndpointError> for ClientError {
    fn from(error: EndpointError) -> Self {
        match error {
            EndpointError::Invalid(message) => Self::Usage(message),
            EndpointError::Unreachable { .. } => Self::Unreachable(format!(
                "{error}; is `errand serve` running there? --server or ERRAND_SERVER names another"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use errand_client::Servers;

    fn servers(token: Option<&str>) -> Dialer {
        Servers::at("h:1").token(token.unwrap_or_default()).dialer().unwrap()
    }

    #[test]
    fn exit_codes_tell_refusals_usage_and_absence_apart() {
        let code = |status: Status| ClientError::refusal(&status, &servers(None)).code();
        assert_eq!(code(Status::not_found("Job not found")), 1);
        assert_eq!(code(Status::unavailable("gone")), 69);
        assert_eq!(ClientError::from(EndpointError::Invalid("x".to_owned())).code(), 64);
    }

    #[test]
    fn a_missing_token_names_the_remedy() {
        let error = ClientError::refusal(&Status::unauthenticated("Authentication required"), &servers(None));
        assert!(error.to_string().contains("ERRAND_TOKEN"));
        let error = ClientError::refusal(&Status::unauthenticated("Token expired"), &servers(Some("t")));
        assert!(error.to_string().contains("Token expired"));
    }
}
