//! Logs, to standard error: standard output carries the ready line and nothing else.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{ConfigError, LogFormat};

/// Redis's driver tells of every attempt in vain, twenty times a second; the link tells of a loss once. Who names it in a
/// filter hears it all the same.
const QUIET: &str = "redis=off";

/// Logs from here on. `filter` is what [`crate::config::Config`] has checked.
pub fn init(format: LogFormat, filter: &str) -> Result<(), ConfigError> {
    let filter =
        EnvFilter::try_new(format!("{QUIET},{filter}")).map_err(|error| ConfigError(format!("log_level: {error}")))?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|_| ConfigError(String::from("logging was started twice in one process")))
}
