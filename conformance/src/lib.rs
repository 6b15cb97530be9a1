//! `errand conformance`: puts a client's runner to the test.
//!
//! Every scenario starts what it needs (a service of its own, or a scripted one; a proxy; the runner under test) in a
//! private folder, plays, and takes everything down again. Scenarios know nothing of each other, so several are played
//! at once. Deliberately absent: timed judgements. A scenario waits long for what must happen, and only what must not
//! happen is watched for a short while.

mod authority;
mod json;
mod kit;
mod proxy;
mod report;
mod scenario;
mod scenarios;
mod script;
mod service;
mod stage;
mod subject;

use std::{
    ffi::OsString,
    io,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use tokio::time::timeout;

use self::{
    kit::Kit,
    report::{Played, Report},
    scenario::{Flaw, Scenario, Verdict},
};

/// A scenario that takes longer than this fails: its waits are bounded by half of it.
const SCENARIO_MAX: Duration = Duration::from_secs(90);
/// The last lines of a log that are shown with a flaw.
const LOG_LINES_SHOWN: usize = 15;

/// Test the runner of a client: play every scenario at COMMAND
///
/// COMMAND is the runner under test. It is started once a scenario, with ERRAND_SERVER (one URL, or several separated by
/// commas), ERRAND_TOKEN, ERRAND_CHANNELS and ERRAND_CAPACITY set, and offers the functions that
/// docs/writing-a-client.md lists. SIGTERM goes to COMMAND itself, so a wrapper must exec it. A line a scenario; exit 0
/// where all pass, 1 otherwise.
#[derive(Debug, clap::Args)]
pub struct Conformance {
    /// Only scenarios whose name contains this; may be given several times
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// List the scenarios and what each claims, and play none
    #[arg(long)]
    list: bool,
    /// Print one JSON document instead of lines
    #[arg(long)]
    json: bool,
    /// How many scenarios to play at once; the number of processors, and at most 8, unless said
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: Option<u16>,
    /// The command, and its arguments
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "list")]
    command: Vec<OsString>,
}

impl Conformance {
    /// Plays the scenarios. Exit codes: 0 all pass, 1 not all, 64 nothing to play, 69 the kit itself cannot work.
    pub async fn run(self) -> ExitCode {
        let wanted = |scenario: &&Scenario| {
            self.only.is_empty() || self.only.iter().any(|pattern| scenario.name.contains(pattern.as_str()))
        };
        let chosen: Vec<Scenario> = scenarios::all().filter(wanted).copied().collect();
        if chosen.is_empty() {
            return report::complain("no scenario has that in its name; --list shows all of them", 64);
        }
        if self.list {
            return report::list(&chosen, self.json);
        }
        match self.play(chosen).await {
            Ok(report) => report.end(),
            Err(error) => report::complain(&format!("the kit cannot work: {error}"), 69),
        }
    }

    async fn play(self, chosen: Vec<Scenario>) -> io::Result<Report> {
        let folder = tempfile::Builder::new().prefix("errand-conformance-").tempdir()?;
        let (errand, command) = (Arc::new(std::env::current_exe()?), Arc::new(self.command));
        let processors = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        let parallel = self.parallel.map_or(processors, usize::from);
        let mut report = Report::new(self.json, chosen.len());
        let plays = chosen.into_iter().map(|scenario| {
            let kit = Kit {
                errand: Arc::clone(&errand),
                command: Arc::clone(&command),
                folder: folder.path().join(scenario.name),
            };
            one(scenario, kit)
        });
        let mut played = stream::iter(plays).buffered(parallel);
        while let Some(one) = played.next().await {
            report.add(one);
        }
        Ok(report)
    }
}

async fn one(scenario: Scenario, kit: Kit) -> Played {
    let begin = Instant::now();
    let folder = kit.folder.clone();
    let (runner_log, service_log) = (kit.runner_log(), kit.service_log());
    let verdict = match std::fs::create_dir(&folder) {
        Ok(()) => verdict(scenario, kit).await,
        Err(error) => Err(error.into()),
    };
    let duration = begin.elapsed();
    let logs = match &verdict {
        Ok(()) => Vec::new(),
        Err(_) => [("runner", runner_log), ("service", service_log)].into_iter().filter_map(tail).collect(),
    };
    // What is left goes with the kit's own folder.
    let _ = std::fs::remove_dir_all(folder);
    Played { scenario, flaw: verdict.err().map(|flaw| flaw.to_string()), duration, logs }
}

async fn verdict(scenario: Scenario, kit: Kit) -> Verdict {
    let limit = SCENARIO_MAX;
    match timeout(limit, (scenario.play)(kit)).await {
        Ok(verdict) => verdict,
        Err(_) => Err(Flaw(format!("the scenario was not over after {} s", limit.as_secs()))),
    }
}

/// The end of a log, under its name.
fn tail((name, file): (&'static str, PathBuf)) -> Option<(&'static str, Vec<String>)> {
    let bytes = std::fs::read(file).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].iter().map(|line| (*line).to_owned()).collect();
    Some((name, shown)).filter(|(_, lines): &(_, Vec<String>)| !lines.is_empty())
}
