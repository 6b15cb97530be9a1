//! Where the service is and how to speak to it: URLs, TLS and the bearer token.
//!
//! Deliberately absent: retries. Commands fail at once with a clear sentence, runners have their own backoff.

use std::{path::PathBuf, time::Duration};

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

/// A connection that sends the token with every call.
pub type Transport = InterceptedService<Channel, Bearer>;

/// Largest answer taken: a page of 1,000 jobs with sizeable payloads fits.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A peer that hangs without closing is noticed after twice this, well within the default lease of 15 s.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Why a server could not be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The configuration is wrong; trying again will not help.
    #[error("{0}")]
    Invalid(String),
    /// Nobody answers there.
    #[error("cannot reach {url}: {reason}")]
    Unreachable { url: String, reason: String },
}

/// The switches that say where the service is.
#[derive(Clone, Debug, clap::Args)]
pub struct ServerArgs {
    /// Where the service listens for gRPC; several, separated by commas, are tried in turn
    #[arg(long, env = "ERRAND_SERVER", value_name = "URL", default_value = "http://127.0.0.1:50051")]
    pub server: String,
    /// The token to show; `errand token --subject NAME` prints one
    #[arg(long, env = "ERRAND_TOKEN", value_name = "T", hide_env_values = true)]
    pub token: Option<String>,
    /// PEM file of the authority that signed the server's certificate; otherwise the system's authorities
    #[arg(long, env = "ERRAND_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// PEM file of this client's certificate, for mutual TLS
    #[arg(long, env = "ERRAND_CLIENT_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of this client's private key, for mutual TLS
    #[arg(long, env = "ERRAND_CLIENT_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

/// The servers of one service, ready to be dialled.
#[derive(Clone, Debug)]
pub struct Servers {
    endpoints: Vec<Endpoint>,
    urls: Vec<String>,
    bearer: Bearer,
}

impl Servers {
    /// Reads the files that `arguments` name and checks every URL; connects to nothing.
    pub fn new(arguments: &ServerArgs) -> Result<Self, EndpointError> {
        let urls = server_urls(&arguments.server)?;
        let endpoints = urls.iter().map(|url| endpoint(url, arguments)).collect::<Result<_, _>>()?;
        Ok(Self { endpoints, urls, bearer: Bearer::new(arguments.token.as_deref())? })
    }

    /// Connects to the first server that answers, beginning with number `first`, which wraps around.
    pub async fn connect_any(&self, first: usize) -> Result<Transport, EndpointError> {
        let mut refusal = EndpointError::Invalid("no server is named".to_owned());
        for offset in 0..self.endpoints.len() {
            match self.connect(first.wrapping_add(offset)).await {
                Ok(transport) => return Ok(transport),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// Connects to server number `index`, which wraps around.
    pub async fn connect(&self, index: usize) -> Result<Transport, EndpointError> {
        let index = index % self.endpoints.len().max(1);
        let (Some(endpoint), Some(url)) = (self.endpoints.get(index), self.urls.get(index)) else {
            return Err(EndpointError::Invalid("no server is named".to_owned()));
        };
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| EndpointError::Unreachable { url: url.clone(), reason: innermost(&error) })?;
        Ok(InterceptedService::new(channel, self.bearer.clone()))
    }

    /// The URLs, for messages.
    pub fn names(&self) -> String {
        self.urls.join(", ")
    }

    /// True where a token is sent along.
    pub fn has_token(&self) -> bool {
        self.bearer.header.is_some()
    }
}

/// Adds `authorization: Bearer T` where there is a token.
#[derive(Clone, Debug)]
pub struct Bearer {
    header: Option<MetadataValue<Ascii>>,
}

impl Bearer {
    fn new(token: Option<&str>) -> Result<Self, EndpointError> {
        let Some(token) = token.map(str::trim).filter(|token| !token.is_empty()) else {
            return Ok(Self { header: None });
        };
        let mut header: MetadataValue<Ascii> = format!("Bearer {token}")
            .parse()
            .map_err(|_| EndpointError::Invalid("the token has characters that no token has".to_owned()))?;
        header.set_sensitive(true);
        Ok(Self { header: Some(header) })
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.header {
            request.metadata_mut().insert("authorization", header.clone());
        }
        Ok(request)
    }
}

/// Splits a comma-separated list; a bare `host:port` means plain HTTP.
fn server_urls(list: &str) -> Result<Vec<String>, EndpointError> {
    let urls: Vec<String> = list
        .split(',')
        .map(str::trim)
        .filter(|url| !url.is_empty())
        .map(|url| if url.contains("://") { url.to_owned() } else { format!("http://{url}") })
        .collect();
    if urls.is_empty() {
        return Err(EndpointError::Invalid("--server names no server".to_owned()));
    }
    match urls.iter().find(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
        Some(url) => Err(EndpointError::Invalid(format!("server {url:?} must begin with http:// or https://"))),
        None => Ok(urls),
    }
}

fn endpoint(url: &str, arguments: &ServerArgs) -> Result<Endpoint, EndpointError> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|_| EndpointError::Invalid(format!("server {url:?} is not a URL")))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    if !url.starts_with("https://") {
        return Ok(endpoint);
    }
    endpoint
        .tls_config(tls(arguments)?)
        .map_err(|error| EndpointError::Invalid(format!("TLS for {url}: {}", innermost(&error))))
}

fn tls(arguments: &ServerArgs) -> Result<ClientTlsConfig, EndpointError> {
    let mut tls = ClientTlsConfig::new();
    tls = match &arguments.tls_ca {
        Some(file) => tls.ca_certificate(Certificate::from_pem(read(file)?)),
        None => tls.with_enabled_roots(),
    };
    if let (Some(certificate), Some(key)) = (&arguments.tls_cert, &arguments.tls_key) {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(tls)
}

fn read(file: &PathBuf) -> Result<Vec<u8>, EndpointError> {
    std::fs::read(file).map_err(|error| EndpointError::Invalid(format!("cannot read {}: {error}", file.display())))
}

/// The cause at the bottom: "Connection refused" tells more than "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_address_means_plain_http() {
        assert_eq!(server_urls("a:1, https://b:2,").unwrap(), ["http://a:1", "https://b:2"]);
    }

    #[test]
    fn another_scheme_is_refused_by_name() {
        assert!(server_urls("ftp://a:1").unwrap_err().to_string().contains("ftp://a:1"));
        assert!(server_urls(" , ").is_err());
    }
}
