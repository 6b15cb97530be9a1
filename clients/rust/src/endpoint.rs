//! Where the service is and how to speak to it: URLs, TLS and the bearer token.
//!
//! [`Servers`] is what somebody wrote; [`Dialer`] is the same, checked and with its files read. Deliberately absent:
//! retries. A publisher hears at once that nobody answers, and runners have their own backoff.

use std::{fmt, path::PathBuf, time::Duration};

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
const LOCAL: &str = "http://127.0.0.1:50051";

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

/// One or several servers of one service, the token to show them, and TLS.
///
/// ```
/// use errand_client::Servers;
///
/// let servers = Servers::at("https://one.example:50051, https://two.example:50051")
///     .token("eyJ...")
///     .authority_file("ca.pem")
///     .identity_files("client.pem", "client.key");
/// # let _ = servers;
/// ```
#[derive(Clone)]
pub struct Servers {
    urls: String,
    token: Option<String>,
    authority: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl Servers {
    /// One URL, or several separated by commas. `https://` speaks TLS; a bare `host:port` means `http://`.
    pub fn at(urls: impl Into<String>) -> Self {
        Self { urls: urls.into(), token: None, authority: None, certificate: None, key: None }
    }

    /// From `ERRAND_SERVER`, `ERRAND_TOKEN`, `ERRAND_TLS_CA`, `ERRAND_CLIENT_TLS_CERT` and `ERRAND_CLIENT_TLS_KEY`;
    /// a service on this machine where nothing is set.
    pub fn from_env() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let file = |name| variable(name).map(PathBuf::from);
        Self {
            urls: variable("ERRAND_SERVER").unwrap_or_else(|| LOCAL.to_owned()),
            token: variable("ERRAND_TOKEN"),
            authority: file("ERRAND_TLS_CA"),
            certificate: file("ERRAND_CLIENT_TLS_CERT"),
            key: file("ERRAND_CLIENT_TLS_KEY"),
        }
    }

    /// The token to show; `errand token --subject NAME` prints one.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// A PEM file of the authority that signed the server's certificate; otherwise the system's authorities.
    #[must_use]
    pub fn authority_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.authority = Some(file.into());
        self
    }

    /// PEM files of this program's certificate and private key, for mutual TLS.
    #[must_use]
    pub fn identity_files(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        (self.certificate, self.key) = (Some(certificate.into()), Some(key.into()));
        self
    }

    /// Reads the files and checks every URL; connects to nothing.
    pub fn dialer(&self) -> Result<Dialer, EndpointError> {
        let urls = split(&self.urls)?;
        let endpoints = urls.iter().map(|url| self.endpoint(url)).collect::<Result<_, _>>()?;
        Ok(Dialer { endpoints, urls, bearer: Bearer::new(self.token.as_deref())? })
    }

    fn endpoint(&self, url: &str) -> Result<Endpoint, EndpointError> {
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|_| EndpointError::Invalid(format!("server {url:?} is not a URL")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        if !url.starts_with("https://") {
            return Ok(endpoint);
        }
        endpoint
            .tls_config(self.tls()?)
            .map_err(|error| EndpointError::Invalid(format!("TLS for {url}: {}", innermost(&error))))
    }

    fn tls(&self) -> Result<ClientTlsConfig, EndpointError> {
        let mut tls = ClientTlsConfig::new();
        tls = match &self.authority {
            Some(file) => tls.ca_certificate(Certificate::from_pem(read(file)?)),
            None => tls.with_enabled_roots(),
        };
        match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?)),
            (None, None) => {}
            _ => {
                return Err(EndpointError::Invalid(
                    "a client certificate needs its key, and a key its certificate".to_owned(),
                ));
            }
        }
        Ok(tls)
    }
}

/// Without the token.
impl fmt::Debug for Servers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Servers").field("urls", &self.urls).finish_non_exhaustive()
    }
}

impl From<&str> for Servers {
    fn from(urls: &str) -> Self {
        Self::at(urls)
    }
}

/// The servers of one service, ready to be dialled.
#[derive(Clone, Debug)]
pub struct Dialer {
    endpoints: Vec<Endpoint>,
    urls: Vec<String>,
    bearer: Bearer,
}

impl Dialer {
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
        let channel = errand_wire::connect(endpoint)
            .await
            .map_err(|error| EndpointError::Unreachable { url: url.clone(), reason: innermost(&error) })?;
        Ok(InterceptedService::new(channel, self.bearer.clone()))
    }

    /// How many servers there are.
    pub fn count(&self) -> usize {
        self.endpoints.len()
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
fn split(list: &str) -> Result<Vec<String>, EndpointError> {
    let urls: Vec<String> = list
        .split(',')
        .map(str::trim)
        .filter(|url| !url.is_empty())
        .map(|url| if url.contains("://") { url.to_owned() } else { format!("http://{url}") })
        .collect();
    if urls.is_empty() {
        return Err(EndpointError::Invalid("no server is named".to_owned()));
    }
    match urls.iter().find(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
        Some(url) => Err(EndpointError::Invalid(format!("server {url:?} must begin with http:// or https://"))),
        None => Ok(urls),
    }
}

fn read(file: &PathBuf) -> Result<Vec<u8>, EndpointError> {
    std::fs::read(file).map_err(|error| EndpointError::Invalid(format!("cannot read {}: {error}", file.display())))
}

/// The cause at the bottom: "Connection refused" tells more than "transport error".
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
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
        assert_eq!(split("a:1, https://b:2,").unwrap(), ["http://a:1", "https://b:2"]);
    }

    #[test]
    fn another_scheme_is_refused_by_name() {
        assert!(split("ftp://a:1").unwrap_err().to_string().contains("ftp://a:1"));
        assert!(split(" , ").is_err());
    }

    #[test]
    fn a_token_is_not_shown() {
        assert!(!format!("{:?}", Servers::at("h:1").token("secret")).contains("secret"));
    }

    #[test]
    fn a_certificate_without_its_key_is_refused() {
        let servers = Servers { certificate: Some("client.pem".into()), ..Servers::at("https://h:1") };
        assert!(servers.dialer().unwrap_err().to_string().contains("needs its key"));
    }

    #[test]
    fn a_missing_certificate_is_named() {
        let error = Servers::at("https://h:1").authority_file("/nowhere/ca.pem").dialer().unwrap_err();
        assert!(error.to_string().contains("/nowhere/ca.pem"));
    }
}
