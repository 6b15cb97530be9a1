//! `errand work`: a runner in any language, one process a job.

mod log;
mod process;

use std::{process::ExitCode, time::Duration};

use errand_client::{
    runner::{default_runner_id, hostname, is_runner_id},
    session::{self, RunnerConfig, Shutdown},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::EnvFilter;

use self::process::Processes;
use super::{ClientError, Done, moment};
use crate::server_args::ServerArgs;

/// Runs jobs.
///
/// For each job COMMAND is started with the payload on standard input and ERRAND_JOB_ID, ERRAND_FUNC and
/// ERRAND_ATTEMPT set. Exit 0 completes the job (standard output is its result if it is JSON), 75 fails it to be
/// retried, 64 fails it for good, anything else fails it; standard error becomes the job's log. A cancel or the time
/// limit sends SIGTERM, then SIGKILL. SIGTERM and SIGINT finish what runs, a second one hands it back.
#[derive(Debug, clap::Args)]
pub struct Work {
    /// A channel to take jobs from; may be given several times
    #[arg(long = "channel", value_name = "C", env = "ERRAND_CHANNELS", required = true, value_delimiter = ',')]
    channels: Vec<String>,
    /// How many jobs to run at once; the number of processors unless said
    #[arg(long, value_name = "N", env = "ERRAND_CAPACITY", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    capacity: Option<u32>,
    /// The runner's name, unique among the live ones; host and process id unless said
    #[arg(long, value_name = "ID", env = "ERRAND_RUNNER_ID", value_parser = runner_id)]
    runner_id: Option<String>,
    /// Seconds from SIGTERM to SIGKILL
    #[arg(long, value_name = "DURATION", default_value = "10", value_parser = moment::seconds)]
    kill_after: u32,
    #[command(flatten)]
    server: ServerArgs,
    /// The command, and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<std::ffi::OsString>,
}

impl Work {
    pub(super) async fn run(self) -> Done {
        // Where the program has set up its own log, that one stands.
        let filter = EnvFilter::try_from_env("ERRAND_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
        let servers = self.server.dialer()?;
        let hostname = hostname();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let config = RunnerConfig {
            servers: servers.clone(),
            runner_id: self.runner_id.unwrap_or_else(|| default_runner_id(&hostname, &std::process::id().to_string())),
            channels: self.channels,
            capacity: self.capacity.unwrap_or_else(|| u32::try_from(cpus).unwrap_or(1)),
            hostname,
            client: concat!("errand-cli/", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let mut command = self.command.into_iter();
        let Some(program) = command.next() else {
            return Err(ClientError::Usage("COMMAND is missing".to_owned()));
        };
        let executor = Processes::new(program, command.collect(), Duration::from_secs(u64::from(self.kill_after)));
        let shutdown = signals()?;
        let worked = session::run(config, executor, shutdown).await;
        worked.map_err(|error| ClientError::runner(error, &servers))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The first SIGTERM or SIGINT drains, the second hands back.
fn signals() -> Result<watch::Receiver<Shutdown>, ClientError> {
    let listen = |kind| signal(kind).map_err(|error| ClientError::Failed(format!("cannot listen to signals: {error}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let (sender, receiver) = watch::channel(Shutdown::Stay);
    tokio::spawn(async move {
        for shutdown in [Shutdown::Drain, Shutdown::Release] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            sender.send_replace(shutdown);
        }
    });
    Ok(receiver)
}

fn runner_id(text: &str) -> Result<String, String> {
    let refusal = || "must be 1 to 64 of A-Z a-z 0-9 . _ -".to_owned();
    is_runner_id(text).then(|| text.to_owned()).ok_or_else(refusal)
}
