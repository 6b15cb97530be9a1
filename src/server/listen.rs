//! The two listeners, what answers behind them, and how they stop.

use std::{io, net::SocketAddr, time::Duration};

use errand_gateway::{GatewayConfig, Upstream};
use errand_wire::Gathered;
use futures::StreamExt;
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};

use super::{cut::Cut, in_flight::InFlight};
use crate::{
    config::{Config, plain},
    drain::Drain,
    start_error::StartError,
    tls::{Tls, TlsListener},
};

/// A peer that went silent is noticed within twice this.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Flow control: a runner's stream or a big publish is not held up by a round trip for each 64 KiB, and a slow reader
/// holds at most this much of a connection's memory.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Streams of one connection; a gateway in another process puts all of its calls on one.
const STREAMS_MAX: u32 = 4_096;
/// Large enough for most messages, small enough that a payload does not delay a heartbeat behind it.
const FRAME_BYTES: u32 = 64 << 10;
/// Calls in progress get this long at a shutdown.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);
/// Once no call waits for its answer, connections get this long to write what is answered; streams end with it.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(300);

/// Bound, and not answering yet.
pub(super) struct Listeners {
    http: Option<(TcpListener, SocketAddr)>,
    grpc: (TcpListener, SocketAddr),
}

impl Listeners {
    pub(super) async fn bind(config: &Config) -> Result<Listeners, StartError> {
        let grpc = bind("grpc", &config.grpc).await?;
        let http = match &config.http {
            Some(address) => Some(bind("http", address).await?),
            None => None,
        };
        Ok(Listeners { http, grpc })
    }

    /// As the operating system has it, with the port it picked.
    pub(super) fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|(_, address)| *address)
    }

    pub(super) fn grpc_address(&self) -> SocketAddr {
        self.grpc.1
    }
}

async fn bind(key: &str, address: &str) -> Result<(TcpListener, SocketAddr), StartError> {
    let bound = TcpListener::bind(address).await;
    bound.and_then(|listener| listener.local_addr().map(|local| (listener, local))).map_err(|error| {
        StartError::Unavailable(match error.kind() {
            io::ErrorKind::AddrInUse => format!("{key} address {address} is in use; choose another with --{key}"),
            _ => format!("{key} address {address} cannot be bound: {}", plain(&error)),
        })
    })
}

/// The servers behind both listeners.
pub(super) struct Servers {
    tasks: JoinSet<Result<(), String>>,
    /// Take nothing new.
    stop: CancellationToken,
    /// End what is left.
    cut: CancellationToken,
    in_flight: InFlight,
}

impl Servers {
    pub(super) fn start(
        listeners: Listeners,
        routes: Routes,
        config: &Config,
        tls: Option<Tls>,
        drain: &Drain,
    ) -> Result<Servers, StartError> {
        let mut servers = Servers {
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            in_flight: InFlight::new(),
        };
        if let Some((listener, _)) = listeners.http {
            servers.start_http(listener, routes.clone(), config, tls.as_ref(), drain)?;
        }
        servers.start_grpc(listeners.grpc.0, routes, tls)?;
        Ok(servers)
    }

    fn start_grpc(&mut self, listener: TcpListener, routes: Routes, tls: Option<Tls>) -> Result<(), StartError> {
        let mut server = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(STREAMS_MAX)
            .max_frame_size(FRAME_BYTES);
        if let Some(tls) = tls {
            server = server
                .tls_config(tls.grpc)
                .map_err(|error| StartError::Usage(format!("tls_cert: gRPC cannot use it: {error}")))?;
        }
        let cut = self.cut.clone();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let incoming = incoming.map(move |stream| stream.map(|stream| Cut::new(Gathered::new(stream), cut.clone())));
        let stop = self.stop.clone();
        let serving = server
            .layer(self.in_flight.clone())
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
        self.tasks.spawn(async move { serving.await.map_err(|error| format!("the gRPC listener died: {error}")) });
        Ok(())
    }

    fn start_http(
        &mut self,
        listener: TcpListener,
        routes: Routes,
        config: &Config,
        tls: Option<&Tls>,
        drain: &Drain,
    ) -> Result<(), StartError> {
        let settings =
            GatewayConfig { body_max_bytes: config.body_max_bytes, cors_origins: config.cors_origins.clone() };
        let router = errand_gateway::router(Upstream::in_process(routes), settings).layer(self.in_flight.clone());
        let stop = self.stop.clone().cancelled_owned();
        let died = |error: io::Error| format!("the http listener died: {error}");
        match tls {
            None => {
                self.tasks.spawn(async move { errand_gateway::serve(listener, router, stop).await.map_err(died) });
            }
            Some(tls) => {
                let listener = TlsListener::start(listener, tls, drain)
                    .map_err(|error| StartError::Unavailable(format!("http cannot listen: {}", plain(&error))))?;
                let serving = axum::serve(listener, router).with_graceful_shutdown(stop);
                self.tasks.spawn(async move { serving.await.map_err(died) });
            }
        }
        Ok(())
    }

    /// Returns, with what happened, only if a server ends unasked.
    pub(super) async fn failed(&mut self) -> String {
        match self.tasks.join_next().await {
            Some(Ok(Ok(()))) => String::from("a listener ended by itself"),
            Some(Ok(Err(why))) => why,
            Some(Err(error)) => format!("a listener died: {error}"),
            // There is always the gRPC listener.
            None => std::future::pending().await,
        }
    }

    /// Takes no new connections and returns once calls in progress are answered. A stream has no end of its own and is
    /// not waited for: its connection is cut, so that nothing holds on to the engine.
    pub(super) async fn finish(mut self) {
        self.stop.cancel();
        let answered = async {
            self.in_flight.none_left().await;
            tokio::time::sleep(FLUSH_TIMEOUT).await;
        };
        // Cancel-safe: both only wait; a server that ended and was taken from the set needs nothing more.
        let finished = async {
            tokio::select! { () = answered => {}, () = ended(&mut self.tasks) => {} }
        };
        if timeout(FINISH_TIMEOUT, finished).await.is_err() {
            tracing::warn!("calls still in progress were cut off");
        }
        self.cut.cancel();
        if timeout(FLUSH_TIMEOUT, ended(&mut self.tasks)).await.is_err() {
            self.tasks.shutdown().await;
        }
    }
}

async fn ended(tasks: &mut JoinSet<Result<(), String>>) {
    while tasks.join_next().await.is_some() {}
}
