//! The service that a run starts for itself: the same program, in a process of its own.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::ClientError;

/// How long a start may take.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long a service may take to drain.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// What the kernel counts processor time in: USER_HZ is 100 on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// A running service; dropping it kills it.
pub struct Service {
    child: Child,
    pub http: String,
    pub grpc: String,
}

impl Service {
    /// Starts `errand serve` on free ports, with its data in `folder`, and waits until it answers.
    pub async fn start(
        folder: &Path,
        database_url: Option<&str>,
        redis_url: Option<&str>,
    ) -> Result<Service, ClientError> {
        let mut command = this_program()?;
        command.args(["serve", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--data-dir"]).arg(folder);
        for (switch, value) in [("--database-url", database_url), ("--redis-url", redis_url)] {
            if let Some(value) = value {
                command.args([switch, value]);
            }
        }
        // Its log would drown the progress; what it says on its way down is what matters.
        command.env("ERRAND_LOG", "error");
        let (child, line) = started(command).await?;
        let field = |name: &str| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(name));
            word.map(str::to_owned).ok_or_else(|| ClientError::Failed(format!("the service said: {line}")))
        };
        Ok(Service { http: field("http=")?, grpc: field("grpc=")?, child })
    }

    /// A token of the service in `folder`.
    pub async fn token(folder: &Path) -> Result<String, ClientError> {
        let mut command = this_program()?;
        command.args(["token", "--subject", "bench", "--permission", "run_jobs", "--data-dir"]).arg(folder);
        let output = command.output().await.map_err(|error| ClientError::Failed(format!("no token: {error}")))?;
        if !output.status.success() {
            return Err(ClientError::Failed(format!("no token: {}", String::from_utf8_lossy(&output.stderr).trim())));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Memory in use, and the most that ever was, in KiB. None where the system does not tell.
    pub fn memory_kib(&self) -> Option<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()?)).ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some((field("VmRSS:")?, field("VmHWM:")?))
    }

    /// Processor time so far. None where the system does not tell.
    pub fn processor_time(&self) -> Option<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()?)).ok()?;
        // The program's name in parentheses may have spaces; the numbers behind it have none. The first is field 3.
        let (_, numbers) = stat.rsplit_once(") ")?;
        let ticks = |field: usize| numbers.split(' ').nth(field - 3)?.parse::<u32>().ok();
        Some(TICK * (ticks(14)? + ticks(15)?))
    }

    /// Asks it to drain, and waits until it has.
    pub async fn stop(mut self) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        // One that does not drain is killed when it is dropped.
        let _ = timeout(STOP_PATIENCE, self.child.wait()).await;
    }
}

/// This very program, with nothing of Errand in its environment.
pub fn this_program() -> Result<Command, ClientError> {
    let program = std::env::current_exe();
    let program = program.map_err(|error| ClientError::Failed(format!("this program cannot be found: {error}")))?;
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ERRAND_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    Ok(command)
}

/// Starts a program and waits for the line that says it is ready.
pub async fn started(mut command: Command) -> Result<(Child, String), ClientError> {
    let failed = |what: String| ClientError::Failed(format!("the program under test does not start: {what}"));
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|error| failed(error.to_string()))?;
    let stdout = child.stdout.take().ok_or_else(|| failed("it has no standard output".to_owned()))?;
    let mut lines = BufReader::new(stdout).lines();
    match timeout(START_PATIENCE, lines.next_line()).await {
        Ok(Ok(Some(line))) => Ok((child, line)),
        Ok(_) => Err(failed("see its message above".to_owned())),
        Err(_) => Err(failed(format!("it is not ready after {} s", START_PATIENCE.as_secs()))),
    }
}
