//! TLS for both listeners, from one set of PEM files: what gRPC takes, and a listener that HTTP is served from.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::{
    config::{ConfigError, TlsFiles, plain},
    drain::Drain,
};

/// A client that has not finished its handshake by then is let go.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes in progress at once; further connections wait in the operating system's queue.
const HANDSHAKES_MAX: usize = 256;
/// Connections that are ready and not taken yet. Small: the server takes them as they come.
const READY_MAX: usize = 16;

/// TLS as both servers want it.
#[derive(Clone)]
pub struct Tls {
    pub grpc: ServerTlsConfig,
    http: Arc<ServerConfig>,
}

/// Makes ring the provider of cryptography for the whole process. Harmless where there is one.
pub fn install_provider() {
    // Fails only where a provider is installed, which is what was wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl Tls {
    /// Reads and checks the files.
    pub fn load(files: &TlsFiles) -> Result<Tls, ConfigError> {
        install_provider();
        let cert_pem = read("tls_cert", &files.cert)?;
        let key_pem = read("tls_key", &files.key)?;
        let chain = certificates("tls_cert", &files.cert, &cert_pem)?;
        let key = PrivateKeyDer::from_pem_slice(&key_pem)
            .map_err(|_| wrong("tls_key", &files.key, "holds no private key in PEM"))?;
        let mut grpc = ServerTlsConfig::new().identity(Identity::from_pem(&cert_pem, &key_pem));
        let builder = match &files.client_ca {
            None => ServerConfig::builder().with_no_client_auth(),
            Some(path) => {
                let ca_pem = read("tls_client_ca", path)?;
                let mut roots = RootCertStore::empty();
                for certificate in certificates("tls_client_ca", path, &ca_pem)? {
                    roots
                        .add(certificate)
                        .map_err(|_| wrong("tls_client_ca", path, "holds a certificate that cannot sign others"))?;
                }
                grpc = grpc.client_ca_root(Certificate::from_pem(&ca_pem));
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
                let verifier =
                    verifier.map_err(|error| wrong("tls_client_ca", path, &format!("cannot be used: {error}")))?;
                ServerConfig::builder().with_client_cert_verifier(verifier)
            }
        };
        let mut http = builder
            .with_single_cert(chain, key)
            .map_err(|error| wrong("tls_key", &files.key, &format!("does not fit tls_cert: {error}")))?;
        http.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Tls { grpc, http: Arc::new(http) })
    }
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|error| wrong(key, path, &format!("cannot be read: {}", plain(&error))))
}

fn certificates(key: &str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(wrong(key, path, "holds no certificate in PEM")),
    }
}

fn wrong(key: &str, path: &Path, why: &str) -> ConfigError {
    ConfigError(format!("{key}: {} {why}", path.display()))
}

/// Hands out connections whose handshake is done. Handshakes run beside each other, so a slow client holds up nobody.
pub struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl TlsListener {
    /// Takes connections from `listener` until it is dropped.
    pub fn start(listener: TcpListener, tls: &Tls, drain: &Drain) -> io::Result<TlsListener> {
        let address = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(READY_MAX);
        drain.spawn("tls listener", accept(listener, TlsAcceptor::from(tls.http.clone()), sender, drain.clone()));
        Ok(TlsListener { ready, address })
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    sender: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
    drain: Drain,
) {
    let slots = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let stop = drain.token();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        // Cancel-safe: an accept that is dropped has taken no connection, and the other two only wait for a state.
        let (stream, peer) = tokio::select! {
            () = stop.cancelled() => return,
            () = sender.closed() => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // The likely cause is too many open files; trying at once would only burn the processor.
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (acceptor, sender) = (acceptor.clone(), sender.clone());
        drain.spawn("tls handshake", async move {
            let _slot = slot;
            // Latency only: a connection without it works as well.
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                // Fails where the server stopped meanwhile; the connection closes with it.
                Ok(Ok(stream)) => drop(sender.send((stream, peer)).await),
                Ok(Err(error)) => tracing::debug!(%error, %peer, "the TLS handshake was not completed"),
                Err(_) => tracing::debug!(%peer, "the TLS handshake took too long"),
            }
        });
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The loop above ended, which it does only at a shutdown.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
