//! Listing and steering runners.

use std::{collections::BTreeMap, time::Duration};

use axum::extract::State;
use errand_proto::v1::{
    BroadcastCommandRequest, CommandKind, ListRunnersRequest, PingRunnerRequest, RunnerReply, ShutdownRunnerRequest,
};
use serde_json::value::RawValue;

use crate::{
    Gateway,
    body::{Object, Parameters},
    json::{self, Fields, fields},
    problem::Problem,
    upstream::{CALL_TIMEOUT, Caller, answer},
};

const REPLY_SECONDS_DEFAULT: f64 = 2.0;
const REPLY_SECONDS_MAX: f64 = 60.0;
/// What a call may take beyond the time its runners have to reply.
const MARGIN: Duration = Duration::from_secs(5);

/// `GET /api/jobs/runners`
pub(crate) async fn list(State(gateway): State<Gateway>, caller: Caller, query: Parameters) -> Result<Fields, Problem> {
    let request = caller.request(ListRunnersRequest { channel: query.string("channel") }, CALL_TIMEOUT);
    let runners = answer(CALL_TIMEOUT, gateway.upstream.runners().list_runners(request)).await?.runners;
    let data: Vec<Fields> = runners.iter().map(json::runner).collect();
    Ok(fields! { "status" => true, "count" => data.len(), "data" => data })
}

/// `POST /api/jobs/runners/ping`
pub(crate) async fn ping(State(gateway): State<Gateway>, caller: Caller, body: Object) -> Result<Fields, Problem> {
    let runner_id = runner_id(&body)?;
    let timeout = timeout(&body)?;
    let limit = timeout + MARGIN;
    let message =
        PingRunnerRequest { runner_id: runner_id.clone(), timeout: prost_types::Duration::try_from(timeout).ok() };
    let pong = answer(limit, gateway.upstream.runners().ping_runner(caller.request(message, limit))).await?;
    let round_trip_ms = pong
        .round_trip
        .filter(|_| pong.responsive)
        .map(|trip| json::number(trip.seconds as f64 * 1e3 + f64::from(trip.nanos / 1000) / 1e3));
    Ok(fields! {
        "status" => true,
        "runner_id" => runner_id,
        "responsive" => pong.responsive,
        "round_trip_ms" => round_trip_ms,
    })
}

/// `POST /api/jobs/runners/shutdown`
pub(crate) async fn shutdown(State(gateway): State<Gateway>, caller: Caller, body: Object) -> Result<Fields, Problem> {
    let runner_id = runner_id(&body)?;
    let graceful = body.boolean("graceful")?.unwrap_or(true);
    let message = ShutdownRunnerRequest { runner_id: runner_id.clone(), graceful };
    let request = caller.request(message, CALL_TIMEOUT);
    answer(CALL_TIMEOUT, gateway.upstream.runners().shutdown_runner(request)).await?;
    Ok(fields! {
        "status" => true,
        "message" => format!("Shutdown command sent to runner {runner_id}"),
        "runner_id" => runner_id,
        "graceful" => graceful,
    })
}

/// `POST /api/jobs/runners/broadcast`
pub(crate) async fn broadcast(State(gateway): State<Gateway>, caller: Caller, body: Object) -> Result<Fields, Problem> {
    let command = body.string("command")?.ok_or_else(|| Problem::invalid("missing required parameters: command"))?;
    let kind = command_kind(&command)?;
    let timeout = timeout(&body)?;
    let limit = timeout + MARGIN;
    let message = BroadcastCommandRequest {
        kind: kind.into(),
        data_json: body.object("data")?.unwrap_or_else(|| "{}".to_owned()),
        timeout: prost_types::Duration::try_from(timeout).ok(),
        runner_ids: Vec::new(),
    };
    let request = caller.request(message, limit);
    let replies = answer(limit, gateway.upstream.runners().broadcast_command(request)).await?.replies;
    Ok(fields! {
        "status" => true,
        "command" => command,
        "responses_count" => replies.len(),
        "responses" => replies.iter().map(reply).collect::<Vec<_>>(),
    })
}

fn command_kind(command: &str) -> Result<CommandKind, Problem> {
    match command {
        "status" => Ok(CommandKind::Status),
        "shutdown" => Ok(CommandKind::Shutdown),
        "pause" => Ok(CommandKind::Pause),
        "resume" => Ok(CommandKind::Resume),
        "reload" => Ok(CommandKind::Reload),
        _ => Err(Problem::invalid("Invalid command. Must be one of: status, shutdown, pause, resume, reload")),
    }
}

fn reply(reply: &RunnerReply) -> Fields {
    let mut merged = fields! { "runner_id" => &reply.runner_id };
    let data: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&reply.data_json).unwrap_or_default();
    for (name, value) in data.iter().filter(|(name, _)| *name != "runner_id") {
        merged.set(name, value);
    }
    if !reply.error.is_empty() {
        merged.set("error", &reply.error);
    }
    merged
}

fn runner_id(body: &Object) -> Result<String, Problem> {
    let named = body.string("runner_id")?.filter(|id| !id.is_empty());
    named.ok_or_else(|| Problem::invalid("missing required parameters: runner_id"))
}

fn timeout(body: &Object) -> Result<Duration, Problem> {
    let seconds = body.number("timeout")?.unwrap_or(REPLY_SECONDS_DEFAULT);
    if (0.0..=REPLY_SECONDS_MAX).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(Problem::field("timeout", "must be a number from 0 to 60"))
    }
}
