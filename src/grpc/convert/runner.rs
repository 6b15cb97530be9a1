//! What runners and the service say to each other.
//!
//! Nothing a runner says ends its stream or loses a job: what cannot be taken is dropped with a warning, and a result
//! that cannot be stored becomes a permanent failure that says why.

use errand_proto::v1::{self, attach_request, attach_response, result::Outcome};

use super::{
    command::kind_to_wire,
    cut, duration_to_wire,
    event::log_kind,
    job::{lease, lease_to_wire},
    job_to_wire, time, time_to_wire,
};
use crate::{
    engine::messages::{
        Command, End, FromRunner, Hello, InterruptReason, Line, Presence, Receipt, Reply, Report, ToRunner, Welcome,
    },
    model::{
        Lease,
        lifecycle::Failure,
        limits::{ERROR_MAX, LOG_LINES_MAX, LOG_MESSAGE_MAX, METADATA_MAX, STACK_TRACE_MAX},
        spec::{check_object, check_value},
    },
};

/// The longest host name and client name kept, in bytes; the rest is cut.
const NAME_MAX: usize = 255;

pub fn hello(wire: v1::Hello) -> Hello {
    Hello {
        runner_id: wire.runner_id,
        channels: wire.channels,
        capacity: wire.capacity,
        hostname: cut(wire.hostname, NAME_MAX),
        client: cut(wire.client, NAME_MAX),
        session_id: wire.session_id,
        leases: leases(wire.leases),
    }
}

/// `None` where the message says nothing that can be taken. A result may hold `result_max_bytes`.
pub fn from_runner(wire: v1::AttachRequest, result_max_bytes: usize) -> Option<FromRunner> {
    match wire.message? {
        attach_request::Message::Hello(_) => {
            tracing::warn!("dropped a second hello of one stream");
            None
        }
        attach_request::Message::Heartbeat(heartbeat) => Some(FromRunner::Heartbeat(leases(heartbeat.leases))),
        attach_request::Message::Results(results) => {
            Some(FromRunner::Results(results.results.into_iter().filter_map(|r| report(r, result_max_bytes)).collect()))
        }
        attach_request::Message::Progress(progress) => self::progress(progress),
        attach_request::Message::CommandReply(reply) => Some(command_reply(reply)),
        attach_request::Message::SetCapacity(set) => Some(FromRunner::SetCapacity(set.capacity)),
    }
}

/// Leases that name no job are no leases.
fn leases(wire: Vec<v1::Lease>) -> Vec<Lease> {
    wire.into_iter().filter_map(|wire| lease(Some(wire))).collect()
}

fn report(wire: v1::Result, result_max_bytes: usize) -> Option<Report> {
    let Some(lease) = lease(wire.lease) else {
        tracing::warn!("dropped a result that names no job");
        return None;
    };
    let end = match wire.outcome {
        Some(Outcome::Completed(completed)) => completion(completed.result_json, result_max_bytes),
        Some(Outcome::Failed(failed)) => End::Failed(Failure {
            error: cut(failed.error, ERROR_MAX),
            stack_trace: cut(failed.stack_trace, STACK_TRACE_MAX),
            permanent: failed.permanent,
            // A negative wait is none that was asked for: the backoff decides.
            retry_after: failed.retry_after.and_then(|wait| wait.try_into().ok()),
        }),
        Some(Outcome::Canceled(_)) => End::Canceled,
        Some(Outcome::Released(_)) => End::Released,
        None => unusable("invalid outcome: must be completed, failed, canceled or released".to_owned()),
    };
    Some(Report { lease, end, metadata: metadata(lease, wire.metadata_json) })
}

fn completion(result: String, max_bytes: usize) -> End {
    if result.len() > max_bytes {
        return unusable(format!("invalid result_json: must be at most {max_bytes} bytes"));
    }
    if !result.is_empty() && check_value("result_json", &result).is_err() {
        return unusable("invalid result_json: must be a JSON value".to_owned());
    }
    End::Completed(result)
}

/// The function did return, so to run it again would do its work twice: permanent.
fn unusable(error: String) -> End {
    End::Failed(Failure { error, permanent: true, ..Failure::default() })
}

fn metadata(lease: Lease, wire: Option<String>) -> Option<String> {
    let metadata = wire?;
    if metadata.len() > METADATA_MAX || check_object("metadata_json", &metadata).is_err() {
        tracing::warn!(job_id = %lease.job_id, "dropped metadata that is no JSON object of at most {METADATA_MAX} bytes");
        return None;
    }
    Some(metadata)
}

fn progress(wire: v1::Progress) -> Option<FromRunner> {
    let Some(lease) = lease(wire.lease) else {
        tracing::warn!("dropped progress that names no job");
        return None;
    };
    if wire.logs.len() > LOG_LINES_MAX {
        let dropped = wire.logs.len() - LOG_LINES_MAX;
        tracing::warn!(job_id = %lease.job_id, dropped, "dropped log lines beyond {LOG_LINES_MAX} of one message");
    }
    let logs = wire.logs.into_iter().take(LOG_LINES_MAX).map(line).collect();
    Some(FromRunner::Progress { lease, metadata: metadata(lease, wire.metadata_json), logs })
}

fn line(wire: v1::LogLine) -> Line {
    let has_meta = wire.meta_json.len() <= LOG_MESSAGE_MAX && check_object("meta_json", &wire.meta_json).is_ok();
    Line {
        at: wire.at.and_then(|at| time("at", at).ok()),
        kind: log_kind(wire.kind).unwrap_or(crate::model::log::LogKind::Info),
        message: cut(wire.message, LOG_MESSAGE_MAX),
        meta: if has_meta { wire.meta_json } else { String::new() },
    }
}

fn command_reply(wire: v1::CommandReply) -> FromRunner {
    let usable = wire.data_json.is_empty()
        || (wire.data_json.len() <= METADATA_MAX && check_object("data_json", &wire.data_json).is_ok());
    let (data, error) = if usable {
        (wire.data_json, cut(wire.error, ERROR_MAX))
    } else {
        (String::new(), format!("invalid data_json: must be a JSON object of at most {METADATA_MAX} bytes"))
    };
    FromRunner::CommandReply { command_id: wire.command_id, data, error }
}

pub fn to_runner(message: ToRunner) -> v1::AttachResponse {
    let message = match message {
        ToRunner::Welcome(welcome) => attach_response::Message::Welcome(welcome_to_wire(welcome)),
        ToRunner::Assignments(jobs) => attach_response::Message::Assignments(v1::Assignments {
            assignments: jobs
                .iter()
                .map(|job| v1::Assignment { lease: Some(lease_to_wire(job.lease())), job: Some(job_to_wire(job)) })
                .collect(),
        }),
        ToRunner::ResultsAccepted(receipts) => attach_response::Message::ResultsAccepted(v1::ResultsAccepted {
            receipts: receipts.into_iter().map(receipt_to_wire).collect(),
        }),
        ToRunner::Interrupt { lease, reason } => attach_response::Message::Interrupt(v1::Interrupt {
            lease: Some(lease_to_wire(lease)),
            reason: reason_to_wire(reason).into(),
        }),
        ToRunner::Command(command) => attach_response::Message::Command(command_to_wire(command)),
        ToRunner::GoAway { reason } => attach_response::Message::GoAway(v1::GoAway { reason }),
    };
    v1::AttachResponse { message: Some(message) }
}

fn welcome_to_wire(welcome: Welcome) -> v1::Welcome {
    v1::Welcome {
        session_id: welcome.session_id,
        node_id: welcome.node_id.to_string(),
        heartbeat_interval: Some(duration_to_wire(welcome.timings.heartbeat_interval)),
        accept_timeout: Some(duration_to_wire(welcome.timings.accept_timeout)),
        lease_ttl: Some(duration_to_wire(welcome.timings.lease_ttl)),
        resume_window: Some(duration_to_wire(welcome.timings.resume_window)),
        lost: welcome.lost.into_iter().map(lease_to_wire).collect(),
    }
}

fn receipt_to_wire(receipt: Receipt) -> v1::ResultReceipt {
    v1::ResultReceipt { lease: Some(lease_to_wire(receipt.lease)), accepted: receipt.accepted }
}

fn reason_to_wire(reason: InterruptReason) -> v1::InterruptReason {
    match reason {
        InterruptReason::Requested => v1::InterruptReason::Requested,
        InterruptReason::TimedOut => v1::InterruptReason::TimedOut,
        InterruptReason::LeaseLost => v1::InterruptReason::LeaseLost,
    }
}

fn command_to_wire(command: Command) -> v1::Command {
    v1::Command {
        command_id: command.command_id,
        kind: kind_to_wire(command.kind).into(),
        data_json: command.data,
        graceful: command.graceful,
    }
}

pub fn presence_to_wire(presence: Presence) -> v1::Runner {
    v1::Runner {
        runner_id: presence.runner_id.to_string(),
        channels: presence.channels.iter().map(ToString::to_string).collect(),
        jobs_processed: presence.jobs_processed,
        jobs_failed: presence.jobs_failed,
        started: Some(time_to_wire(presence.started)),
        last_heartbeat: Some(time_to_wire(presence.last_heartbeat)),
        alive: presence.alive,
        paused: presence.paused,
        hostname: presence.hostname,
        client: presence.client,
        capacity: presence.capacity,
        running: presence.running,
        node_id: presence.node_id.to_string(),
    }
}

pub fn reply_to_wire(reply: Reply) -> v1::RunnerReply {
    v1::RunnerReply { runner_id: reply.runner_id.to_string(), data_json: reply.data, error: reply.error }
}
