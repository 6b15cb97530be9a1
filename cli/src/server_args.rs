//! The switches that say where the service is.

use std::path::PathBuf;

use errand_client::{Dialer, EndpointError, Servers};

/// Where the service is, and how to speak to it.
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

impl ServerArgs {
    /// Reads the files that are named and checks every URL; connects to nothing.
    pub fn dialer(&self) -> Result<Dialer, EndpointError> {
        let mut servers = Servers::at(&self.server);
        if let Some(token) = &self.token {
            servers = servers.token(token);
        }
        if let Some(file) = &self.tls_ca {
            servers = servers.authority_file(file);
        }
        if let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) {
            servers = servers.identity_files(certificate, key);
        }
        servers.dialer().map_err(|error| match error {
            EndpointError::Invalid(message) if self.server.trim_matches([' ', ',']).is_empty() => {
                EndpointError::Invalid(format!("--server: {message}"))
            }
            error => error,
        })
    }
}
