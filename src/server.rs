//! The composition root: the only module that names concrete adapters. It starts the parts in order, tells when both
//! listeners answer, and takes everything down in the opposite order.
//!
//! Deliberately absent: any decision about jobs, and any exit of the process but the hard stop that a second signal asks for.

mod cut;
mod foundation;
mod greeting;
mod in_flight;
mod listen;

use std::{
    io::{IsTerminal, Write},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

use crate::{
    clock::{SystemClock, SystemDice},
    config::{AuthSource, Config, plain},
    data_dir::{DataDir, SigningKey},
    drain::Drain,
    engine::{Engine, Parts, Settings},
    grpc::{self, auth::Authenticator},
    start_error::StartError,
    store::Store,
    tls::Tls,
    token::read_secret,
};
use foundation::Foundation;
use listen::{Listeners, Servers};

/// Sessions are told to leave and given 3 s by the engine; this only bounds an engine that hangs.
const GO_AWAY_TIMEOUT: Duration = Duration::from_secs(5);
/// For each of: the engine's last flush, its loops, and the store.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the service until a signal drains it. Logging must have been started.
pub async fn run(config: Config) -> Result<(), StartError> {
    let mut signals = Signals::install()?;
    let tls = config.tls.as_ref().map(Tls::load).transpose()?;
    let data_dir = DataDir::open(&config.data_dir)?;
    let drain = Drain::new();
    let (auth, first_start) = authenticator(&config, &data_dir)?;
    let foundation = Foundation::lay(&config, &data_dir, &drain).await?;
    let store = foundation.store.clone();
    let listeners = match Listeners::bind(&config).await {
        Ok(listeners) => listeners,
        Err(error) => {
            store.close().await;
            return Err(error);
        }
    };
    let engine = start_engine(&config, &foundation, drain.clone());
    let routes = grpc::routes(engine.clone(), Arc::new(auth), drain.clone());
    let (http, grpc) = (listeners.http_address(), listeners.grpc_address());
    let mut servers = Servers::start(listeners, routes, &config, tls, &drain)?;
    announce(http, grpc);
    if first_start && std::io::stdout().is_terminal() {
        greet(&config, http);
    }

    // Cancel-safe: each branch only waits for a state that stays.
    let outcome = tokio::select! {
        () = signals.next() => Ok(()),
        name = drain.failed() => Err(StartError::Internal(format!("the {name} loop died; see the log"))),
        why = servers.failed() => Err(StartError::Internal(why)),
        why = foundation.ousted() => Err(why),
    };
    tokio::spawn(async move {
        signals.next().await;
        tracing::warn!("a second signal: stopping hard");
        std::process::exit(130);
    });
    tracing::info!("draining");
    shut_down(engine, servers, drain, store).await;
    outcome
}

/// Health says not serving and runners leave first; then calls in progress finish; then what they wrote is flushed; the
/// store closes last. Every step is bounded, for a supervisor's patience is.
async fn shut_down(engine: Engine, servers: Servers, drain: Drain, store: Arc<dyn Store>) {
    bounded("runners leaving", GO_AWAY_TIMEOUT, engine.go_away()).await;
    servers.finish().await;
    bounded("the last flush", STOP_TIMEOUT, engine.stop()).await;
    // Tasks of the listeners are on the drain as well.
    bounded("loops stopping", STOP_TIMEOUT, drain.stop()).await;
    bounded("the database closing", STOP_TIMEOUT, store.close()).await;
    tracing::info!("stopped");
}

async fn bounded(what: &str, limit: Duration, step: impl Future<Output = ()>) {
    if timeout(limit, step).await.is_err() {
        tracing::warn!(what, ?limit, "a step of the shutdown took too long and was left behind");
    }
}

fn start_engine(config: &Config, foundation: &Foundation, drain: Drain) -> Engine {
    let settings = Settings {
        limits: config.limits,
        timings: config.timings,
        retention: config.retention,
        node_id: config.node_id.clone(),
    };
    let parts = Parts {
        store: foundation.store.clone(),
        queue: foundation.queue.clone(),
        fleet: foundation.fleet.clone(),
        clock: Arc::new(SystemClock::new()),
        dice: Arc::new(SystemDice::new()),
    };
    Engine::start(settings, parts, drain)
}

/// And whether its key was made just now.
fn authenticator(config: &Config, data_dir: &DataDir) -> Result<(Authenticator, bool), StartError> {
    match &config.auth {
        AuthSource::OwnKey => {
            let SigningKey { secret, created } = data_dir.signing_key()?;
            Ok((Authenticator::from_secret(&secret), created))
        }
        AuthSource::SecretFile(path) => Ok((Authenticator::from_secret(&read_secret(path)?), false)),
        AuthSource::JwksFile(path) => {
            let refused = |why: String| StartError::Usage(format!("auth_jwks_file: {}: {why}", path.display()));
            let json = std::fs::read_to_string(path).map_err(|error| refused(plain(&error)))?;
            let auth = Authenticator::from_jwks(&json).map_err(|error| refused(error.to_string()))?;
            Ok((auth, false))
        }
    }
}

/// Scripts wait for this line. Who closed standard output does not wait for it.
fn announce(http: Option<SocketAddr>, grpc: SocketAddr) {
    let http = http.map_or_else(|| String::from("off"), |address| address.to_string());
    print(&format!("errand ready http={http} grpc={grpc}\n"));
    tracing::info!(%http, %grpc, "ready");
}

fn greet(config: &Config, http: Option<SocketAddr>) {
    let Some(http) = http else { return };
    let program = std::env::args().next().unwrap_or_else(|| String::from("errand"));
    print(&greeting::first_start(&program, &config.data_dir, http, config.tls.is_some()));
}

fn print(text: &str) {
    let mut stdout = std::io::stdout();
    if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        tracing::debug!(%error, "standard output is closed");
    }
}

/// SIGTERM and SIGINT, from the moment of installing.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> Result<Signals, StartError> {
        let install = |kind| {
            signal(kind).map_err(|error| StartError::Internal(format!("signals cannot be handled: {}", plain(&error))))
        };
        Ok(Signals { terminate: install(SignalKind::terminate())?, interrupt: install(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        // Cancel-safe: tokio keeps a signal that nobody has received yet.
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
