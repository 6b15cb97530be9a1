//! `errand runners`, `health` and `stats`: how the runners and the channels are doing.

use errand_proto::v1::{
    ChannelHealth, ChannelMetrics, GetChannelHealthRequest, GetStatsRequest, GetStatsResponse, GetSystemHealthRequest,
    HealthStatus, ListRunnersRequest, RetentionStats, Runner, health_client::HealthClient,
    runners_client::RunnersClient,
};
use serde_json::{Map, Value, json};

use super::{
    Common, Done,
    moment::written,
    table::{facts, table},
    view::word,
};

/// Lists runners.
#[derive(Debug, clap::Args)]
pub struct Runners {
    /// Only runners of this channel
    #[arg(long)]
    channel: Option<String>,
    #[command(flatten)]
    common: Common,
}

impl Runners {
    pub(super) async fn run(self) -> Done {
        let client = self.common.connect().await?;
        let request = ListRunnersRequest { channel: self.channel.unwrap_or_default() };
        let answer = RunnersClient::new(client.transport.clone()).list_runners(request).await;
        let runners = answer.map_err(|status| client.refusal(&status))?.into_inner().runners;
        let document: Vec<Value> = runners.iter().map(runner_json).collect();
        client.show(&document, || runner_table(&runners))
    }
}

/// Shows health.
#[derive(Debug, clap::Args)]
pub struct Health {
    /// The channel; every one unless said
    #[arg(value_name = "CHANNEL")]
    channel: Option<String>,
    #[command(flatten)]
    common: Common,
}

impl Health {
    pub(super) async fn run(self) -> Done {
        let client = self.common.connect().await?;
        let mut health = HealthClient::new(client.transport.clone());
        if let Some(channel) = self.channel {
            let answer = health.get_channel_health(GetChannelHealthRequest { channel }).await;
            let answer = answer.map_err(|status| client.refusal(&status))?.into_inner();
            let channel = answer.health.unwrap_or_default();
            return client.show(&channel_json(&channel), || channel_table(std::slice::from_ref(&channel)));
        }
        let answer = health.get_system_health(GetSystemHealthRequest {}).await;
        let answer = answer.map_err(|status| client.refusal(&status))?.into_inner();
        let totals = answer.totals.unwrap_or_default();
        let channels: Map<String, Value> =
            answer.channels.iter().map(|channel| (channel.channel.clone(), channel_json(channel))).collect();
        let overall = health_word(answer.status());
        let document = json!({
            "overall_status": overall,
            "totals": {
                "unclaimed": totals.unclaimed,
                "pending": totals.pending,
                "stuck": totals.stuck,
                "scheduled": totals.scheduled,
                "runners": answer.runners_active,
            },
            "channels": channels,
        });
        client.show(&document, || format!("overall: {overall}\n\n{}", channel_table(&answer.channels)))
    }
}

/// Shows counts.
#[derive(Debug, clap::Args)]
pub struct Stats {
    #[command(flatten)]
    common: Common,
}

impl Stats {
    pub(super) async fn run(self) -> Done {
        let client = self.common.connect().await?;
        let answer = HealthClient::new(client.transport.clone()).get_stats(GetStatsRequest {}).await;
        let stats = answer.map_err(|status| client.refusal(&status))?.into_inner();
        client.show(&stats_json(&stats), || stats_tables(&stats))
    }
}

fn runner_json(runner: &Runner) -> Value {
    json!({
        "runner_id": runner.runner_id,
        "hostname": runner.hostname,
        "channels": runner.channels,
        "jobs_processed": runner.jobs_processed,
        "jobs_failed": runner.jobs_failed,
        "started": written(runner.started.as_ref()),
        "last_heartbeat": written(runner.last_heartbeat.as_ref()),
        "alive": runner.alive,
        "paused": runner.paused,
        "capacity": runner.capacity,
        "running": runner.running,
        "client": runner.client,
        "node_id": runner.node_id,
    })
}

fn runner_table(runners: &[Runner]) -> String {
    let rows = runners.iter().map(|runner| {
        let state = match (runner.alive, runner.paused) {
            (false, _) => "silent",
            (true, true) => "paused",
            (true, false) => "alive",
        };
        [
            runner.runner_id.clone(),
            state.to_owned(),
            runner.channels.join(","),
            format!("{}/{}", runner.running, runner.capacity),
            runner.jobs_processed.to_string(),
            runner.jobs_failed.to_string(),
            written(runner.last_heartbeat.as_ref()).unwrap_or_default(),
            runner.client.clone(),
        ]
    });
    table(["runner", "state", "channels", "running", "processed", "failed", "last heartbeat", "client"], rows)
}

fn channel_json(health: &ChannelHealth) -> Value {
    let messages = health.messages.unwrap_or_default();
    let stuck = health.stuck_jobs.iter().map(|stuck| {
        json!({
            "job_id": stuck.job_id,
            "runner_id": stuck.runner_id,
            "attempt": stuck.attempt,
            "idle_ms": stuck.idle_ms,
        })
    });
    json!({
        "channel": health.channel,
        "status": health_word(health.status()),
        "messages": {
            "total": messages.total,
            "unclaimed": messages.unclaimed,
            "pending": messages.pending,
            "scheduled": messages.scheduled,
            "stuck": messages.stuck,
        },
        "runners": {"active": health.runners_active, "total": health.runners_total},
        "stuck_jobs": stuck.collect::<Vec<_>>(),
        "alerts": health.alerts,
        "metrics": metrics_json(health.metrics.as_ref()),
    })
}

fn channel_table(channels: &[ChannelHealth]) -> String {
    let rows = channels.iter().map(|health| {
        let messages = health.messages.unwrap_or_default();
        [
            health.channel.clone(),
            health_word(health.status()),
            messages.unclaimed.to_string(),
            messages.pending.to_string(),
            messages.scheduled.to_string(),
            messages.stuck.to_string(),
            format!("{}/{}", health.runners_active, health.runners_total),
            health.alerts.join("; "),
        ]
    });
    table(["channel", "status", "unclaimed", "running", "scheduled", "stuck", "runners", "alerts"], rows)
}

fn metrics_json(metrics: Option<&ChannelMetrics>) -> Value {
    let metrics = metrics.copied().unwrap_or_default();
    json!({
        "jobs_per_minute": metrics.jobs_per_minute,
        "success_rate": metrics.success_rate,
        "avg_duration_ms": metrics.avg_duration_ms,
    })
}

fn stats_json(stats: &GetStatsResponse) -> Value {
    let totals = stats.totals.unwrap_or_default();
    let scheduler = stats.scheduler.clone().unwrap_or_default();
    let channels = stats.channels.iter().map(|channel| {
        let counts = json!({
            "queued_count": channel.queued,
            "inflight_count": channel.running,
            "scheduled_count": channel.scheduled,
            "stream_length": channel.queued + channel.running,
            "pending_count": channel.running,
            "db_running": channel.running,
            "runners": channel.runners,
            "metrics": metrics_json(channel.metrics.as_ref()),
        });
        (channel.channel.clone(), counts)
    });
    json!({
        "channels": channels.collect::<Map<_, _>>(),
        "runners": stats.runners.iter().map(runner_json).collect::<Vec<_>>(),
        "totals": {
            "pending": totals.queued,
            "queued": totals.queued,
            "inflight": totals.running,
            "running": totals.running,
            "running_active": totals.running.saturating_sub(totals.running_stale),
            "running_stale": totals.running_stale,
            "completed": totals.completed,
            "failed": totals.failed,
            "canceled": totals.canceled,
            "expired": totals.expired,
            "scheduled": totals.scheduled,
            "runners_active": totals.runners_active,
        },
        "scheduler": {"active": scheduler.active, "lock_holder": scheduler.lock_holder},
        "retention": stats.retention.as_ref().map(retention_json),
    })
}

fn retention_json(retention: &RetentionStats) -> Value {
    json!({
        "finished": retention.finished,
        "oldest_created": written(retention.oldest_created.as_ref()),
        "keep_for_seconds": retention.keep_for.map(|keep_for| keep_for.seconds),
        "keep_max": retention.keep_max,
        "removed": retention.removed,
        "last_removed": written(retention.last_removed.as_ref()),
    })
}

fn retention_facts(retention: &RetentionStats) -> String {
    let keep_for = retention.keep_for.and_then(|keep_for| std::time::Duration::try_from(keep_for).ok());
    let keep_for = keep_for.map(|keep_for| humantime::format_duration(keep_for).to_string());
    facts([
        ("finished jobs kept", retention.finished.to_string()),
        ("oldest of them created", written(retention.oldest_created.as_ref()).unwrap_or_default()),
        ("kept for", keep_for.unwrap_or_else(|| "ever".to_owned())),
        ("kept at most", retention.keep_max.map_or_else(|| "any number".to_owned(), |max| max.to_string())),
        ("removed since start", retention.removed.to_string()),
        ("last removed", written(retention.last_removed.as_ref()).unwrap_or_default()),
    ])
}

fn stats_tables(stats: &GetStatsResponse) -> String {
    let totals = stats.totals.unwrap_or_default();
    let totals = facts([
        ("queued", totals.queued.to_string()),
        ("running", totals.running.to_string()),
        ("running on silent runners", totals.running_stale.to_string()),
        ("scheduled", totals.scheduled.to_string()),
        ("completed", totals.completed.to_string()),
        ("failed", totals.failed.to_string()),
        ("canceled", totals.canceled.to_string()),
        ("expired", totals.expired.to_string()),
        ("live runners", totals.runners_active.to_string()),
    ]);
    let channels = stats.channels.iter().map(|channel| {
        [
            channel.channel.clone(),
            channel.queued.to_string(),
            channel.running.to_string(),
            channel.scheduled.to_string(),
            channel.runners.to_string(),
        ]
    });
    let channels = table(["channel", "queued", "running", "scheduled", "runners"], channels);
    let retention = stats.retention.as_ref().map(|retention| format!("\n{}", retention_facts(retention)));
    format!("{totals}{}\n{channels}\n{}", retention.unwrap_or_default(), runner_table(&stats.runners))
}

fn health_word(status: HealthStatus) -> String {
    word(status.as_str_name(), "HEALTH_STATUS_")
}
