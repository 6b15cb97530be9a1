//! One job, one process: started, fed, watched, stopped, judged.

use std::{ffi::OsString, os::unix::process::ExitStatusExt, process::ExitStatus, process::Stdio, time::Duration};

use errand_client::session::{Executor, JobContext, Outcome, Stop};
use errand_proto::v1::{Assignment, Job};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, Command},
    time::{Instant, sleep_until, timeout},
};

use super::log::Log;

const RESULT_BYTES_MAX: usize = 1024 * 1024;
/// The service enforces the time limit; this long after it the runner does, in case it could not be told.
const LIMIT_GRACE: Duration = Duration::from_secs(2);
/// How long a process that was left behind may keep the pipes of the one that ended.
const PIPE_GRACE: Duration = Duration::from_secs(2);
/// `EX_USAGE` of sysexits.h. `EX_TEMPFAIL`, 75, is a failure like any other: retried while retries are left.
const EXIT_PERMANENT: i32 = 64;

/// Starts the command for every job.
#[derive(Debug)]
pub struct Processes {
    program: OsString,
    arguments: Vec<OsString>,
    kill_after: Duration,
}

impl Processes {
    pub fn new(program: OsString, arguments: Vec<OsString>, kill_after: Duration) -> Self {
        Self { program, arguments, kill_after }
    }

    fn start(&self, job: &Job) -> std::io::Result<Child> {
        Command::new(&self.program)
            .args(&self.arguments)
            .env("ERRAND_JOB_ID", &job.id)
            .env("ERRAND_FUNC", &job.func)
            .env("ERRAND_ATTEMPT", job.attempt.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: a Ctrl-C meant for the runner does not reach it, and a stop reaches its children.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }
}

#[async_trait::async_trait]
impl Executor for Processes {
    async fn execute(&self, assignment: Assignment, mut context: JobContext) -> Outcome {
        let job = assignment.job.unwrap_or_default();
        let mut child = match self.start(&job) {
            Ok(child) => child,
            Err(error) => {
                return Outcome::failed(format!("cannot start {}: {error}", self.program.display()));
            }
        };
        let group = Group::of(&child);
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut log = Log::new(context.reporter());
        let mut output = Output::default();
        let limit = job.max_exec_seconds.map(|seconds| Duration::from_secs(u64::from(seconds)));
        let (status, ending) = {
            let pipes = async {
                let read = async {
                    if let Some(stdout) = stdout {
                        output.read(stdout).await;
                    }
                };
                let follow = async {
                    if let Some(stderr) = stderr {
                        log.follow(stderr).await;
                    }
                };
                tokio::join!(feed(stdin, job.payload_json.as_bytes()), read, follow);
            };
            tokio::pin!(pipes);
            let exit = self.exit(&mut child, &group, &mut context, limit);
            tokio::pin!(exit);
            let mut are_closed = false;
            let ended = loop {
                tokio::select! {
                    ended = &mut exit => break ended,
                    () = &mut pipes, if !are_closed => are_closed = true,
                }
            };
            if !are_closed && timeout(PIPE_GRACE, &mut pipes).await.is_err() {
                tracing::debug!(job = job.id, "processes were left behind and are killed");
            }
            ended
        };
        drop(group);
        let last_line = log.finish();
        match status {
            Ok(status) => judge(status, ending, &output, last_line, job.max_exec_seconds),
            Err(error) => Outcome::failed(format!("lost the process: {error}")),
        }
    }
}

/// Why a process was stopped, if it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    ByItself,
    Stopped(Stop),
    OverLimit,
}

impl Processes {
    /// Waits for the end of the process, and brings it about where that is asked for.
    async fn exit(
        &self,
        child: &mut Child,
        group: &Group,
        context: &mut JobContext,
        limit: Option<Duration>,
    ) -> (std::io::Result<ExitStatus>, Ending) {
        let mut level = Stop::Run;
        let mut ending = Ending::ByItself;
        let mut limit_at = limit.map(|limit| Instant::now() + limit + LIMIT_GRACE);
        let mut kill_at = None;
        loop {
            tokio::select! {
                status = child.wait() => return (status, ending),
                stop = context.stop_beyond(level) => {
                    level = stop;
                    ending = Ending::Stopped(stop);
                    if stop == Stop::Kill {
                        group.signal(Signal::SIGKILL);
                    } else if kill_at.is_none() {
                        group.signal(Signal::SIGTERM);
                        kill_at = Some(Instant::now() + self.kill_after);
                    }
                }
                () = at(limit_at) => {
                    limit_at = None;
                    ending = Ending::OverLimit;
                    group.signal(Signal::SIGTERM);
                    kill_at = kill_at.or(Some(Instant::now() + self.kill_after));
                }
                () = at(kill_at) => {
                    kill_at = None;
                    group.signal(Signal::SIGKILL);
                }
            }
        }
    }
}

/// The outcome of a process that ended.
fn judge(status: ExitStatus, ending: Ending, output: &Output, last_line: String, limit: Option<u32>) -> Outcome {
    match ending {
        Ending::Stopped(Stop::Cancel) => return Outcome::Canceled,
        Ending::Stopped(Stop::Kill) if !status.success() => return Outcome::Released,
        Ending::OverLimit if !status.success() => {
            return Outcome::failed(format!("ran longer than {} seconds", limit.unwrap_or_default()));
        }
        _ => {}
    }
    if status.success() {
        if output.is_over {
            return Outcome::failed(format!("result exceeds {RESULT_BYTES_MAX} bytes"));
        }
        return Outcome::Completed { result_json: output.json() };
    }
    let error = match (last_line.is_empty(), status.code(), status.signal()) {
        (false, ..) => last_line,
        (true, Some(code), _) => format!("exit status {code}"),
        (true, None, Some(signal)) => format!("killed by signal {signal}"),
        (true, None, None) => "ended without a status".to_owned(),
    };
    let permanent = status.code() == Some(EXIT_PERMANENT);
    Outcome::Failed { error, stack_trace: String::new(), permanent, retry_after: None }
}

/// What a process wrote to standard output, up to the limit.
#[derive(Debug, Default)]
struct Output {
    bytes: Vec<u8>,
    is_over: bool,
}

impl Output {
    /// Reads to the end; beyond the limit it only keeps the pipe from filling up.
    async fn read(&mut self, mut pipe: impl AsyncRead + Unpin) {
        let mut chunk = [0; 8192];
        while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
            let room = RESULT_BYTES_MAX - self.bytes.len();
            self.is_over |= count > room;
            self.bytes.extend_from_slice(&chunk[..count.min(room)]);
        }
    }

    /// The JSON value as it was spelt, or nothing where it is none.
    fn json(&self) -> String {
        let text = std::str::from_utf8(&self.bytes).map(str::trim).unwrap_or_default();
        serde_json::from_str::<&RawValue>(text).map(|_| text.to_owned()).unwrap_or_default()
    }
}

/// Writes the payload and closes; a process that does not read it may do so.
async fn feed(stdin: Option<ChildStdin>, payload: &[u8]) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(payload).await;
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The process group of one job. Dropped, nothing of it stays behind. Its number is the leader's process id; in the
/// moment between the leader's end and the last signal the system would have to hand out every other id first.
#[derive(Debug)]
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // A group without members is what was wanted.
            let _ = killpg(group, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    fn judged(status: ExitStatus, ending: Ending, output: &str, line: &str) -> Outcome {
        let output = Output { bytes: output.into(), is_over: false };
        judge(status, ending, &output, line.to_owned(), Some(1))
    }

    #[test]
    fn output_is_the_result_only_if_it_is_json() {
        let completed = |json: &str| Outcome::Completed { result_json: json.to_owned() };
        assert_eq!(judged(exit(0), Ending::ByItself, "{\"a\": 1.0}\n", ""), completed("{\"a\": 1.0}"));
        assert_eq!(judged(exit(0), Ending::ByItself, "hello", ""), completed(""));
    }

    #[test]
    fn exit_64_is_final_and_75_is_not() {
        let permanent = |code| match judged(exit(code), Ending::ByItself, "", "boom") {
            Outcome::Failed { permanent, error, .. } if error == "boom" => permanent,
            other => panic!("{other:?}"),
        };
        assert!(permanent(64));
        assert!(!permanent(75));
        assert!(!permanent(1));
    }

    #[test]
    fn a_silent_failure_is_named_by_its_status() {
        assert_eq!(judged(exit(3), Ending::ByItself, "", ""), Outcome::failed("exit status 3"));
        assert_eq!(judged(ExitStatus::from_raw(9), Ending::ByItself, "", ""), Outcome::failed("killed by signal 9"));
    }

    #[test]
    fn a_process_that_ends_after_a_cancel_is_canceled() {
        assert_eq!(judged(exit(0), Ending::Stopped(Stop::Cancel), "", ""), Outcome::Canceled);
        assert_eq!(judged(ExitStatus::from_raw(15), Ending::Stopped(Stop::Cancel), "", ""), Outcome::Canceled);
    }

    #[test]
    fn a_result_over_the_limit_fails() {
        let output = Output { bytes: Vec::new(), is_over: true };
        let outcome = judge(exit(0), Ending::ByItself, &output, String::new(), None);
        assert_eq!(outcome, Outcome::failed("result exceeds 1048576 bytes"));
    }
}
