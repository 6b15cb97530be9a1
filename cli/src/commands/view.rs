//! Jobs, events and logs as JSON: the field names of the REST API, with payload, metadata, result and details
//! embedded exactly as they were spelt.

use errand_proto::v1::{Job, JobEvent, JobEventKind, JobLog, JobStatus, LogKind};
use serde::Serialize;
use serde_json::value::RawValue;

use super::moment::written;

/// A job.
#[derive(Debug, Serialize)]
pub struct JobView {
    id: String,
    channel: String,
    func: String,
    payload: Option<Box<RawValue>>,
    status: String,
    run_at: Option<String>,
    expires_at: Option<String>,
    attempt: u32,
    max_retries: u32,
    backoff_base: f64,
    backoff_max: u32,
    broadcast: bool,
    cancel_requested: bool,
    max_exec_seconds: Option<u32>,
    runner_id: Option<String>,
    last_error: Option<String>,
    stack_trace: Option<String>,
    metadata: Option<Box<RawValue>>,
    result: Option<Box<RawValue>>,
    idempotency_key: Option<String>,
    owner: Option<String>,
    priority: i32,
    created: Option<String>,
    modified: Option<String>,
    started_at: Option<String>,
    finished_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recent_events: Option<Vec<EventView>>,
}

impl From<&Job> for JobView {
    fn from(job: &Job) -> Self {
        Self {
            id: job.id.clone(),
            channel: job.channel.clone(),
            func: job.func.clone(),
            payload: raw(&job.payload_json),
            status: status_word(job.status()),
            run_at: written(job.run_at.as_ref()),
            expires_at: written(job.expires_at.as_ref()),
            attempt: job.attempt,
            max_retries: job.max_retries,
            backoff_base: job.backoff_base,
            backoff_max: job.backoff_max_seconds,
            broadcast: job.broadcast,
            cancel_requested: job.cancel_requested,
            max_exec_seconds: job.max_exec_seconds,
            runner_id: some(&job.runner_id),
            last_error: some(&job.last_error),
            stack_trace: some(&job.stack_trace),
            metadata: raw(&job.metadata_json),
            result: raw(&job.result_json),
            idempotency_key: some(&job.idempotency_key),
            owner: some(&job.owner),
            priority: job.priority,
            created: written(job.created.as_ref()),
            modified: written(job.modified.as_ref()),
            started_at: written(job.started_at.as_ref()),
            finished_at: written(job.finished_at.as_ref()),
            parent_id: some(&job.parent_id),
            queue_position: None,
            recent_events: None,
        }
    }
}

/// One line of a job's history.
#[derive(Debug, Serialize)]
pub struct EventView {
    id: u32,
    job_id: String,
    event: String,
    at: Option<String>,
    runner_id: Option<String>,
    attempt: u32,
    details: Option<Box<RawValue>>,
}

impl From<&JobEvent> for EventView {
    fn from(event: &JobEvent) -> Self {
        Self {
            id: event.seq,
            job_id: event.job_id.clone(),
            event: event_word(event.kind()),
            at: written(event.at.as_ref()),
            runner_id: some(&event.runner_id),
            attempt: event.attempt,
            details: raw(&event.details_json),
        }
    }
}

/// One line of a job's log.
#[derive(Debug, Serialize)]
pub struct LogView {
    id: u64,
    job_id: String,
    created: Option<String>,
    kind: String,
    message: String,
    meta: Option<Box<RawValue>>,
}

impl From<&JobLog> for LogView {
    fn from(log: &JobLog) -> Self {
        Self {
            id: log.id,
            job_id: log.job_id.clone(),
            created: written(log.created.as_ref()),
            kind: log_word(log.kind()),
            message: log.message.clone(),
            meta: raw(&log.meta_json),
        }
    }
}

pub fn status_word(status: JobStatus) -> String {
    word(status.as_str_name(), "JOB_STATUS_")
}

pub fn event_word(kind: JobEventKind) -> String {
    word(kind.as_str_name(), "JOB_EVENT_KIND_")
}

pub fn log_word(kind: LogKind) -> String {
    word(kind.as_str_name(), "LOG_KIND_")
}

/// `JOB_STATUS_PENDING` without its prefix, in lower case.
pub fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase()
}

/// JSON text as it stands; null where there is none.
fn raw(json: &str) -> Option<Box<RawValue>> {
    RawValue::from_string(json.to_owned()).ok()
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_shown_as_it_was_spelt() {
        let payload_json = r#"{"b": 12345678901234567890123, "a": 1.0}"#.to_owned();
        let job = Job { payload_json: payload_json.clone(), ..Job::default() };
        let json = serde_json::to_string(&JobView::from(&job)).unwrap();
        assert!(json.contains(&payload_json), "{json}");
        assert!(json.contains(r#""result":null"#));
    }

    #[test]
    fn states_are_plain_words() {
        assert_eq!(status_word(JobStatus::Pending), "pending");
        assert_eq!(event_word(JobEventKind::Released), "released");
    }
}
