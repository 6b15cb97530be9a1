//! `errand-gateway`: the REST gateway alone, before a core elsewhere.

use std::{io::Write, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use errand_gateway::{GatewayConfig, Upstream};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

/// The exit code of a bad command line, as in sysexits.h.
const EXIT_USAGE: u8 = 64;
const EXIT_HARD_STOP: i32 = 130;

/// Serves the REST API of an Errand service that runs elsewhere.
#[derive(Parser)]
#[command(name = "errand-gateway", version)]
struct Arguments {
    /// The gRPC address of the service, e.g. http://127.0.0.1:50051
    #[arg(long, env = "ERRAND_UPSTREAM", value_name = "URL")]
    upstream: String,
    /// Where to listen; port 0 picks one
    #[arg(long, env = "ERRAND_HTTP", value_name = "ADDR", default_value = "127.0.0.1:8080")]
    http: SocketAddr,
    /// The certificate authority of an https upstream, PEM
    #[arg(long, env = "ERRAND_UPSTREAM_CA", value_name = "FILE")]
    upstream_ca: Option<PathBuf>,
    /// An origin whose pages may call; * for every origin
    #[arg(long = "cors-origin", env = "ERRAND_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    cors_origins: Vec<String>,
    /// The longest request body
    #[arg(long, env = "ERRAND_BODY_MAX_BYTES", value_name = "N", default_value_t = 8 << 20)]
    body_max_bytes: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nobody is left to tell if standard error is closed.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            tracing::error!("{sentence}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), String> {
    let upstream = Upstream::remote(errand_wire::connect_lazy(&endpoint(&arguments)?));
    let config = GatewayConfig { body_max_bytes: arguments.body_max_bytes, cors_origins: arguments.cors_origins };
    let interrupt = signal(SignalKind::interrupt()).map_err(|error| format!("no SIGINT: {error}"))?;
    let terminate = signal(SignalKind::terminate()).map_err(|error| format!("no SIGTERM: {error}"))?;
    let listener = TcpListener::bind(arguments.http).await.map_err(|error| format!("http: {error}"))?;
    let address = listener.local_addr().map_err(|error| format!("http: {error}"))?;
    writeln!(std::io::stdout(), "errand-gateway ready http={address}").map_err(|error| format!("stdout: {error}"))?;
    errand_gateway::serve(listener, errand_gateway::router(upstream, config), asked_to_stop(interrupt, terminate))
        .await
        .map_err(|error| format!("http: {error}"))
}

fn endpoint(arguments: &Arguments) -> Result<Endpoint, String> {
    let mut endpoint = Endpoint::from_shared(arguments.upstream.clone())
        .map_err(|_| format!("upstream: {:?} is no URL", arguments.upstream))?
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    if arguments.upstream.starts_with("https:") {
        let file = arguments.upstream_ca.as_ref().ok_or("upstream-ca: wanted with an https upstream")?;
        let pem = std::fs::read(file).map_err(|error| format!("upstream-ca: {error}"))?;
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
        endpoint = endpoint.tls_config(tls).map_err(|error| format!("upstream-ca: {error}"))?;
    }
    Ok(endpoint)
}

/// Ends with the first signal; a second one ends the process.
async fn asked_to_stop(mut interrupt: Signal, mut terminate: Signal) {
    either(&mut interrupt, &mut terminate).await;
    tokio::spawn(async move {
        either(&mut interrupt, &mut terminate).await;
        std::process::exit(EXIT_HARD_STOP);
    });
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) {
    // Receiving a signal is cancel-safe: one that is not taken here is kept.
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
