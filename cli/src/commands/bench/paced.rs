//! From publish to start, at a rate that does not wait for the service.
//!
//! Each job has a moment at which it is meant to be published, and takes that moment and the one at which it really was
//! along in its payload. The runner that starts it compares both with its own: so a service that stalls is charged for
//! every job that should have come meanwhile, not only for the one that was in flight.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use errand_proto::v1::{JobSpec, PublishJobRequest};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    ClientError, Workload,
    crew::{Crew, Started},
    load::Mould,
    target::Target,
};

/// Jobs published before the first that counts: connections, caches and prepared statements warm up.
const WARM_UP: Duration = Duration::from_millis(500);
/// Publishes in flight; a service that is further behind cannot hold the rate.
const BEHIND_MAX: usize = 50_000;
/// The longest latency told apart, in microseconds.
const LONGEST: u64 = 60_000_000;

/// What was measured at one rate.
#[derive(Debug, Serialize)]
pub struct Latency {
    /// Jobs a second.
    pub rate: u32,
    pub jobs: u64,
    /// From the moment at which the job was meant to be published.
    pub from_intended_ms: Percentiles,
    /// From the moment at which the client sent it.
    pub from_sent_ms: Percentiles,
}

/// In milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// In a payload, both in microseconds since the first job that counts; negative during the warm-up.
#[derive(Serialize, Deserialize)]
struct Times {
    intended: i64,
    sent: i64,
}

struct Histograms {
    intended: Histogram<u64>,
    sent: Histogram<u64>,
}

/// Publishes `rate` jobs a second for the workload's duration.
pub async fn latency(target: &Target, workload: &Workload, rate: u32) -> Result<Latency, ClientError> {
    let mould = Mould::new(&format!("latency-{rate}"), workload.channels, workload.payload_bytes);
    let begin = Instant::now() + WARM_UP;
    let histograms = Arc::new(Mutex::new(Histograms { intended: histogram()?, sent: histogram()? }));
    let started: Started = {
        let histograms = histograms.clone();
        Arc::new(move |payload| record(&histograms, begin, payload))
    };
    let mut crew = Crew::attach(target, &mould.channels, workload.runners, workload.capacity, Some(started)).await?;
    let published = publish(target, &mould, rate, begin, workload.duration).await?;
    crew.until(published).await?;
    let histograms = histograms.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Latency {
        rate,
        jobs: histograms.intended.len(),
        from_intended_ms: percentiles(&histograms.intended),
        from_sent_ms: percentiles(&histograms.sent),
    })
}

fn histogram() -> Result<Histogram<u64>, ClientError> {
    Histogram::new_with_bounds(1, LONGEST, 3).map_err(|error| ClientError::Failed(error.to_string()))
}

fn record(histograms: &Mutex<Histograms>, begin: Instant, payload: &str) {
    let now = micros_since(begin);
    let Ok(times) = serde_json::from_str::<Times>(payload) else { return };
    if times.intended >= 0 {
        let mut histograms = histograms.lock().unwrap_or_else(PoisonError::into_inner);
        let micros = |from: i64| u64::try_from(now - from).unwrap_or(0).max(1);
        histograms.intended.saturating_record(micros(times.intended));
        histograms.sent.saturating_record(micros(times.sent));
    }
}

/// Negative before it.
fn micros_since(begin: Instant) -> i64 {
    let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    let now = Instant::now();
    if now >= begin { micros(now - begin) } else { -micros(begin - now) }
}

async fn publish(
    target: &Target,
    mould: &Mould,
    rate: u32,
    begin: Instant,
    duration: Duration,
) -> Result<u64, ClientError> {
    let client = target.jobs().await?;
    let (ticks, mut due) = mpsc::channel(BEHIND_MAX);
    // A thread of its own: tokio's timers count in milliseconds, which is as much as is to be measured.
    thread::spawn(move || tick(rate, begin, duration, &ticks));
    let mut calls = JoinSet::new();
    let mut published = 0;
    let settle = |ended: Result<Result<_, tonic::Status>, tokio::task::JoinError>| match ended {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(target.refusal(&status)),
        Err(error) => Err(ClientError::Failed(format!("a publisher died: {error}"))),
    };
    while let Some(intended) = due.recv().await {
        let times = Times { intended, sent: micros_since(begin) };
        let payload_json = serde_json::to_string(&times).map_err(|error| ClientError::Failed(error.to_string()))?;
        let request = PublishJobRequest { spec: Some(JobSpec { payload_json, ..mould.spec(published as usize) }) };
        let mut client = client.clone();
        calls.spawn(async move { client.publish_job(request).await });
        published += 1;
        while let Some(ended) = calls.try_join_next() {
            settle(ended)?;
        }
        if calls.len() >= BEHIND_MAX {
            return Err(ClientError::Failed(format!("the service cannot hold {rate} jobs a second")));
        }
    }
    while let Some(ended) = calls.join_next().await {
        settle(ended)?;
    }
    Ok(published)
}

/// Tells each moment to publish when it comes, in microseconds since `begin`.
fn tick(rate: u32, begin: Instant, duration: Duration, ticks: &mpsc::Sender<i64>) {
    let gap = Duration::from_secs(1) / rate.max(1);
    let warm_ups = i64::try_from(WARM_UP.as_nanos() / gap.as_nanos().max(1)).unwrap_or(0);
    let jobs = i64::try_from(duration.as_nanos() / gap.as_nanos().max(1)).unwrap_or(0);
    for number in -warm_ups..jobs {
        let intended = i64::try_from(gap.as_micros()).unwrap_or(0) * number;
        let wait = intended - micros_since(begin);
        if let Ok(wait) = u64::try_from(wait) {
            thread::sleep(Duration::from_micros(wait));
        }
        if ticks.try_send(intended).is_err() {
            return;
        }
    }
}

fn percentiles(histogram: &Histogram<u64>) -> Percentiles {
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
    Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: at(1.0) }
}
