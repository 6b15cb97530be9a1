//! Between the wire and the model: the only place that knows both.
//!
//! What comes in is parsed into types that cannot hold a wrong value, or refused by the name of its field; what goes
//! out cannot fail.

mod command;
mod event;
mod health;
mod job;
mod list;
mod runner;
mod spec;

pub use command::{order, ping_to_wire};
pub use event::{event_to_wire, log_to_wire};
pub use health::{channel_health_to_wire, stats_to_wire, system_health_to_wire};
pub use job::{job_id, job_to_wire};
pub use list::{job_list, log_list};
pub use runner::{from_runner, hello, presence_to_wire, reply_to_wire, to_runner};
pub use spec::{overrides, receipt, spec};

use std::time::Duration;

use crate::model::{Invalid, Timestamp};

/// How long a command waits for replies where the caller says nothing.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);
/// The longest a command may wait for replies.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// A time as the model has it, in whole microseconds.
fn time_to_wire(at: Timestamp) -> prost_types::Timestamp {
    let nanos = i32::try_from(at.0.rem_euclid(1_000_000) * 1_000).unwrap_or(0);
    prost_types::Timestamp { seconds: at.0.div_euclid(1_000_000), nanos }
}

/// A time from 1970 to 9999; fractions of a microsecond are dropped.
fn time(field: &'static str, at: prost_types::Timestamp) -> Result<Timestamp, Invalid> {
    let refusal = || Invalid::new(field, "must be a time between 1970 and 9999");
    let micros = at.seconds.checked_mul(1_000_000).ok_or_else(refusal)?;
    let in_range = (0..=Timestamp::MAX.0).contains(&micros) && (0..1_000_000_000).contains(&at.nanos);
    if in_range { Ok(Timestamp(micros + i64::from(at.nanos) / 1_000)) } else { Err(refusal()) }
}

/// Like [`time`], with 1970 for whatever lies before.
fn time_or_earliest(field: &'static str, at: prost_types::Timestamp) -> Result<Timestamp, Invalid> {
    if at.seconds < 0 && (0..1_000_000_000).contains(&at.nanos) { Ok(Timestamp(0)) } else { time(field, at) }
}

fn duration_to_wire(duration: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0) }
}

/// How long to wait for replies: 2 s if absent, 60 s at most.
pub fn timeout(wire: Option<prost_types::Duration>) -> Result<Duration, Invalid> {
    let Some(wire) = wire else { return Ok(TIMEOUT_DEFAULT) };
    match Duration::try_from(wire) {
        Ok(timeout) if timeout <= TIMEOUT_MAX => Ok(timeout),
        _ => Err(Invalid::new("timeout", "must be 0 to 60 seconds")),
    }
}

/// `None` for an empty text, which is how proto3 spells absence.
pub fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// At most `bytes_max` of the text, never half a character.
fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

/// The caller's W3C trace context in version 00, or empty where it has none of that form.
pub fn traceparent(metadata: &tonic::metadata::MetadataMap) -> String {
    let header = metadata.get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if is_traceparent(header) { header.to_owned() } else { String::new() }
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, lower case, neither id all zeros.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace_id, span_id, flags] = parts[..] else { return false };
    let is_hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |part: &str, length: usize| is_hex(part, length) && part.bytes().any(|b| b != b'0');
    version == "00" && is_id(trace_id, 32) && is_id(span_id, 16) && is_hex(flags, 2)
}

#[cfg(test)]
mod tests;
