//! The runner of an application: its functions, by name, and where they take their jobs from.

use std::fmt;

use serde::Serialize;
use tokio::sync::watch;

use crate::{
    EndpointError, Execution, Failure, Servers,
    functions::Functions,
    session::{self, RunnerConfig, SessionError, Shutdown},
};

const RUNNER_ID_MAX: usize = 64;
/// How many jobs a runner holds at once unless it says otherwise.
const CAPACITY_DEFAULT: u32 = 10;

/// Why a runner could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Something was said of the runner that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The service will not have it.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl From<EndpointError> for RunError {
    fn from(error: EndpointError) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// Takes jobs and calls functions.
///
/// ```no_run
/// use errand_client::{Failure, LogKind, Runner, Servers};
/// use serde_json::{Value, json};
///
/// # async fn example() -> Result<(), errand_client::RunError> {
/// Runner::new(Servers::from_env())
///     .channel("emails")
///     .capacity(20)
///     .function("send", |job| async move {
///         let payload: Value = job.payload()?;
///         let to = payload["to"].as_str().ok_or_else(|| Failure::for_good("nobody to send to"))?;
///         job.add_log(format!("sending to {to}"), LogKind::Info, None);
///         Ok(json!({"sent": 1}))
///     })
///     .run()
///     .await
/// # }
/// ```
pub struct Runner {
    servers: Servers,
    channels: Vec<String>,
    capacity: u32,
    runner_id: Option<String>,
    pub(crate) functions: Functions,
    shutdown: watch::Sender<Shutdown>,
}

impl Runner {
    /// A runner without functions; of the channel `default`, unless [`channel`](Self::channel) names others.
    pub fn new(servers: impl Into<Servers>) -> Self {
        Self {
            servers: servers.into(),
            channels: Vec::new(),
            capacity: CAPACITY_DEFAULT,
            runner_id: None,
            functions: Functions::default(),
            shutdown: watch::Sender::new(Shutdown::Stay),
        }
    }

    /// One more channel to take jobs from.
    #[must_use]
    pub fn channel(mut self, channel: impl Into<String>) -> Self {
        self.channels.push(channel.into());
        self
    }

    /// How many jobs it holds at once, 1 to 10,000; 10 unless said.
    #[must_use]
    pub fn capacity(mut self, capacity: u32) -> Self {
        self.capacity = capacity;
        self
    }

    /// Its name, unique among the live runners: 1 to 64 of `A-Z a-z 0-9 . _ -`. Host, process and a random part
    /// unless said.
    #[must_use]
    pub fn id(mut self, runner_id: impl Into<String>) -> Self {
        self.runner_id = Some(runner_id.into());
        self
    }

    /// Offers a function. What it returns is the job's result; an error or a panic fails the job with its text.
    ///
    /// It runs as a task of the runtime that [`run`](Self::run) is called on, and is dropped where it stands when
    /// its time limit is over or its lease is lost. One that computes for long without an `.await` keeps a thread
    /// of that runtime from other functions, though never the runner from its heartbeats; such a one is better off
    /// as a [`blocking_function`](Self::blocking_function).
    #[must_use]
    pub fn function<F, R, T>(mut self, name: impl Into<String>, function: F) -> Self
    where
        F: Fn(Execution) -> R + Send + Sync + 'static,
        R: Future<Output = Result<T, Failure>> + Send + 'static,
        T: Serialize,
    {
        self.functions.add(name.into(), function);
        self
    }

    /// Offers a function that computes or blocks: it has a thread of its own while it runs. Nothing can stop it from
    /// outside, so a long one looks at [`Execution::cancel_requested`], which is also true once its time is over.
    #[must_use]
    pub fn blocking_function<F, T>(mut self, name: impl Into<String>, function: F) -> Self
    where
        F: Fn(Execution) -> Result<T, Failure> + Send + Sync + 'static,
        T: Serialize,
    {
        self.functions.add_blocking(name.into(), function);
        self
    }

    /// What to do when an operator says `reload`; an error is the answer to it.
    #[must_use]
    pub fn on_reload(mut self, reload: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.functions.reload = Some(Box::new(reload));
        self
    }

    /// A handle by which the program stops the runner.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.shutdown.clone())
    }

    /// Works until it is stopped: by SIGTERM or SIGINT, by an operator, by a [`Stopper`]. The first stop drains, the
    /// second one hands back what runs. A service that cannot be reached is tried for ever; one that refuses the
    /// runner at its first word ends it with an error.
    pub async fn run(self) -> Result<(), RunError> {
        let stopper = self.stopper();
        let signals = signals(stopper)?;
        tokio::select! {
            outcome = self.run_without_signals() => outcome,
            never = signals => match never {},
        }
    }

    /// The same for a program that handles its signals itself.
    pub async fn run_without_signals(self) -> Result<(), RunError> {
        let config = self.config()?;
        Ok(session::run(config, self.functions, self.shutdown.subscribe()).await?)
    }

    fn config(&self) -> Result<RunnerConfig, RunError> {
        let invalid = |sentence: String| Err(RunError::Invalid(sentence));
        if self.functions.is_empty() {
            return invalid("the runner offers no function: add one with function(name, ...)".to_owned());
        }
        if !(1..=10_000).contains(&self.capacity) {
            return invalid(format!("capacity must be 1 to 10000, not {}", self.capacity));
        }
        let hostname = hostname();
        let runner_id = match &self.runner_id {
            Some(id) if is_runner_id(id) => id.clone(),
            Some(id) => return invalid(format!("runner id {id:?} must be 1 to 64 of A-Z a-z 0-9 . _ -")),
            None => {
                let chance = uuid::Uuid::new_v4().simple().to_string();
                default_runner_id(&hostname, &format!("{}-{}", std::process::id(), &chance[..6]))
            }
        };
        let channels = if self.channels.is_empty() { vec!["default".to_owned()] } else { self.channels.clone() };
        let client = concat!("errand-rust/", env!("CARGO_PKG_VERSION")).to_owned();
        Ok(RunnerConfig {
            servers: self.servers.dialer()?,
            runner_id,
            channels,
            capacity: self.capacity,
            hostname,
            client,
        })
    }
}

impl fmt::Debug for Runner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runner = formatter.debug_struct("Runner");
        runner.field("servers", &self.servers).field("channels", &self.channels).finish_non_exhaustive()
    }
}

/// Stops a runner from elsewhere in the program.
#[derive(Clone, Debug)]
pub struct Stopper(watch::Sender<Shutdown>);

impl Stopper {
    /// Takes nothing more, finishes what runs, hands in the results.
    pub fn drain(&self) {
        self.reach(Shutdown::Drain);
    }

    /// Hands back what runs; it costs the jobs no attempt.
    pub fn release(&self) {
        self.reach(Shutdown::Release);
    }

    fn reach(&self, shutdown: Shutdown) {
        self.0.send_if_modified(|current| {
            let grows = shutdown > *current;
            *current = shutdown.max(*current);
            grows
        });
    }
}

/// The first SIGTERM or SIGINT drains, every later one releases.
#[cfg(unix)]
fn signals(stopper: Stopper) -> Result<impl Future<Output = std::convert::Infallible>, RunError> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen =
        |kind| signal(kind).map_err(|error| RunError::Invalid(format!("signals cannot be listened to: {error}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        let mut stops = 0;
        loop {
            // Cancel-safe: a signal that nobody has received yet is kept.
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stops += 1;
            if stops == 1 { stopper.drain() } else { stopper.release() }
        }
    })
}

#[cfg(not(unix))]
fn signals(stopper: Stopper) -> Result<impl Future<Output = std::convert::Infallible>, RunError> {
    Ok(async move {
        let mut stops = 0;
        while tokio::signal::ctrl_c().await.is_ok() {
            stops += 1;
            if stops == 1 { stopper.drain() } else { stopper.release() }
        }
        std::future::pending().await
    })
}

/// The machine's name, for people.
pub fn hostname() -> String {
    #[cfg(unix)]
    let name = nix::unistd::gethostname().ok().map(|name| name.to_string_lossy().into_owned());
    #[cfg(not(unix))]
    let name = std::env::var("COMPUTERNAME").ok();
    name.unwrap_or_else(|| "host".to_owned())
}

/// A valid runner id of a host's name and something that tells its processes apart.
pub fn default_runner_id(hostname: &str, suffix: &str) -> String {
    let suffix = format!("-{suffix}");
    let host = hostname.chars().map(|letter| if is_id_letter(letter) { letter } else { '-' });
    host.take(RUNNER_ID_MAX.saturating_sub(suffix.len())).collect::<String>() + &suffix
}

/// 1 to 64 of `A-Z a-z 0-9 . _ -`.
pub fn is_runner_id(text: &str) -> bool {
    (1..=RUNNER_ID_MAX).contains(&text.len()) && text.chars().all(is_id_letter)
}

fn is_id_letter(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_runner_id_is_always_a_valid_one() {
        for host in ["worker-01", "", "häuschen.local", &"x".repeat(200)] {
            assert!(is_runner_id(&default_runner_id(host, &u32::MAX.to_string())), "{host}");
        }
    }

    #[test]
    fn what_cannot_be_is_said_before_anything_is_dialled() {
        let refusal = |runner: Runner| runner.config().unwrap_err().to_string();
        let offering = || Runner::new("h:1").function("f", |_| async { Ok(()) });
        assert!(refusal(Runner::new("h:1")).contains("no function"));
        assert!(refusal(offering().capacity(0)).contains("capacity"));
        assert!(refusal(offering().id("a b")).contains("a b"));
        assert!(refusal(Runner { servers: Servers::at("ftp://h"), ..offering() }).contains("ftp"));
        assert!(offering().config().is_ok());
    }
}
