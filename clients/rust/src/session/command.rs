//! The service's commands, and what a runner answers.

use errand_proto::v1::{Command, CommandKind, CommandReply};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Executor, Outcome, Session, Shutdown};

/// What the runner did since its start.
#[derive(Debug)]
pub(super) struct Counters {
    started: Instant,
    processed: u64,
    failed: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self { started: Instant::now(), processed: 0, failed: 0 }
    }
}

impl Counters {
    pub(super) fn count(&mut self, outcome: &Outcome) {
        self.processed += u64::from(!matches!(outcome, Outcome::Released));
        self.failed += u64::from(matches!(outcome, Outcome::Failed { .. }));
    }
}

impl<E: Executor> Session<E> {
    pub(super) fn obey(&mut self, command: &Command) {
        let (data, error) = match self.carry_out(command) {
            Ok(data) => (data.to_string(), String::new()),
            Err(error) => ("{}".to_owned(), error),
        };
        self.ledger.replied(CommandReply { command_id: command.command_id.clone(), data_json: data, error });
    }

    fn carry_out(&mut self, command: &Command) -> Result<Value, String> {
        match command.kind() {
            CommandKind::Ping => Ok(json!({"pong": true})),
            CommandKind::Status => Ok(self.status()),
            CommandKind::Sysinfo => Ok(self.system()),
            CommandKind::Reload => self.executor.reload().map(|()| json!({"reloaded": true})),
            CommandKind::Pause => Ok(self.pause(true)),
            CommandKind::Resume => Ok(self.pause(false)),
            CommandKind::Shutdown => {
                self.shut_down(if command.graceful { Shutdown::Drain } else { Shutdown::Release });
                Ok(json!({"stopping": true, "running": self.ledger.running()}))
            }
            CommandKind::Unspecified => Err("this runner does not know that command".to_owned()),
        }
    }

    fn pause(&mut self, paused: bool) -> Value {
        self.paused = paused;
        let stays = self.leaving == Shutdown::Stay;
        self.ledger.set_capacity(if paused || !stays { 0 } else { self.config.capacity });
        json!({"paused": paused})
    }

    fn status(&self) -> Value {
        json!({
            "runner_id": self.config.runner_id,
            "channels": self.config.channels,
            "capacity": self.config.capacity,
            "running": self.ledger.running(),
            "results_without_receipt": self.ledger.owed(),
            "paused": self.paused,
            "stopping": self.leaving > Shutdown::Stay,
            "jobs_processed": self.counters.processed,
            "jobs_failed": self.counters.failed,
            "uptime_seconds": self.counters.started.elapsed().as_secs(),
        })
    }

    fn system(&self) -> Value {
        // Absent where there is no /proc: then null.
        let load = std::fs::read_to_string("/proc/loadavg").ok();
        let load = load.and_then(|line| line.split(' ').next()?.parse::<f64>().ok());
        json!({
            "hostname": self.config.hostname,
            "pid": std::process::id(),
            "os": std::env::consts::OS,
            "arch": std::env::consts::ARCH,
            "cpus": std::thread::available_parallelism().map_or(1, usize::from),
            "load": load,
            "client": self.config.client,
            "uptime_seconds": self.counters.started.elapsed().as_secs(),
        })
    }
}
