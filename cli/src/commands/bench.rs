//! `errand bench`: measures a service from outside.
//!
//! Publishers and runners live in this process, the service in another. A figure counts only what was answered: a
//! publish that was acknowledged, a job whose result has its receipt. Beside the figures stand limits measured in the
//! same run, so that each can be read as a share of what this machine could do at all.
//!
//! Every part leaves the queue as empty as it found it. Deliberately absent: any look into the service but its answers
//! and, where it was started here, what the operating system says of its memory and its time.

mod crew;
mod idle;
mod limits;
mod load;
mod paced;
mod parts;
mod report;
mod rest;
mod service;
mod target;

use std::{path::PathBuf, time::Duration};

use clap::ValueEnum;
use tokio::signal::unix::{SignalKind, signal};

use self::{parts::Run, report::Figures, target::Target};
use super::{ClientError, Done};

/// Measures how fast a service takes jobs and has them done.
///
/// Without --server it starts a service of its own, with its data in a folder that it removes again. The client takes
/// processor time as well: on a small machine, the figures are those of both together.
#[derive(Debug, clap::Args)]
pub struct Bench {
    /// Measure the running service that listens for gRPC there
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The token to show to it; it needs run_jobs
    #[arg(long, env = "ERRAND_TOKEN", value_name = "T", hide_env_values = true)]
    token: Option<String>,
    /// Where the running service answers REST; without, REST is left out
    #[arg(long, value_name = "URL", requires = "server")]
    http: Option<String>,
    /// The database of the service that is started
    #[arg(long, value_name = "URL", conflicts_with = "server")]
    database_url: Option<String>,
    /// The Redis server of the service that is started
    #[arg(long, value_name = "URL", conflicts_with = "server")]
    redis_url: Option<String>,
    /// Where the folder with the data is made; the figures are those of its disk [default: the folder for temporary files]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Only these parts; their figures alone are in the answer
    #[arg(long, value_enum, num_args = 1.., value_name = "NAME")]
    only: Vec<Part>,
    /// How long each part publishes
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
    duration: Duration,
    /// Jobs queued before the drain
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..))]
    drain_jobs: u64,
    /// Runners that take the jobs
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runners: u32,
    /// Executions that each runner holds at once
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    capacity: u32,
    /// Runners that attach and wait, for the memory that they cost
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    idle_runners: u32,
    /// Channels that the jobs are spread over
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    channels: u32,
    /// Size of each job's payload
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(64..=1_000_000))]
    payload: u32,
    /// A few seconds in all: shows that everything works, not how fast
    #[arg(long)]
    quick: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What the machine could do at all
    Limits,
    /// Memory of runners that wait
    IdleRunners,
    /// Single publishes with 1, 64 and 256 in flight
    PublishSingle,
    /// Batches of 100 jobs from 16 publishers
    PublishBatch,
    /// Publishing streams
    PublishStream,
    /// REST publishes over 64 connections
    PublishRest,
    /// Jobs that were queued before the runners came
    Drain,
    /// Single publishes with 64 in flight, and runners at the same time
    EndToEndSingle,
    /// Batches of 100 jobs from 16 publishers, and runners at the same time
    EndToEndBatch,
    /// From publish to start at 1,000 and 5,000 jobs a second
    Latency,
}

/// What the publishers and runners do.
#[derive(Debug, Clone)]
struct Workload {
    duration: Duration,
    drain_jobs: u64,
    runners: u32,
    capacity: u32,
    idle_runners: u32,
    channels: u32,
    payload_bytes: usize,
}

/// With --quick.
const QUICK_DURATION: Duration = Duration::from_millis(200);
const QUICK_JOBS: u64 = 1_000;
const QUICK_IDLE_RUNNERS: u32 = 20;

impl Bench {
    pub(super) async fn run(self) -> Done {
        let mut interrupt =
            signal(SignalKind::interrupt()).map_err(|error| ClientError::Failed(format!("no signals: {error}")))?;
        // What is dropped where the signal comes first ends the service and removes its folder.
        let figures = tokio::select! {
            figures = self.measure() => figures?,
            _ = interrupt.recv() => return Err(ClientError::Failed("interrupted".to_owned())),
        };
        figures.print(self.json)
    }

    async fn measure(&self) -> Result<Figures, ClientError> {
        let folder = tempfile::Builder::new().prefix("errand-bench-").tempdir_in(self.parent());
        let folder = folder.map_err(|error| {
            ClientError::Usage(format!("no folder can be made in {}: {error}", self.parent().display()))
        })?;
        let target = match &self.server {
            Some(url) => Target::running(url, self.token.as_deref(), self.http.as_deref()).await?,
            None => Target::started(folder.path(), self.database_url.as_deref(), self.redis_url.as_deref()).await?,
        };
        let mut run = Run::new(target, self.workload(), folder.path());
        for part in Part::value_variants().iter().filter(|part| self.only.is_empty() || self.only.contains(part)) {
            run.measure(*part).await?;
        }
        run.finish().await
    }

    fn parent(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(std::env::temp_dir)
    }

    fn workload(&self) -> Workload {
        Workload {
            duration: if self.quick { QUICK_DURATION } else { self.duration },
            drain_jobs: if self.quick { QUICK_JOBS } else { self.drain_jobs },
            runners: self.runners,
            capacity: self.capacity,
            idle_runners: if self.quick { QUICK_IDLE_RUNNERS } else { self.idle_runners },
            channels: self.channels,
            payload_bytes: self.payload as usize,
        }
    }
}
