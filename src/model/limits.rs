//! Every limit a user can meet, in one place. Those that an operator may want otherwise are in [`Limits`].

use std::time::Duration;

/// The longest channel name.
pub const CHANNEL_MAX: usize = 100;
/// The longest function name, in characters.
pub const FUNC_MAX: usize = 255;
/// The longest idempotency key, in characters.
pub const IDEMPOTENCY_KEY_MAX: usize = 255;
/// The longest runner id.
pub const RUNNER_ID_MAX: usize = 64;
/// The most channels one runner may take from.
pub const RUNNER_CHANNELS_MAX: usize = 100;
/// The most executions one runner may hold at once.
pub const RUNNER_CAPACITY_MAX: u32 = 10_000;
/// The longest error text kept of a failure, in bytes; the rest is cut.
pub const ERROR_MAX: usize = 16 * 1024;
/// The longest stack trace kept of a failure, in bytes; the rest is cut.
pub const STACK_TRACE_MAX: usize = 64 * 1024;
/// The largest metadata a job function may report, in bytes.
pub const METADATA_MAX: usize = 256 * 1024;
/// The most log lines in one Progress message.
pub const LOG_LINES_MAX: usize = 1_000;
/// The longest log message, in bytes; the rest is cut.
pub const LOG_MESSAGE_MAX: usize = 16 * 1024;
/// The most jobs on one page of a list.
pub const PAGE_MAX: u32 = 1_000;
/// The page size where none is asked for.
pub const PAGE_DEFAULT: u32 = 100;
/// The most retries a job may ask for.
pub const MAX_RETRIES_MAX: u32 = 1_000_000;
/// The longest delay or expiry, in seconds: 100 years of 365 days.
pub const SECONDS_MAX: u32 = 100 * 365 * 24 * 3600;
/// The most events of a job that are answered at once.
pub const EVENTS_MAX: u32 = 10_000;

/// Limits an operator may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest payload, in bytes. A result may be as large.
    pub payload_max_bytes: usize,
    /// The most jobs in one PublishJobs.
    pub batch_max: usize,
    /// The largest gRPC message taken, in bytes.
    pub message_max_bytes: usize,
    /// The most runners attached at once.
    pub sessions_max: usize,
    /// The most gRPC calls in progress at once.
    pub calls_max: usize,
    /// The most writes waiting for their commit.
    pub pending_writes_max: usize,
    /// Jobs kept ready in memory for each channel; the rest waits in the store.
    pub window_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            payload_max_bytes: 1 << 20,
            batch_max: 1_000,
            message_max_bytes: 16 << 20,
            sessions_max: 10_000,
            calls_max: 10_000,
            pending_writes_max: 16_384,
            window_max: 10_000,
        }
    }
}

/// How long jobs that have ended are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Since they finished; `None`: for ever.
    pub keep_for: Option<Duration>,
    /// How many; beyond it the oldest go. `None`: any number.
    pub keep_max: Option<u64>,
}

impl Default for Retention {
    fn default() -> Retention {
        Retention { keep_for: Some(Duration::from_secs(7 * 24 * 3_600)), keep_max: None }
    }
}
