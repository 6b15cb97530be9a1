//! Why the service does not run, in one sentence for the operator, and the code that it exits with.

use crate::{config::ConfigError, data_dir::DataDirError};

/// Why the service does not run. What is displayed is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A bad command line or configuration.
    #[error("{0}")]
    Usage(String),
    /// Something the service stands on cannot be had: its data, its database, its addresses.
    #[error("{0}")]
    Unavailable(String),
    /// A part of the service died.
    #[error("{0}")]
    Internal(String),
}

impl StartError {
    /// As in sysexits.h: EX_USAGE, EX_UNAVAILABLE, EX_SOFTWARE.
    pub fn exit_code(&self) -> u8 {
        match self {
            StartError::Usage(_) => 64,
            StartError::Unavailable(_) => 69,
            StartError::Internal(_) => 70,
        }
    }
}

impl From<ConfigError> for StartError {
    fn from(error: ConfigError) -> StartError {
        StartError::Usage(error.to_string())
    }
}

impl From<DataDirError> for StartError {
    fn from(error: DataDirError) -> StartError {
        StartError::Unavailable(error.to_string())
    }
}
