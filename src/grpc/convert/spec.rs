//! What a publisher says of a job.

use errand_proto::v1::{self, job_spec};

use super::{given, time, time_or_earliest};
use crate::{
    engine::publish::{Overrides, Published},
    model::{Expiry, Invalid, JobSpec, Start, spec},
};

/// The specification with the defaults filled in, unchecked; the payload verbatim.
pub fn spec(wire: Option<v1::JobSpec>, traceparent: String) -> Result<JobSpec, Invalid> {
    let wire = wire.unwrap_or_default();
    let channel = if wire.channel.is_empty() { spec::CHANNEL_DEFAULT } else { &wire.channel };
    Ok(JobSpec {
        func: wire.func.into(),
        payload: wire.payload_json.into(),
        channel: channel.into(),
        start: start(wire.start)?.unwrap_or(Start::Now),
        expiry: expiry(wire.expiry)?.unwrap_or(Expiry::Default),
        max_retries: wire.max_retries.unwrap_or(spec::MAX_RETRIES_DEFAULT),
        backoff_base: wire.backoff_base.unwrap_or(spec::BACKOFF_BASE_DEFAULT),
        backoff_max_seconds: wire.backoff_max_seconds.unwrap_or(spec::BACKOFF_MAX_DEFAULT),
        broadcast: wire.broadcast.unwrap_or(false),
        max_exec_seconds: wire.max_exec_seconds,
        idempotency_key: given(wire.idempotency_key).map(Into::into),
        priority: wire.priority.unwrap_or(0),
        traceparent,
        fingerprint: [0; 16],
    })
}

/// The fields that replace a template's.
pub fn overrides(wire: Option<v1::JobSpec>, traceparent: String) -> Result<Overrides, Invalid> {
    let wire = wire.unwrap_or_default();
    Ok(Overrides {
        func: given(wire.func),
        payload: given(wire.payload_json),
        channel: given(wire.channel),
        start: start(wire.start)?,
        expiry: expiry(wire.expiry)?,
        max_retries: wire.max_retries,
        backoff_base: wire.backoff_base,
        backoff_max_seconds: wire.backoff_max_seconds,
        broadcast: wire.broadcast,
        max_exec_seconds: wire.max_exec_seconds,
        idempotency_key: given(wire.idempotency_key),
        priority: wire.priority,
        traceparent,
    })
}

fn start(wire: Option<job_spec::Start>) -> Result<Option<Start>, Invalid> {
    Ok(match wire {
        None => None,
        Some(job_spec::Start::DelaySeconds(seconds)) => Some(Start::In(seconds)),
        // A past run time runs at once, however long past.
        Some(job_spec::Start::RunAt(at)) => Some(Start::At(time_or_earliest("run_at", at)?)),
    })
}

fn expiry(wire: Option<job_spec::Expiry>) -> Result<Option<Expiry>, Invalid> {
    Ok(match wire {
        None => None,
        Some(job_spec::Expiry::ExpiresInSeconds(seconds)) => Some(Expiry::In(seconds)),
        Some(job_spec::Expiry::ExpiresAt(at)) => Some(Expiry::At(time("expires_at", at)?)),
    })
}

pub fn receipt(published: &Published) -> v1::PublishReceipt {
    v1::PublishReceipt { job_id: published.job.id.to_string(), deduplicated: published.deduplicated }
}
