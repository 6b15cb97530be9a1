//! How the queues do, and whether the gateway and its core are up.

use axum::{
    extract::{Path, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use errand_proto::v1::{
    ChannelHealth, ChannelMetrics, ChannelStats, GetChannelHealthRequest, GetStatsRequest, GetStatsResponse,
    GetSystemHealthRequest, HealthStatus,
};

use crate::{
    Gateway,
    json::{self, Fields, fields},
    problem::Problem,
    upstream::{CALL_TIMEOUT, Caller, answer},
};

/// `GET /livez`
pub(crate) async fn live() -> Fields {
    fields! { "status" => true }
}

/// `GET /readyz`
pub(crate) async fn ready(State(gateway): State<Gateway>) -> Response {
    if gateway.upstream.serves().await { live().await.into_response() } else { Problem::unreachable().into_response() }
}

/// `GET /api/jobs/health/<channel>`
pub(crate) async fn channel(
    State(gateway): State<Gateway>,
    caller: Caller,
    path: Result<Path<String>, PathRejection>,
) -> Result<Fields, Problem> {
    let Path(channel) = path.map_err(|_| Problem::invalid("Malformed path"))?;
    let request = caller.request(GetChannelHealthRequest { channel }, CALL_TIMEOUT);
    let health = answer(CALL_TIMEOUT, gateway.upstream.health().get_channel_health(request)).await?.health;
    Ok(fields! { "status" => true, "data" => channel_health(&health.unwrap_or_default()) })
}

/// `GET /api/jobs/health`
pub(crate) async fn system(State(gateway): State<Gateway>, caller: Caller) -> Result<Fields, Problem> {
    let request = caller.request(GetSystemHealthRequest {}, CALL_TIMEOUT);
    let health = answer(CALL_TIMEOUT, gateway.upstream.health().get_system_health(request)).await?;
    let totals = health.totals.unwrap_or_default();
    let mut channels = Fields::default();
    for channel in &health.channels {
        channels.set(&channel.channel, channel_health(channel));
    }
    let data = fields! {
        "overall_status" => status_name(health.status()),
        "totals" => fields! {
            "unclaimed" => totals.unclaimed,
            "pending" => totals.pending,
            "stuck" => totals.stuck,
            "runners" => health.runners_active,
        },
        "channels" => channels,
    };
    Ok(fields! { "status" => true, "data" => data })
}

/// `GET /api/jobs/stats`
pub(crate) async fn stats(State(gateway): State<Gateway>, caller: Caller) -> Result<Fields, Problem> {
    let request = caller.request(GetStatsRequest {}, CALL_TIMEOUT);
    let stats = answer(CALL_TIMEOUT, gateway.upstream.health().get_stats(request)).await?;
    Ok(fields! { "status" => true, "data" => system_stats(&stats) })
}

fn status_name(status: HealthStatus) -> String {
    json::short(status.as_str_name(), "HEALTH_STATUS_")
}

fn channel_health(health: &ChannelHealth) -> Fields {
    let messages = health.messages.unwrap_or_default();
    let stuck = health.stuck_jobs.iter().map(|job| {
        fields! {
            "job_id" => &job.job_id,
            "runner_id" => &job.runner_id,
            "attempt" => job.attempt,
            "idle_ms" => job.idle_ms,
        }
    });
    fields! {
        "channel" => &health.channel,
        "status" => status_name(health.status()),
        "messages" => fields! {
            "total" => messages.total,
            "unclaimed" => messages.unclaimed,
            "pending" => messages.pending,
            "scheduled" => messages.scheduled,
            "stuck" => messages.stuck,
        },
        "runners" => fields! { "active" => health.runners_active, "total" => health.runners_total },
        "stuck_jobs" => stuck.collect::<Vec<_>>(),
        "alerts" => &health.alerts,
        "metrics" => metrics(health.metrics),
    }
}

fn metrics(metrics: Option<ChannelMetrics>) -> Fields {
    let metrics = metrics.unwrap_or_default();
    fields! {
        "jobs_per_minute" => json::number(metrics.jobs_per_minute),
        "success_rate" => json::number(metrics.success_rate),
        "avg_duration_ms" => json::number(metrics.avg_duration_ms),
    }
}

fn system_stats(stats: &GetStatsResponse) -> Fields {
    let totals = stats.totals.unwrap_or_default();
    let scheduler = stats.scheduler.clone().unwrap_or_default();
    let mut channels = Fields::default();
    for channel in &stats.channels {
        channels.set(&channel.channel, channel_stats(channel));
    }
    fields! {
        "channels" => channels,
        "runners" => stats.runners.iter().map(json::runner).collect::<Vec<_>>(),
        "totals" => fields! {
            "pending" => totals.queued,
            "queued" => totals.queued,
            "inflight" => totals.running,
            "running" => totals.running,
            "running_active" => totals.running.saturating_sub(totals.running_stale),
            "running_stale" => totals.running_stale,
            "completed" => totals.completed,
            "failed" => totals.failed,
            "scheduled" => totals.scheduled,
            "runners_active" => totals.runners_active,
        },
        "scheduler" => fields! {
            "active" => scheduler.active,
            "lock_holder" => Some(scheduler.lock_holder).filter(|holder| !holder.is_empty()),
        },
    }
}

fn channel_stats(channel: &ChannelStats) -> Fields {
    fields! {
        "queued_count" => channel.queued,
        "inflight_count" => channel.running,
        "scheduled_count" => channel.scheduled,
        "stream_length" => channel.queued.saturating_add(channel.running),
        "pending_count" => channel.running,
        "db_running" => channel.running,
        "runners" => channel.runners,
        "metrics" => metrics(channel.metrics),
    }
}
