//! The service under test, whoever started it, and the ways to it.

use std::path::Path;

use errand_client::{
    Dialer, Servers,
    endpoint::{MESSAGE_BYTES_MAX, Transport},
};
use errand_proto::v1::{jobs_client::JobsClient, runners_client::RunnersClient};

use super::{ClientError, service::Service};

/// Where jobs go and come from.
pub struct Target {
    dialer: Dialer,
    /// Host and port of the REST gateway, and the token to show there.
    pub rest: Option<(String, String)>,
    /// Where it was started here.
    pub service: Option<Service>,
}

impl Target {
    /// A service that runs already.
    pub async fn running(url: &str, token: Option<&str>, http: Option<&str>) -> Result<Target, ClientError> {
        let rest = match http.map(|url| url.trim_end_matches('/').strip_prefix("http://")) {
            None => None,
            Some(Some(address)) => Some((address.to_owned(), token.unwrap_or_default().to_owned())),
            Some(None) => return Err(ClientError::Usage("--http must begin with http://".to_owned())),
        };
        Target::new(url, token, rest, None).await
    }

    /// A service of its own, with its data in `folder`.
    pub async fn started(
        folder: &Path,
        database_url: Option<&str>,
        redis_url: Option<&str>,
    ) -> Result<Target, ClientError> {
        let service = Service::start(folder, database_url, redis_url).await?;
        let token = Service::token(folder).await?;
        let url = format!("http://{}", service.grpc);
        let rest = Some((service.http.clone(), token.clone()));
        Target::new(&url, Some(&token), rest, Some(service)).await
    }

    async fn new(
        url: &str,
        token: Option<&str>,
        rest: Option<(String, String)>,
        service: Option<Service>,
    ) -> Result<Target, ClientError> {
        let mut servers = Servers::at(url);
        if let Some(token) = token {
            servers = servers.token(token);
        }
        let target = Target { dialer: servers.dialer()?, rest, service };
        target.connect().await?;
        Ok(target)
    }

    /// A connection of its own.
    pub async fn connect(&self) -> Result<Transport, ClientError> {
        Ok(self.dialer.connect_any(0).await?)
    }

    pub async fn jobs(&self) -> Result<JobsClient<Transport>, ClientError> {
        Ok(JobsClient::new(self.connect().await?).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    pub async fn runners(&self) -> Result<RunnersClient<Transport>, ClientError> {
        Ok(RunnersClient::new(self.connect().await?).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Explains a refusal.
    pub fn refusal(&self, status: &tonic::Status) -> ClientError {
        ClientError::refusal(status, &self.dialer)
    }

    /// What explains refusals where there is no target at hand.
    pub fn dialer(&self) -> Dialer {
        self.dialer.clone()
    }
}
