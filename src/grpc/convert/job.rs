//! Jobs, going out, and the ids that name them, coming in.

use errand_proto::v1;

use super::time_to_wire;
use crate::{
    engine::{EngineError, error::JOB_NOT_FOUND},
    model::{Job, JobId, Lease, Status},
};

/// A text that is the id of no job is answered like the id of a job that is not there.
pub fn job_id(text: &str) -> Result<JobId, EngineError> {
    text.parse().map_err(|_| JOB_NOT_FOUND)
}

pub(super) fn lease(wire: Option<v1::Lease>) -> Option<Lease> {
    let wire = wire?;
    Some(Lease { job_id: wire.job_id.parse().ok()?, attempt: wire.attempt })
}

pub(super) fn lease_to_wire(lease: Lease) -> v1::Lease {
    v1::Lease { job_id: lease.job_id.to_string(), attempt: lease.attempt }
}

pub(super) fn status_to_wire(status: Status) -> v1::JobStatus {
    match status {
        Status::Pending => v1::JobStatus::Pending,
        Status::Running => v1::JobStatus::Running,
        Status::Completed => v1::JobStatus::Completed,
        Status::Failed => v1::JobStatus::Failed,
        Status::Canceled => v1::JobStatus::Canceled,
        Status::Expired => v1::JobStatus::Expired,
    }
}

/// The attempt on the wire counts executions; claims that were handed back do not show.
pub fn job_to_wire(job: &Job) -> v1::Job {
    let optional = |text: &Option<std::sync::Arc<str>>| text.as_deref().unwrap_or_default().to_owned();
    v1::Job {
        id: job.id.to_string(),
        channel: job.channel.to_string(),
        func: job.func.to_string(),
        payload_json: job.payload.to_string(),
        status: status_to_wire(job.status).into(),
        run_at: job.run_at.map(time_to_wire),
        expires_at: Some(time_to_wire(job.expires_at)),
        attempt: job.executions(),
        max_retries: job.max_retries,
        backoff_base: job.backoff_base,
        backoff_max_seconds: job.backoff_max_seconds,
        broadcast: job.broadcast,
        cancel_requested: job.cancel_requested,
        max_exec_seconds: job.max_exec_seconds,
        runner_id: optional(&job.runner_id),
        last_error: job.last_error.clone(),
        stack_trace: job.stack_trace.clone(),
        metadata_json: if job.metadata.is_empty() { "{}".to_owned() } else { job.metadata.clone() },
        result_json: job.result.clone(),
        idempotency_key: optional(&job.idempotency_key),
        owner: job.owner.to_string(),
        priority: job.priority,
        created: Some(time_to_wire(job.created)),
        modified: Some(time_to_wire(job.modified)),
        started_at: job.started_at.map(time_to_wire),
        finished_at: job.finished_at.map(time_to_wire),
        traceparent: job.traceparent.clone(),
        parent_id: job.parent_id.map(|id| id.to_string()).unwrap_or_default(),
    }
}
