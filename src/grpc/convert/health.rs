//! How the channels are doing.

use errand_proto::v1;

use super::{duration_to_wire, presence_to_wire, time_to_wire};
use crate::{
    engine::{ChannelHealth, ChannelStats, Metrics, RetentionStats, Stats, Stuck, SystemHealth},
    model::health::{Counts, Verdict},
};

pub fn system_health_to_wire(health: SystemHealth) -> v1::GetSystemHealthResponse {
    v1::GetSystemHealthResponse {
        status: verdict_to_wire(health.verdict).into(),
        totals: Some(counts_to_wire(&health.totals)),
        runners_active: health.totals.runners_active,
        channels: health.channels.into_iter().map(channel_health_to_wire).collect(),
    }
}

pub fn channel_health_to_wire(health: ChannelHealth) -> v1::ChannelHealth {
    v1::ChannelHealth {
        channel: health.channel.to_string(),
        status: verdict_to_wire(health.verdict).into(),
        messages: Some(counts_to_wire(&health.counts)),
        runners_active: health.counts.runners_active,
        runners_total: health.runners_total,
        stuck_jobs: health.stuck_jobs.into_iter().map(stuck_to_wire).collect(),
        alerts: health.alerts,
        metrics: Some(metrics_to_wire(&health.metrics)),
    }
}

fn verdict_to_wire(verdict: Verdict) -> v1::HealthStatus {
    match verdict {
        Verdict::Healthy => v1::HealthStatus::Healthy,
        Verdict::Warning => v1::HealthStatus::Warning,
        Verdict::Critical => v1::HealthStatus::Critical,
    }
}

fn counts_to_wire(counts: &Counts) -> v1::MessageCounts {
    v1::MessageCounts {
        total: counts.unclaimed + counts.running,
        unclaimed: counts.unclaimed,
        pending: counts.running,
        scheduled: counts.scheduled,
        stuck: counts.stuck,
    }
}

fn stuck_to_wire(stuck: Stuck) -> v1::StuckJob {
    v1::StuckJob {
        job_id: stuck.job_id.to_string(),
        runner_id: stuck.runner_id.to_string(),
        attempt: stuck.attempt,
        idle_ms: u64::try_from(stuck.idle.as_millis()).unwrap_or(u64::MAX),
    }
}

fn metrics_to_wire(metrics: &Metrics) -> v1::ChannelMetrics {
    v1::ChannelMetrics {
        jobs_per_minute: metrics.jobs_per_minute,
        success_rate: metrics.success_rate,
        avg_duration_ms: metrics.avg_duration_ms,
    }
}

pub fn stats_to_wire(stats: Stats) -> v1::GetStatsResponse {
    // The store tallies every channel with unfinished jobs, whether or not the engine lists it.
    let sum = |count: fn(&crate::store::ChannelTally) -> u64| stats.tally.channels.values().map(count).sum();
    let totals = v1::TotalStats {
        queued: sum(|tally| tally.ready),
        running: sum(|tally| tally.running),
        running_stale: stats.running_stale,
        scheduled: sum(|tally| tally.scheduled),
        completed: stats.tally.completed,
        failed: stats.tally.failed,
        canceled: stats.tally.canceled,
        expired: stats.tally.expired,
        runners_active: stats.runners_active,
    };
    v1::GetStatsResponse {
        channels: stats.channels.into_iter().map(channel_stats_to_wire).collect(),
        runners: stats.runners.into_iter().map(presence_to_wire).collect(),
        totals: Some(totals),
        scheduler: Some(v1::SchedulerStats {
            active: stats.lock_holder.is_some(),
            lock_holder: stats.lock_holder.map(|node| node.to_string()).unwrap_or_default(),
        }),
        retention: Some(retention_to_wire(&stats.retention)),
    }
}

fn retention_to_wire(stats: &RetentionStats) -> v1::RetentionStats {
    v1::RetentionStats {
        finished: stats.finished,
        oldest_created: stats.oldest_created.map(time_to_wire),
        keep_for: stats.bounds.keep_for.map(duration_to_wire),
        keep_max: stats.bounds.keep_max,
        removed: stats.removals.jobs,
        last_removed: stats.removals.last.map(time_to_wire),
    }
}

fn channel_stats_to_wire(stats: ChannelStats) -> v1::ChannelStats {
    v1::ChannelStats {
        channel: stats.channel.to_string(),
        queued: stats.tally.ready,
        running: stats.tally.running,
        scheduled: stats.tally.scheduled,
        runners: stats.runners,
        metrics: Some(metrics_to_wire(&stats.metrics)),
    }
}
