//! A job's history and its log lines.

use errand_proto::v1;

use super::time_to_wire;
use crate::model::{
    EventKind, Invalid, JobEvent,
    log::{JobLog, LogKind},
};

pub fn event_to_wire(event: &JobEvent) -> v1::JobEvent {
    v1::JobEvent {
        seq: event.seq,
        job_id: event.job_id.to_string(),
        channel: event.channel.to_string(),
        kind: kind_to_wire(event.kind).into(),
        at: Some(time_to_wire(event.at)),
        runner_id: event.runner_id.as_deref().unwrap_or_default().to_owned(),
        attempt: event.attempt,
        details_json: event.details.clone(),
    }
}

fn kind_to_wire(kind: EventKind) -> v1::JobEventKind {
    match kind {
        EventKind::Created => v1::JobEventKind::Created,
        EventKind::Queued => v1::JobEventKind::Queued,
        EventKind::Scheduled => v1::JobEventKind::Scheduled,
        EventKind::Claimed => v1::JobEventKind::Claimed,
        EventKind::Running => v1::JobEventKind::Running,
        EventKind::Completed => v1::JobEventKind::Completed,
        EventKind::Failed => v1::JobEventKind::Failed,
        EventKind::Retry => v1::JobEventKind::Retry,
        EventKind::Canceled => v1::JobEventKind::Canceled,
        EventKind::Expired => v1::JobEventKind::Expired,
        EventKind::Released => v1::JobEventKind::Released,
    }
}

pub fn log_to_wire(log: JobLog) -> v1::JobLog {
    let kind = match log.kind {
        LogKind::Debug => v1::LogKind::Debug,
        LogKind::Info => v1::LogKind::Info,
        LogKind::Warn => v1::LogKind::Warn,
        LogKind::Error => v1::LogKind::Error,
    };
    v1::JobLog {
        id: log.id,
        job_id: log.job_id.to_string(),
        channel: log.channel.to_string(),
        created: Some(time_to_wire(log.created)),
        kind: kind.into(),
        message: log.message,
        meta_json: log.meta,
    }
}

/// `None` where the kind is unspecified or unknown.
pub(super) fn log_kind(wire: i32) -> Option<LogKind> {
    match v1::LogKind::try_from(wire).ok()? {
        v1::LogKind::Unspecified => None,
        v1::LogKind::Debug => Some(LogKind::Debug),
        v1::LogKind::Info => Some(LogKind::Info),
        v1::LogKind::Warn => Some(LogKind::Warn),
        v1::LogKind::Error => Some(LogKind::Error),
    }
}

pub fn log_kinds(wire: &[i32]) -> Result<Vec<LogKind>, Invalid> {
    wire.iter()
        .map(|&kind| log_kind(kind).ok_or_else(|| Invalid::new("kinds", "must be debug, info, warn or error")))
        .collect()
}
