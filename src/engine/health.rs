//! How the channels are doing, from the store's counts and the roster.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use super::{EngineError, Metrics, RetentionStats, Shared, messages::Presence};
use crate::{
    fleet::{ChannelReport, Removals},
    model::{
        JobId,
        health::{Counts, Verdict, judge},
    },
    store::{ChannelTally, Tally},
};

/// Stuck jobs named in an answer.
const STUCK_NAMED: usize = 10;
/// Running jobs looked through for stuck ones at a time.
const RUNNING_PAGE: u32 = 1_000;
/// Pages of running jobs looked through.
const RUNNING_PAGES: u32 = 100;

/// A job that runs on a runner which went silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    pub job_id: JobId,
    pub runner_id: Arc<str>,
    pub attempt: u32,
    /// Since its runner was last heard of.
    pub idle: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ChannelHealth {
    pub channel: Arc<str>,
    pub verdict: Verdict,
    pub counts: Counts,
    pub runners_total: u32,
    /// The ten longest stuck.
    pub stuck_jobs: Vec<Stuck>,
    pub alerts: Vec<String>,
    pub metrics: Metrics,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SystemHealth {
    /// The worst of the channels.
    pub verdict: Verdict,
    pub totals: Counts,
    pub channels: Vec<ChannelHealth>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ChannelStats {
    pub channel: Arc<str>,
    pub tally: ChannelTally,
    pub runners: u32,
    pub metrics: Metrics,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    pub channels: Vec<ChannelStats>,
    pub runners: Vec<Presence>,
    pub tally: Tally,
    pub running_stale: u64,
    pub runners_active: u32,
    /// The node that leads; none while no node does.
    pub lock_holder: Option<Arc<str>>,
    pub retention: RetentionStats,
}

/// One look at everything, so that the parts of an answer fit together.
struct Survey {
    tally: Tally,
    roster: Vec<Presence>,
    stuck: HashMap<Arc<str>, Vec<Stuck>>,
    names: BTreeSet<Arc<str>>,
    reports: Vec<ChannelReport>,
    removals: Vec<Removals>,
}

impl Survey {
    fn metrics_of(&self, channel: &str) -> Metrics {
        Metrics::of(self.reports.iter().filter(|report| *report.channel == *channel))
    }
}

impl Shared {
    pub(super) async fn channel_health(&self, channel: &str) -> Result<ChannelHealth, EngineError> {
        let survey = self.survey().await?;
        Ok(self.health_of(&survey, &Arc::from(channel)))
    }

    pub(super) async fn system_health(&self) -> Result<SystemHealth, EngineError> {
        let survey = self.survey().await?;
        let channels: Vec<ChannelHealth> = survey.names.iter().map(|name| self.health_of(&survey, name)).collect();
        let mut totals = Counts { runners_active: active(&survey.roster), ..Counts::default() };
        for channel in &channels {
            totals.unclaimed += channel.counts.unclaimed;
            totals.running += channel.counts.running;
            totals.scheduled += channel.counts.scheduled;
            totals.stuck += channel.counts.stuck;
        }
        let verdict = channels.iter().map(|channel| channel.verdict).max().unwrap_or(Verdict::Healthy);
        Ok(SystemHealth { verdict, totals, channels })
    }

    pub(super) async fn stats(&self) -> Result<Stats, EngineError> {
        let survey = self.survey().await?;
        let channels = survey
            .names
            .iter()
            .map(|name| ChannelStats {
                channel: name.clone(),
                tally: survey.tally.channels.get(name).copied().unwrap_or_default(),
                runners: runners_of(&survey.roster, name).filter(|runner| runner.alive).count() as u32,
                metrics: survey.metrics_of(name),
            })
            .collect();
        Ok(Stats {
            channels,
            running_stale: survey.stuck.values().map(|stuck| stuck.len() as u64).sum(),
            runners_active: active(&survey.roster),
            runners: survey.roster,
            retention: RetentionStats::of(self.settings.retention, &survey.tally, &survey.removals),
            tally: survey.tally,
            lock_holder: self.fleet.leader().await,
        })
    }

    async fn survey(&self) -> Result<Survey, EngineError> {
        let now = self.now();
        let tally = self.store.tally(now).await?;
        let roster = self.registry.roster(now).await;
        let mut names: BTreeSet<Arc<str>> = tally.channels.keys().cloned().collect();
        names.extend(roster.iter().filter(|runner| runner.alive).flat_map(|runner| runner.channels.clone()));
        let mut reports = self.metrics.reports(now);
        let mut removals = vec![self.removals.report()];
        for node in self.fleet.nodes().await.into_iter().filter(|node| node.node_id != self.settings.node_id) {
            reports.extend(node.channels);
            removals.push(node.removals);
        }
        names.extend(reports.iter().map(|report| report.channel.clone()));
        let running: u64 = tally.channels.values().map(|channel| channel.running).sum();
        let stuck = if running > 0 { self.stuck(&roster).await? } else { HashMap::new() };
        Ok(Survey { tally, roster, stuck, names, reports, removals })
    }

    /// Running jobs whose runner is not alive, by channel, longest silent first.
    async fn stuck(&self, roster: &[Presence]) -> Result<HashMap<Arc<str>, Vec<Stuck>>, EngineError> {
        let now = self.now();
        let runners: BTreeMap<&str, &Presence> = roster.iter().map(|runner| (&*runner.runner_id, runner)).collect();
        let mut stuck: HashMap<Arc<str>, Vec<Stuck>> = HashMap::new();
        let mut after = None;
        for _ in 0..RUNNING_PAGES {
            let page = self.store.running(after, RUNNING_PAGE).await?;
            for job in &page {
                let Some(runner_id) = &job.runner_id else { continue };
                let runner = runners.get(&**runner_id);
                if job.parent_id.is_some() || runner.is_some_and(|runner| runner.alive) {
                    continue;
                }
                let heard = runner.map(|runner| runner.last_heartbeat).or(job.started_at).unwrap_or(job.modified);
                stuck.entry(job.channel.clone()).or_default().push(Stuck {
                    job_id: job.id,
                    runner_id: runner_id.clone(),
                    attempt: job.executions(),
                    idle: now.since(heard),
                });
            }
            match page.last() {
                Some(last) if page.len() == RUNNING_PAGE as usize => after = Some(last.id),
                _ => break,
            }
        }
        for jobs in stuck.values_mut() {
            jobs.sort_by_key(|stuck| std::cmp::Reverse(stuck.idle));
        }
        Ok(stuck)
    }

    fn health_of(&self, survey: &Survey, channel: &Arc<str>) -> ChannelHealth {
        let tally = survey.tally.channels.get(channel).copied().unwrap_or_default();
        let stuck = survey.stuck.get(channel).map(Vec::as_slice).unwrap_or_default();
        let counts = Counts {
            unclaimed: tally.ready,
            running: tally.running,
            scheduled: tally.scheduled,
            stuck: stuck.len() as u64,
            runners_active: runners_of(&survey.roster, channel).filter(|runner| runner.alive).count() as u32,
        };
        let (verdict, alerts) = judge(&counts);
        ChannelHealth {
            channel: channel.clone(),
            verdict,
            counts,
            runners_total: runners_of(&survey.roster, channel).count() as u32,
            stuck_jobs: stuck.iter().take(STUCK_NAMED).cloned().collect(),
            alerts,
            metrics: survey.metrics_of(channel),
        }
    }
}

fn runners_of<'a>(roster: &'a [Presence], channel: &'a Arc<str>) -> impl Iterator<Item = &'a Presence> {
    roster.iter().filter(move |runner| runner.channels.contains(channel))
}

fn active(roster: &[Presence]) -> u32 {
    roster.iter().filter(|runner| runner.alive).count() as u32
}
