//! The link to Redis that everything in a node shares: one connection for calls, one for messages.
//!
//! Promises:
//! - a call ends within [`connection::ANSWER_TIMEOUT`], and at once while Redis is known to be lost;
//! - it reconnects by itself, and tells in one line that Redis was lost, and in one that it is back;
//! - the same calls work on a cluster, if each keeps to one slot.
//!
//! Deliberately absent: any key but that of its own probe, and any retry of a call. A call whose answer was lost may
//! have been carried out.

mod address;
mod connection;
mod roll;
mod script;
#[cfg(test)]
pub mod servers;
mod subscription;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind, aio::ConnectionLike};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval},
};

pub use address::{Address, InvalidAddress};
pub use script::{Call, Script};
pub use subscription::Listener;

use crate::drain::Drain;
use connection::{ANSWER_TIMEOUT, Connection, bounded};
use roll::Roll;
use subscription::Subscription;

/// Waits between attempts to reconnect: doubled from the first to the last.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_millis(500);
/// A connection that breaks sooner is not made anew at once.
const STEADY: Duration = Duration::from_secs(2);
/// How often the masters of a cluster are asked who they are.
const ROLL_INTERVAL: Duration = Duration::from_secs(1);
/// Mistakes that Redis finds in calls are told this often at most.
const FAULT_QUIET: Duration = Duration::from_secs(10);
/// How long the trace of a probe stays.
const PROBE_TTL_MS: u64 = 1_000;
/// The first version whose scripts may read the clock and write.
const REDIS_MIN: u32 = 7;

pub struct LinkSettings {
    /// As [`Address::parse`] takes it.
    pub url: String,
    /// The start of every key: letters, digits and `_ . : -`.
    pub prefix: String,
}

/// Why there is no link. What is displayed is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("redis_url: {0}")]
    Address(#[from] InvalidAddress),
    #[error("redis_prefix: wanted 1 to 64 of the characters A-Z a-z 0-9 _ . : -")]
    Prefix,
    #[error("redis at {address} cannot be used: {why}; check redis_url, and that it is running")]
    Unreachable { address: String, why: String },
    #[error(
        "redis at {address} is not trusted: {why}; where an authority of your own has signed its certificate, name the \
         authority's file in the environment variable SSL_CERT_FILE"
    )]
    Untrusted { address: String, why: String },
    #[error("redis at {address} is too old: version 7 or later is wanted, or Valkey")]
    Old { address: String },
    #[error("redis at {address} is one node of a cluster: say redis+cluster:// or rediss+cluster:// in redis_url")]
    OneOfACluster { address: String },
}

/// A call was not answered, or not as it should be. It may have been carried out. Its cause is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("redis gave no answer")]
pub struct Unanswered;

/// A handle; clones are the same link.
#[derive(Clone)]
pub struct RedisLink(Arc<Inner>);

struct Inner {
    address: Address,
    prefix: String,
    state: watch::Sender<State>,
    /// The masters of a cluster, as they were last.
    roll: Mutex<Roll>,
    listeners: Mutex<Vec<(String, Arc<dyn Listener>)>>,
    listeners_changed: Notify,
    is_hearing: AtomicBool,
    fault_told: Mutex<Option<Instant>>,
}

#[derive(Clone)]
enum State {
    /// `number` grows with each connection.
    Well {
        connection: Connection,
        number: u64,
    },
    Lost {
        number: u64,
        since: Instant,
    },
}

impl RedisLink {
    /// Connects, and keeps the link on `drain`.
    pub async fn open(settings: LinkSettings, drain: &Drain) -> Result<RedisLink, LinkError> {
        let address = Address::parse(&settings.url)?;
        if !is_prefix(&settings.prefix) {
            return Err(LinkError::Prefix);
        }
        let (mut connection, roll) =
            connect(&address, &settings.prefix).await.map_err(|error| unreachable(&address, &error))?;
        check_server(&address, &mut connection).await?;
        let link = RedisLink(Arc::new(Inner {
            address,
            prefix: settings.prefix,
            state: watch::Sender::new(State::Well { connection, number: 1 }),
            roll: Mutex::new(roll),
            listeners: Mutex::default(),
            listeners_changed: Notify::new(),
            is_hearing: AtomicBool::new(false),
            fault_told: Mutex::default(),
        }));
        drain.spawn("redis connection", keep(link.clone(), drain.token()));
        drain.spawn("redis messages", Subscription::new(link.clone()).run(drain.token()));
        Ok(link)
    }

    /// The start of every key.
    pub fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// Whether the keys of one call must share a slot.
    pub fn is_cluster(&self) -> bool {
        self.0.address.is_cluster
    }

    pub fn is_well(&self) -> bool {
        matches!(*self.0.state.borrow(), State::Well { .. })
    }

    /// Whether messages are heard. A link may be well without, for a moment, or where Redis lets it do no more.
    pub fn is_hearing(&self) -> bool {
        self.0.is_hearing.load(Ordering::Acquire)
    }

    /// Completes when Redis, or a part of it, is back after having been lost; what it held then may be gone.
    pub fn returns(&self) -> Returns {
        let state = self.0.state.subscribe();
        let seen = state.borrow().number();
        Returns { state, seen }
    }

    /// Runs a script; loads it first where Redis does not know it.
    pub async fn run<T: FromRedisValue>(&self, call: &Call<'_>) -> Result<T, Unanswered> {
        self.ask(async |connection: &mut Connection| match call.cmd.query_async(connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                call.load(connection).await?;
                call.cmd.query_async(connection).await
            }
            answered => answered,
        })
        .await
    }

    /// Runs a command.
    pub async fn query<T: FromRedisValue>(&self, cmd: &Cmd) -> Result<T, Unanswered> {
        self.ask(async |connection: &mut Connection| cmd.query_async(connection).await).await
    }

    /// Hears the messages of a channel from some moment on, and again after a loss. The channel's name should tell
    /// databases apart, for Redis does not.
    pub fn listen(&self, channel: String, listener: Arc<dyn Listener>) {
        self.0.listeners.lock().unwrap_or_else(PoisonError::into_inner).push((channel, listener));
        self.0.listeners_changed.notify_one();
    }

    async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&mut Connection) -> Result<T, RedisError>,
    ) -> Result<T, Unanswered> {
        let (mut connection, number) = match &*self.0.state.borrow() {
            State::Well { connection, number } => (connection.clone(), *number),
            State::Lost { .. } => return Err(Unanswered),
        };
        bounded(ANSWER_TIMEOUT, question(&mut connection)).await.map_err(|error| {
            if is_fault(&error) {
                self.0.tell_fault(&error);
            } else {
                self.0.lose(number, &error);
            }
            Unanswered
        })
    }

    /// Finds out whether a master of the cluster is not the one that it was.
    async fn call_roll(&self) {
        // A loss is dealt with where it is found out.
        let Ok(roll) = self.ask(async |connection: &mut Connection| connection.roll().await).await else { return };
        if self.0.take_down(roll) {
            tracing::warn!(
                redis = %self.0.address,
                "a master of the cluster is another one or has lost its memory; what it held is brought back from the store"
            );
            self.0.state.send_modify(|state| {
                if let State::Well { number, .. } = state {
                    *number += 1;
                }
            });
        }
    }
}

impl Inner {
    /// Tells whether it differs from the last one.
    fn take_down(&self, roll: Roll) -> bool {
        let mut known = self.roll.lock().unwrap_or_else(PoisonError::into_inner);
        let differs = *known != roll;
        *known = roll;
        differs
    }

    /// All nodes that are known: those named may be gone while the cluster lives on.
    fn whole_address(&self) -> Address {
        self.address.with(self.roll.lock().unwrap_or_else(PoisonError::into_inner).addresses())
    }

    fn lose(&self, number: u64, why: &RedisError) {
        let lost = self.state.send_if_modified(|state| {
            let known = matches!(state, State::Well { number: current, .. } if *current == number);
            if known {
                *state = State::Lost { number, since: Instant::now() };
            }
            known
        });
        if lost {
            tracing::warn!(redis = %self.address, %why, "redis is lost; jobs are kept, and wait until it is back");
        }
    }

    fn tell_fault(&self, error: &RedisError) {
        let mut told = self.fault_told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= FAULT_QUIET) {
            *told = Some(Instant::now());
            tracing::error!(redis = %self.address, %error, "redis refuses a call");
        }
    }
}

impl State {
    fn number(&self) -> u64 {
        match self {
            State::Well { number, .. } | State::Lost { number, .. } => *number,
        }
    }
}

/// Waits for Redis to come back.
pub struct Returns {
    state: watch::Receiver<State>,
    seen: u64,
}

impl Returns {
    /// Cancel-safe. Pending for ever once the link is gone.
    pub async fn next(&mut self) {
        let seen = self.seen;
        let returned = self.state.wait_for(|state| state.number() > seen).await.map(|state| state.number());
        match returned {
            Ok(number) => self.seen = number,
            Err(_) => std::future::pending().await,
        }
    }
}

/// Reconnects whenever Redis is lost, and looks after the masters of a cluster, until told to stop.
async fn keep(link: RedisLink, stopped: tokio_util::sync::CancellationToken) {
    let mut states = link.0.state.subscribe();
    let mut rolls = interval(ROLL_INTERVAL);
    rolls.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut retry = RETRY_FIRST;
    let mut back = Instant::now();
    loop {
        let is_lost = |state: &State| matches!(state, State::Lost { .. });
        // Cancel-safe: nothing is held while waiting.
        let lost = tokio::select! {
            state = states.wait_for(is_lost) => match state {
                Ok(state) => Some(state.clone()),
                Err(_) => return,
            },
            _ = rolls.tick(), if link.is_cluster() => None,
            () = stopped.cancelled() => return,
        };
        let Some(State::Lost { number, since }) = lost else {
            link.call_roll().await;
            continue;
        };
        if back.elapsed() >= STEADY {
            retry = RETRY_FIRST;
        }
        match connect(&link.0.whole_address(), &link.0.prefix).await {
            Ok((connection, roll)) => {
                back = Instant::now();
                link.0.take_down(roll);
                link.0.state.send_replace(State::Well { connection, number: number + 1 });
                let after = since.elapsed();
                tracing::info!(redis = %link.0.address, ?after, "redis is back");
            }
            Err(error) => tracing::debug!(%error, "redis is still lost"),
        }
        tokio::select! {
            () = tokio::time::sleep(retry) => {}
            () = stopped.cancelled() => return,
        }
        retry = (retry * 2).min(RETRY_LAST);
    }
}

/// A connection over which every part answers and takes writes, and the masters of a cluster.
async fn connect(address: &Address, prefix: &str) -> Result<(Connection, Roll), RedisError> {
    let mut connection = Connection::open(address).await?;
    let probe = async {
        // In a cluster this asks every master.
        redis::cmd("PING").query_async::<()>(&mut connection).await?;
        let mut write = redis::cmd("SET");
        write.arg(format!("{prefix}:probe")).arg(1).arg("PX").arg(PROBE_TTL_MS);
        write.query_async::<()>(&mut connection).await?;
        connection.check_state().await?;
        connection.roll().await
    };
    let roll = bounded(ANSWER_TIMEOUT, probe).await?;
    Ok((connection, roll))
}

/// Finds out what would otherwise show as riddles later.
async fn check_server(address: &Address, connection: &mut impl ConnectionLike) -> Result<(), LinkError> {
    let name = || address.to_string();
    if !address.is_cluster {
        // Who may not ask has an operator who knows.
        let info: String = redis::cmd("INFO").arg("cluster").query_async(connection).await.unwrap_or_default();
        if info.contains("cluster_enabled:1") {
            return Err(LinkError::OneOfACluster { address: name() });
        }
    }
    let version = "return redis.REDIS_VERSION_NUM or 0";
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(version).arg(0);
    let version: u32 = cmd.query_async(connection).await.map_err(|error| unreachable(address, &error))?;
    if version >> 16 < REDIS_MIN {
        return Err(LinkError::Old { address: name() });
    }
    Ok(())
}

fn unreachable(address: &Address, error: &RedisError) -> LinkError {
    let (address, why) = (address.to_string(), error.to_string());
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::Moved) => LinkError::OneOfACluster { address },
        // In a cluster the cause is there as words only.
        ErrorKind::Io | ErrorKind::ClusterConnectionNotFound if why.contains("invalid peer certificate") => {
            LinkError::Untrusted { address, why }
        }
        _ => LinkError::Unreachable { address, why },
    }
}

fn is_prefix(prefix: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
    (1..=64).contains(&prefix.len()) && prefix.bytes().all(fits)
}

/// Whether the call is to blame, so that Redis is there all the same.
fn is_fault(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedReturnType
            | ErrorKind::Server(
                ServerErrorKind::ResponseError
                    | ServerErrorKind::ExecAbort
                    | ServerErrorKind::CrossSlot
                    | ServerErrorKind::NoPerm
            )
    )
}
