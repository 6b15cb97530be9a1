//! The runner under test as a process: started, signalled, waited for, and never left behind.

use std::{
    fs::{File, OpenOptions},
    path::PathBuf,
    process::{ExitStatus, Stdio},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::process::{Child, Command};

use crate::{
    kit::{Kit, clean},
    scenario::{Flaw, PATIENCE, Verdict, soon},
};

/// What the runner is told to be.
#[derive(Clone, Debug)]
pub struct Part {
    /// URLs of one service.
    pub servers: Vec<String>,
    pub token: String,
    pub channel: String,
    pub capacity: u32,
    /// Further variables of its environment, which name files.
    pub files: Vec<(&'static str, PathBuf)>,
}

/// A running process of the command under test. Dropped, it and its children are killed.
#[derive(Debug)]
pub struct Subject {
    child: Child,
    group: Pid,
}

impl Subject {
    pub fn start(kit: &Kit, part: &Part) -> Verdict<Self> {
        let [program, arguments @ ..] = &kit.command[..] else {
            return Err(Flaw("there is no command to test".to_owned()));
        };
        let log = append(kit)?;
        let mut command = Command::new(program);
        clean(&mut command);
        let child = command
            .args(arguments)
            .env("ERRAND_SERVER", part.servers.join(","))
            .env("ERRAND_TOKEN", &part.token)
            .env("ERRAND_CHANNELS", &part.channel)
            .env("ERRAND_CAPACITY", part.capacity.to_string())
            .envs(part.files.iter().map(|(name, file)| (name, file)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Its own group, so that a wrapper's children die with it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Flaw(format!("cannot start {}: {error}", program.display())))?;
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let group = Pid::from_raw(id.ok_or_else(|| Flaw("the runner ended at once".to_owned()))?);
        Ok(Self { child, group })
    }

    /// SIGTERM to the process itself, as a supervisor sends it.
    pub fn terminate(&self) -> Verdict {
        Ok(nix::sys::signal::kill(self.group, Signal::SIGTERM)?)
    }

    /// Waits for its end.
    pub async fn exit(&mut self) -> Verdict<ExitStatus> {
        Ok(soon("the runner exits", self.child.wait()).await??)
    }

    /// Its end, if it has come.
    pub fn exited(&mut self) -> Verdict<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end, which must be exit code 0.
    pub async fn exit_well(&mut self) -> Verdict {
        let status = self.exit().await?;
        match status.success() {
            true => Ok(()),
            false => Err(Flaw(format!("the runner should exit 0, and ended with {status}"))),
        }
    }

    /// Sends SIGTERM again and again until it exits: the second one that it sees must suffice.
    pub async fn terminate_twice(&mut self) -> Verdict<ExitStatus> {
        let end = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < end {
            // It may be gone between the look and the signal.
            let _ = self.terminate();
            let wait = tokio::time::timeout(std::time::Duration::from_millis(500), self.child.wait());
            if let Ok(status) = wait.await {
                return Ok(status?);
            }
        }
        Err(Flaw("the runner should hand back what runs and exit at a second SIGTERM, and did not".to_owned()))
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // A group without members is what was wanted.
        let _ = killpg(self.group, Signal::SIGKILL);
    }
}

fn append(kit: &Kit) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(kit.runner_log())
}
