//! What a publisher says of a job, and the rules it must keep.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::{Expiry, Timestamp, limits};

/// When a job should first run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Now,
    In(u32),
    At(Timestamp),
}

/// A checked specification: [`JobSpec::check`] is the only way from a draft to a job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobSpec {
    pub func: Arc<str>,
    /// A JSON object, spelt as the publisher spelt it.
    pub payload: Arc<str>,
    pub channel: Arc<str>,
    pub start: Start,
    pub expiry: Expiry,
    pub max_retries: u32,
    pub backoff_base: f64,
    pub backoff_max_seconds: u32,
    pub broadcast: bool,
    pub max_exec_seconds: Option<u32>,
    pub idempotency_key: Option<Arc<str>>,
    pub priority: i32,
    pub traceparent: String,
    /// Hash of all of the above but the trace; equal for equal content.
    pub fingerprint: [u8; 16],
}

/// One field is at fault. The sentence names it and what is wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    pub field: &'static str,
    /// True where the value is fine but too large to take.
    pub too_large: bool,
    pub message: String,
}

impl Invalid {
    pub fn new(field: &'static str, wanted: impl std::fmt::Display) -> Invalid {
        Invalid { field, too_large: false, message: format!("Invalid {field}: {wanted}") }
    }
}

/// `max_retries` where the publisher gives none.
pub const MAX_RETRIES_DEFAULT: u32 = 3;
/// `backoff_base` where the publisher gives none.
pub const BACKOFF_BASE_DEFAULT: f64 = 2.0;
/// `backoff_max_seconds` where the publisher gives none.
pub const BACKOFF_MAX_DEFAULT: u32 = 3_600;
/// Seconds from the run time to the expiry where the publisher gives none.
pub const EXPIRES_IN_DEFAULT: u32 = 900;
/// The channel where the publisher names none.
pub const CHANNEL_DEFAULT: &str = "default";

#[cfg(test)]
impl JobSpec {
    /// What tests begin with: a job for the channel "a" that may start at once and fails for good.
    pub fn sample() -> JobSpec {
        JobSpec {
            func: "send".into(),
            payload: "{}".into(),
            channel: "a".into(),
            start: Start::Now,
            expiry: Expiry::Default,
            max_retries: 0,
            backoff_base: 2.0,
            backoff_max_seconds: 60,
            broadcast: false,
            max_exec_seconds: None,
            idempotency_key: None,
            priority: 0,
            traceparent: String::new(),
            fingerprint: [7; 16],
        }
    }
}

impl JobSpec {
    /// Checks every field but the relation of run time and expiry, which [`super::create`] checks against the clock.
    pub fn check(self, payload_max_bytes: usize) -> Result<JobSpec, Invalid> {
        check_func(&self.func)?;
        check_payload(&self.payload, payload_max_bytes)?;
        check_channel("channel", &self.channel)?;
        if let Start::In(seconds) = self.start {
            check_seconds("delay", seconds)?;
        }
        if let Expiry::In(seconds) = self.expiry {
            check_seconds("expires_in", seconds)?;
            if seconds == 0 {
                return Err(Invalid::new("expires_in", "must be after the run time"));
            }
        }
        if self.max_retries > limits::MAX_RETRIES_MAX {
            return Err(Invalid::new("max_retries", format_args!("must be at most {}", limits::MAX_RETRIES_MAX)));
        }
        if !(self.backoff_base.is_finite() && self.backoff_base >= 0.0) {
            return Err(Invalid::new("backoff_base", "must be a number of at least 0"));
        }
        check_seconds("backoff_max", self.backoff_max_seconds)?;
        if let Some(seconds) = self.max_exec_seconds {
            check_seconds("max_exec_seconds", seconds)?;
            if seconds == 0 {
                return Err(Invalid::new("max_exec_seconds", "must be at least 1"));
            }
        }
        if let Some(key) = &self.idempotency_key {
            let length = key.chars().count();
            if length == 0 || length > limits::IDEMPOTENCY_KEY_MAX {
                return Err(Invalid::new("idempotency_key", "must be 1 to 255 characters"));
            }
        }
        // Only jobs under a key are ever compared.
        let fingerprint = if self.idempotency_key.is_some() { self.content_hash() } else { [0; 16] };
        Ok(JobSpec { fingerprint, ..self })
    }

    fn content_hash(&self) -> [u8; 16] {
        let text = format!(
            "{}\n{}\n{:?}\n{:?}\n{}\n{}\n{}\n{}\n{:?}\n{}\n{}",
            self.func,
            self.channel,
            self.start,
            self.expiry,
            self.max_retries,
            self.backoff_base,
            self.backoff_max_seconds,
            self.broadcast,
            self.max_exec_seconds,
            self.priority,
            self.payload,
        );
        *uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, text.as_bytes()).as_bytes()
    }
}

fn check_func(func: &str) -> Result<(), Invalid> {
    let length = func.chars().count();
    if length == 0 {
        return Err(Invalid { field: "func", too_large: false, message: "missing required parameters: func".into() });
    }
    if length > limits::FUNC_MAX || func.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Invalid::new("func", "must be 1 to 255 characters without spaces or control characters"));
    }
    Ok(())
}

fn check_payload(payload: &str, max_bytes: usize) -> Result<(), Invalid> {
    if payload.len() > max_bytes {
        return Err(Invalid {
            field: "payload",
            too_large: true,
            message: format!("Payload exceeds maximum size of {max_bytes} bytes"),
        });
    }
    if payload.is_empty() {
        return Err(Invalid {
            field: "payload",
            too_large: false,
            message: "missing required parameters: payload".into(),
        });
    }
    check_object("payload", payload)
}

/// Checks that `text` is a JSON object.
pub fn check_object(field: &'static str, text: &str) -> Result<(), Invalid> {
    match serde_json::from_str::<&RawValue>(text) {
        Ok(value) if value.get().starts_with('{') => Ok(()),
        _ => Err(Invalid::new(field, "must be a JSON object")),
    }
}

/// Checks that `text` is any JSON value.
pub fn check_value(field: &'static str, text: &str) -> Result<(), Invalid> {
    match serde_json::from_str::<&RawValue>(text) {
        Ok(_) => Ok(()),
        Err(_) => Err(Invalid::new(field, "must be a JSON value")),
    }
}

/// Checks a channel's name: `[A-Za-z0-9_.-]{1,100}`.
pub fn check_channel(field: &'static str, channel: &str) -> Result<(), Invalid> {
    let fits = !channel.is_empty()
        && channel.len() <= limits::CHANNEL_MAX
        && channel.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if fits { Ok(()) } else { Err(Invalid::new(field, "must be 1 to 100 of the characters A-Z a-z 0-9 _ . -")) }
}

/// Checks a runner's id: `[A-Za-z0-9_.-]{1,64}`.
pub fn check_runner_id(runner_id: &str) -> Result<(), Invalid> {
    let fits = !runner_id.is_empty()
        && runner_id.len() <= limits::RUNNER_ID_MAX
        && runner_id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if fits { Ok(()) } else { Err(Invalid::new("runner_id", "must be 1 to 64 of the characters A-Z a-z 0-9 . _ -")) }
}

fn check_seconds(field: &'static str, seconds: u32) -> Result<(), Invalid> {
    if seconds > limits::SECONDS_MAX {
        return Err(Invalid::new(field, format_args!("must be at most {} seconds", limits::SECONDS_MAX)));
    }
    Ok(())
}
