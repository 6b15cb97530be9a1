//! What a run found, as a table for people and as one object for scripts.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde_json::{Map, Value, json};

use super::{limits::Limits, paced::Latency};
use crate::commands::{ClientError, Done, print, table::table};

/// The publishes in flight that the figure for single ones is of.
pub const SINGLES_IN_FLIGHT: usize = 64;

/// Jobs, and the time they took.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    per_s: f64,
    /// Processor time of the service for each job, in microseconds.
    service_cpu_us: Option<f64>,
}

impl Rate {
    pub fn new(jobs: u64, took: Duration, processor: Option<Duration>) -> Rate {
        let each = |time: Duration| time.as_secs_f64() * 1e6 / (jobs.max(1) as f64);
        Rate { per_s: jobs as f64 / took.as_secs_f64().max(1e-9), service_cpu_us: processor.map(each) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} jobs/s", self.per_s)
    }
}

/// What was measured; parts that were left out have nothing.
#[derive(Debug, Default)]
pub struct Figures {
    pub limits: Option<Limits>,
    /// By calls in flight.
    pub publish_single: BTreeMap<usize, Rate>,
    pub publish_batch: Option<Rate>,
    pub publish_stream: Option<Rate>,
    pub publish_rest: Option<Rate>,
    pub drain: Option<Rate>,
    pub end_to_end_single: Option<Rate>,
    pub end_to_end_batch: Option<Rate>,
    /// By rate, the slowest first.
    pub latency: Vec<Latency>,
    pub idle_runner_kib: Option<f64>,
    /// The service's memory before the first part.
    pub rss_idle_mib: Option<f64>,
    /// The most memory that the service ever had.
    pub rss_mib: Option<f64>,
}

impl Figures {
    pub fn print(&self, json: bool) -> Done {
        let text = if json {
            serde_json::to_string_pretty(&self.object()).map_err(|error| ClientError::Failed(error.to_string()))?
        } else {
            self.table()
        };
        print(&text)?;
        Ok(std::process::ExitCode::SUCCESS)
    }

    /// The rates by the names they have in the answer.
    fn rates(&self) -> [(&'static str, Option<Rate>); 7] {
        [
            ("publish_single", self.publish_single.get(&SINGLES_IN_FLIGHT).copied()),
            ("publish_batch", self.publish_batch),
            ("publish_stream", self.publish_stream),
            ("publish_rest", self.publish_rest),
            ("drain", self.drain),
            ("end_to_end_single", self.end_to_end_single),
            ("end_to_end_batch", self.end_to_end_batch),
        ]
    }

    /// Every key is always there, null where its part was left out.
    fn object(&self) -> Value {
        let mut object = Map::new();
        let mut cpu = Map::new();
        for (name, rate) in self.rates() {
            object.insert(format!("{name}_per_s"), json!(rate.map(|rate| tenths(rate.per_s))));
            cpu.insert(name.to_owned(), json!(rate.and_then(|rate| rate.service_cpu_us).map(tenths)));
        }
        let slowest = self.latency.first().map(|latency| &latency.from_intended_ms);
        let latency = slowest.map(|ms| json!({ "p50": ms.p50, "p99": ms.p99, "max": ms.max }));
        let in_flight: Map<String, Value> =
            self.publish_single.iter().map(|(calls, rate)| (calls.to_string(), json!(tenths(rate.per_s)))).collect();
        let more = json!({
            "latency_ms": latency,
            "rss_mib": self.rss_mib.map(tenths),
            "limits": self.limits,
            "publish_single_by_in_flight": in_flight,
            "latency_by_rate": self.latency,
            "service_cpu_us_per_job": cpu,
            "idle_runner_kib": self.idle_runner_kib.map(tenths),
            "rss_idle_mib": self.rss_idle_mib.map(tenths),
        });
        if let Value::Object(more) = more {
            object.extend(more);
        }
        Value::Object(object)
    }

    fn table(&self) -> String {
        let mut rows = Vec::new();
        for (calls, rate) in &self.publish_single {
            rows.push(self.row(&format!("publish, {calls} in flight"), Some(rate), self.echo_limit()));
        }
        rows.push(self.row("publish, batches of 100", self.publish_batch.as_ref(), self.store_limit()));
        rows.push(self.row("publish, streams", self.publish_stream.as_ref(), self.store_limit()));
        rows.push(self.row("publish, REST", self.publish_rest.as_ref(), None));
        rows.push(self.row("drain", self.drain.as_ref(), self.store_limit()));
        rows.push(self.row("end to end, 64 in flight", self.end_to_end_single.as_ref(), self.echo_limit()));
        rows.push(self.row("end to end, batches of 100", self.end_to_end_batch.as_ref(), self.store_limit()));
        rows.retain(|row| !row[1].is_empty());
        let mut text = table(["", "jobs/s", "of the limit", "service cpu"], rows);
        if !self.latency.is_empty() {
            let rows = self.latency.iter().map(|latency| {
                let ms = &latency.from_intended_ms;
                [format!("{}/s", latency.rate), cell(ms.p50), cell(ms.p99), cell(ms.p999), cell(ms.max)]
            });
            text += "\n";
            text += &table(["publish to start", "p50 ms", "p99 ms", "p99.9 ms", "max ms"], rows);
        }
        text += "\n";
        text += &self.facts();
        text
    }

    fn row(&self, name: &str, rate: Option<&Rate>, limit: Option<f64>) -> [String; 4] {
        let Some(rate) = rate else { return [const { String::new() }; 4] };
        let share = limit.map(|limit| format!("{:.0} %", 100.0 * rate.per_s / limit)).unwrap_or_default();
        let cpu = rate.service_cpu_us.map(|us| format!("{us:.1} us/job")).unwrap_or_default();
        [name.to_owned(), format!("{:.0}", rate.per_s), share, cpu]
    }

    fn echo_limit(&self) -> Option<f64> {
        self.limits.map(|limits| limits.unary_echo_per_s)
    }

    fn store_limit(&self) -> Option<f64> {
        self.limits.map(|limits| limits.store_insert_per_s)
    }

    fn facts(&self) -> String {
        let limit = |value: Option<f64>| value.map(|value| format!("{value:.0} a second")).unwrap_or_default();
        let mib = |value: Option<f64>| value.map(|value| format!("{value:.1} MiB")).unwrap_or_default();
        super::super::table::facts([
            ("limit: empty gRPC calls", limit(self.echo_limit())),
            ("limit: rows inserted", limit(self.store_limit())),
            ("limit: writes to the disk", limit(self.limits.map(|limits| limits.fsync_per_s))),
            ("memory before the run", mib(self.rss_idle_mib)),
            ("memory at most", mib(self.rss_mib)),
            ("memory of a waiting runner", self.idle_runner_kib.map(|kib| format!("{kib:.0} KiB")).unwrap_or_default()),
        ])
    }
}

fn cell(ms: f64) -> String {
    format!("{ms:.2}")
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
