//! How the executions of the last five minutes went, by channel. Each node counts what was stored through it, in memory,
//! and tells the fleet: a restart starts its part anew.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    fleet::ChannelReport,
    model::{EventKind, Step, Timestamp},
};

/// Seconds of one slice of the window.
const SLICE_SECONDS: i64 = 10;
/// Slices in the window: five minutes.
const SLICES: i64 = 30;
/// A channel that ran nothing for a day is forgotten.
const REMEMBER_SECONDS: i64 = 24 * 3600;

/// Over the last five minutes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Metrics {
    pub jobs_per_minute: f64,
    /// Percent of the executions that ended, 0 to 100.
    pub success_rate: f64,
    pub avg_duration_ms: f64,
}

#[derive(Default)]
pub struct MetricsBook {
    channels: Mutex<HashMap<Arc<str>, Channel>>,
}

#[derive(Default)]
struct Channel {
    slices: VecDeque<Slice>,
    last_ran: Timestamp,
}

#[derive(Default)]
struct Slice {
    number: i64,
    ended: u64,
    succeeded: u64,
    duration_ms: u64,
}

impl MetricsBook {
    /// Takes note of the executions that ended with these steps.
    pub fn record(&self, steps: &[Step]) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        for step in steps {
            let Some(event) = &step.event else { continue };
            let (job, now) = (&step.job, event.at);
            if job.channel.starts_with('@') {
                continue;
            }
            let succeeded = match event.kind {
                EventKind::Running => {
                    channels.entry(job.channel.clone()).or_default().last_ran = now;
                    continue;
                }
                EventKind::Completed => true,
                EventKind::Failed => false,
                EventKind::Retry if !job.status.is_terminal() => false,
                _ => continue,
            };
            let channel = channels.entry(job.channel.clone()).or_default();
            channel.last_ran = now;
            let slice = channel.slice(now.0 / (SLICE_SECONDS * 1_000_000));
            slice.ended += 1;
            slice.succeeded += u64::from(succeeded);
            let duration = job.started_at.map(|started| now.since(started).as_millis()).unwrap_or(0);
            slice.duration_ms += u64::try_from(duration).unwrap_or(u64::MAX);
        }
    }

    /// How each channel did that ran a job on this node within the last day.
    pub fn reports(&self, now: Timestamp) -> Vec<ChannelReport> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|_, channel| now.0 - channel.last_ran.0 < REMEMBER_SECONDS * 1_000_000);
        let oldest = now.0 / (SLICE_SECONDS * 1_000_000) - SLICES;
        let report = |(name, channel): (&Arc<str>, &Channel)| {
            let mut report = ChannelReport { channel: name.clone(), ended: 0, succeeded: 0, duration_ms: 0 };
            for slice in channel.slices.iter().filter(|slice| slice.number > oldest) {
                report.ended += slice.ended;
                report.succeeded += slice.succeeded;
                report.duration_ms += slice.duration_ms;
            }
            report
        };
        channels.iter().map(report).collect()
    }
}

impl Metrics {
    /// Of what several nodes say of one channel.
    pub fn of<'a>(reports: impl IntoIterator<Item = &'a ChannelReport>) -> Metrics {
        let (mut ended, mut succeeded, mut duration_ms) = (0, 0, 0);
        for report in reports {
            ended += report.ended;
            succeeded += report.succeeded;
            duration_ms += report.duration_ms;
        }
        if ended == 0 {
            return Metrics::default();
        }
        let all = ended as f64;
        Metrics {
            jobs_per_minute: all * 60.0 / (SLICE_SECONDS * SLICES) as f64,
            success_rate: 100.0 * succeeded as f64 / all,
            avg_duration_ms: duration_ms as f64 / all,
        }
    }
}

impl Channel {
    fn slice(&mut self, number: i64) -> &mut Slice {
        if self.slices.back().is_none_or(|last| last.number < number) {
            self.slices.push_back(Slice { number, ..Slice::default() });
        }
        while self.slices.len() > SLICES as usize {
            self.slices.pop_front();
        }
        let last = self.slices.len() - 1;
        &mut self.slices[last]
    }
}
