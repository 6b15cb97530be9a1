//! The documented shapes.

use axum::{
    http::{HeaderValue, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, SecondsFormat};
use errand_proto::v1::{GetJobStatusResponse, Job, JobEvent, JobEventKind, JobLog, JobStatus, Runner};
use prost_types::Timestamp;
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::value::{RawValue, to_raw_value};

/// A JSON object whose values may be JSON text of somebody else, which stays as it was spelt.
#[derive(Debug, Default, Clone)]
pub(crate) struct Fields(Vec<(String, Box<RawValue>)>);

/// `fields! { "key" => value, ... }`
macro_rules! fields {
    ($($key:literal => $value:expr),* $(,)?) => {{
        let mut fields = $crate::json::Fields::default();
        $(fields.set($key, $value);)*
        fields
    }};
}
pub(crate) use fields;

impl Fields {
    pub(crate) fn set(&mut self, key: &str, value: impl Serialize) {
        // Numbers, texts, lists and maps with text keys always serialize.
        if let Ok(raw) = to_raw_value(&value) {
            self.0.push((key.to_owned(), raw));
        }
    }

    fn only(mut self, keys: &[&str]) -> Fields {
        self.0.retain(|(key, _)| keys.contains(&key.as_str()));
        self
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl IntoResponse for Fields {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
    }
}

/// JSON text as a value; `default` where it is empty.
fn verbatim(text: &str, default: &'static str) -> Option<Box<RawValue>> {
    let text = if text.is_empty() { default } else { text };
    RawValue::from_string(text.to_owned()).ok()
}

/// A number that JSON can spell.
pub(crate) fn number(number: f64) -> f64 {
    if number.is_finite() { number } else { 0.0 }
}

/// An enum's name as REST spells it.
pub(crate) fn short(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_ascii_lowercase()
}

/// RFC 3339 in UTC with `Z`; none where unset.
fn time(at: Option<&Timestamp>) -> Option<String> {
    let at = at?;
    let nanos = u32::try_from(at.nanos).unwrap_or(0);
    DateTime::from_timestamp(at.seconds, nanos).map(|at| at.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// A text, or null where it is empty.
fn text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn status_name(status: i32) -> &'static str {
    match JobStatus::try_from(status) {
        Ok(JobStatus::Running) => "running",
        Ok(JobStatus::Completed) => "completed",
        Ok(JobStatus::Failed) => "failed",
        Ok(JobStatus::Canceled) => "canceled",
        Ok(JobStatus::Expired) => "expired",
        Ok(JobStatus::Pending | JobStatus::Unspecified) | Err(_) => "pending",
    }
}

fn event_name(kind: i32) -> String {
    let kind = JobEventKind::try_from(kind).unwrap_or(JobEventKind::Unspecified);
    short(kind.as_str_name(), "JOB_EVENT_KIND_")
}

/// How much of a job an answer shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Graph {
    Default,
    Detail,
    Status,
    List,
}

impl Graph {
    /// By its name; `default` where none is given.
    pub(crate) fn parse(name: Option<&str>) -> Option<Graph> {
        let name = name.unwrap_or("default");
        [Graph::Default, Graph::Detail, Graph::Status, Graph::List].into_iter().find(|graph| graph.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Graph::Default => "default",
            Graph::Detail => "detail",
            Graph::Status => "status",
            Graph::List => "list",
        }
    }
}

const STATUS_KEYS: [&str; 16] = [
    "id",
    "status",
    "channel",
    "func",
    "created",
    "modified",
    "run_at",
    "started_at",
    "finished_at",
    "attempt",
    "max_retries",
    "last_error",
    "metadata",
    "runner_id",
    "cancel_requested",
    "duration_ms",
];

const LIST_KEYS: [&str; 20] = [
    "id",
    "channel",
    "func",
    "status",
    "created",
    "modified",
    "run_at",
    "expires_at",
    "started_at",
    "finished_at",
    "attempt",
    "max_retries",
    "runner_id",
    "last_error",
    "broadcast",
    "cancel_requested",
    "duration_ms",
    "priority",
    "owner",
    "metadata",
];

/// A job as lists show it.
pub(crate) fn job(job: &Job, graph: Graph) -> Fields {
    let mut shape = fields! {
        "id" => &job.id,
        "status" => status_name(job.status),
        "channel" => &job.channel,
        "func" => &job.func,
        "payload" => verbatim(&job.payload_json, "{}"),
        "created" => time(job.created.as_ref()),
        "modified" => time(job.modified.as_ref()),
        "run_at" => time(job.run_at.as_ref()),
        "expires_at" => time(job.expires_at.as_ref()),
        "started_at" => time(job.started_at.as_ref()),
        "finished_at" => time(job.finished_at.as_ref()),
        "attempt" => job.attempt,
        "max_retries" => job.max_retries,
        "last_error" => &job.last_error,
        "metadata" => verbatim(&job.metadata_json, "{}"),
        "result" => verbatim(&job.result_json, "null"),
        "runner_id" => text(&job.runner_id),
        "cancel_requested" => job.cancel_requested,
        "broadcast" => job.broadcast,
        "max_exec_seconds" => job.max_exec_seconds,
        "duration_ms" => duration_ms(job),
        "priority" => job.priority,
        "owner" => &job.owner,
        "idempotency_key" => text(&job.idempotency_key),
    };
    match graph {
        Graph::Detail => {
            shape.set("stack_trace", &job.stack_trace);
            shape
        }
        Graph::Default => shape,
        Graph::Status => shape.only(&STATUS_KEYS),
        Graph::List => shape.only(&LIST_KEYS),
    }
}

/// A job by itself, with what lists leave out.
pub(crate) fn single_job(status: &GetJobStatusResponse, graph: Graph) -> Fields {
    let of = status.job.clone().unwrap_or_default();
    let mut shape = job(&of, graph);
    shape.set("is_terminal", is_terminal(&of));
    shape.set("is_retriable", is_retriable(&of));
    shape.set("recent_events", status.recent_events.iter().map(recent_event).collect::<Vec<_>>());
    shape.set("queue_position", status.queue_position);
    shape
}

/// The answer to `get_status`.
pub(crate) fn job_status(status: &GetJobStatusResponse) -> Fields {
    single_job(status, Graph::Default)
}

/// A job as its publisher hears of it.
pub(crate) fn published(of: &Job) -> Fields {
    job(of, Graph::Default).only(&["id", "func", "channel", "status", "run_at", "expires_at", "created"])
}

fn is_terminal(job: &Job) -> bool {
    !matches!(status_name(job.status), "pending" | "running")
}

/// Whether a retry may still happen, by itself or on request.
fn is_retriable(job: &Job) -> bool {
    match status_name(job.status) {
        "failed" | "canceled" | "expired" => true,
        "completed" => false,
        _ => job.attempt <= job.max_retries,
    }
}

/// From start to finish; 0 until there are both.
fn duration_ms(job: &Job) -> i64 {
    match (&job.started_at, &job.finished_at) {
        (Some(started), Some(finished)) => {
            let seconds = finished.seconds - started.seconds;
            (seconds * 1_000 + i64::from(finished.nanos - started.nanos) / 1_000_000).max(0)
        }
        _ => 0,
    }
}

fn recent_event(event: &JobEvent) -> Fields {
    fields! {
        "event" => event_name(event.kind),
        "at" => time(event.at.as_ref()),
        "runner_id" => text(&event.runner_id),
        "details" => verbatim(&event.details_json, "{}"),
    }
}

pub(crate) fn event(event: &JobEvent) -> Fields {
    fields! {
        "id" => event.seq,
        "event" => event_name(event.kind),
        "at" => time(event.at.as_ref()),
        "runner_id" => text(&event.runner_id),
        "attempt" => event.attempt,
        "details" => verbatim(&event.details_json, "{}"),
    }
}

pub(crate) fn log(log: &JobLog) -> Fields {
    fields! {
        "id" => log.id,
        "created" => time(log.created.as_ref()),
        "kind" => short(log.kind().as_str_name(), "LOG_KIND_"),
        "message" => &log.message,
        "meta" => verbatim(&log.meta_json, "{}"),
    }
}

pub(crate) fn runner(runner: &Runner) -> Fields {
    fields! {
        "id" => &runner.runner_id,
        "runner_id" => &runner.runner_id,
        "hostname" => &runner.hostname,
        "channels" => &runner.channels,
        "jobs_processed" => runner.jobs_processed,
        "jobs_failed" => runner.jobs_failed,
        "started" => time(runner.started.as_ref()),
        "last_heartbeat" => time(runner.last_heartbeat.as_ref()),
        "alive" => runner.alive,
        "paused" => runner.paused,
        "capacity" => runner.capacity,
        "running" => runner.running,
        "client" => &runner.client,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_others_keep_their_spelling() {
        let job = Job { payload_json: "{\"z\":1.0,\"n\":12345678901234567890123}".into(), ..Job::default() };
        let shown = serde_json::to_string(&super::job(&job, Graph::Default)).expect("it serializes");
        assert!(shown.contains("\"payload\":{\"z\":1.0,\"n\":12345678901234567890123}"), "{shown}");
        assert!(!shown.contains("stack_trace"));
    }

    #[test]
    fn unset_is_null_and_empty_metadata_an_object() {
        let shown = serde_json::to_value(super::job(&Job::default(), Graph::Detail)).expect("it serializes");
        assert!(shown["runner_id"].is_null() && shown["started_at"].is_null() && shown["result"].is_null());
        assert!(shown["metadata"].is_object() && shown["stack_trace"] == "");
    }
}
