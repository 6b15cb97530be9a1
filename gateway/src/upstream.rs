//! Where the gRPC calls go.

use std::time::Duration;

use axum::{
    extract::FromRequestParts,
    http::{
        HeaderMap, HeaderName, Request as HttpRequest, Response as HttpResponse, header::AUTHORIZATION, request::Parts,
    },
};
use errand_proto::v1::{health_client::HealthClient, jobs_client::JobsClient, runners_client::RunnersClient};
use tonic::{body::Body, metadata::MetadataValue, service::Routes, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient as LivenessClient,
};
use tower::{BoxError, ServiceExt, util::BoxCloneSyncService};

use crate::Problem;

/// The largest answer taken from the core, in bytes: a page of 1,000 jobs with their payloads.
const ANSWER_MAX: usize = 1 << 30;
/// How long a call may take that does not say otherwise.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the core may take to say that it serves.
const READY_TIMEOUT: Duration = Duration::from_secs(1);
/// Headers that the core reads as well.
const PASSED_ON: [&str; 3] = ["authorization", "traceparent", "x-request-id"];

type Transport = BoxCloneSyncService<HttpRequest<Body>, HttpResponse<Body>, Unreachable>;

/// The transport's own error, for the log only.
#[derive(Debug, thiserror::Error)]
#[error("the core cannot be reached")]
pub(crate) struct Unreachable(#[source] BoxError);

/// The core, in this process or elsewhere. Clones are cheap and share a connection.
#[derive(Clone)]
pub struct Upstream(Transport);

impl Upstream {
    /// The core in this process, without a socket between.
    pub fn in_process(routes: Routes) -> Upstream {
        let routes = ServiceExt::<HttpRequest<Body>>::map_err(routes, |never| Unreachable(never.into()));
        Upstream(BoxCloneSyncService::new(routes))
    }

    /// A core behind a connection.
    pub fn remote(channel: Channel) -> Upstream {
        Upstream(BoxCloneSyncService::new(channel.map_err(|error| Unreachable(error.into()))))
    }

    pub(crate) fn jobs(&self) -> JobsClient<Transport> {
        JobsClient::new(self.0.clone()).max_decoding_message_size(ANSWER_MAX)
    }

    pub(crate) fn runners(&self) -> RunnersClient<Transport> {
        RunnersClient::new(self.0.clone()).max_decoding_message_size(ANSWER_MAX)
    }

    pub(crate) fn health(&self) -> HealthClient<Transport> {
        HealthClient::new(self.0.clone()).max_decoding_message_size(ANSWER_MAX)
    }

    /// Whether the core says that it serves.
    pub(crate) async fn serves(&self) -> bool {
        let mut request = tonic::Request::new(HealthCheckRequest { service: String::new() });
        request.set_timeout(READY_TIMEOUT);
        let mut client = LivenessClient::new(self.0.clone());
        let answered = tokio::time::timeout(READY_TIMEOUT, client.check(request)).await;
        matches!(answered, Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving)
    }
}

/// Whoever sent the request: the headers that the core reads as well.
pub(crate) struct Caller(HeaderMap);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    /// A request without any token is refused before its body is read.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Caller, Problem> {
        if parts.headers.contains_key(AUTHORIZATION) {
            Ok(Caller(parts.headers.clone()))
        } else {
            Err(Problem::unauthenticated())
        }
    }
}

impl Caller {
    /// A call on the caller's behalf.
    pub(crate) fn request<T>(&self, message: T, limit: Duration) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(limit);
        for name in PASSED_ON {
            let value = self.0.get(HeaderName::from_static(name)).and_then(|value| value.to_str().ok());
            if let Some(value) = value.and_then(|value| MetadataValue::try_from(value).ok()) {
                request.metadata_mut().insert(name, value);
            }
        }
        request
    }
}

/// What the core answers within `limit`.
pub(crate) async fn answer<T>(
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Problem> {
    match tokio::time::timeout(limit, call).await {
        Ok(answered) => Ok(answered?.into_inner()),
        Err(_) => Err(Problem::late()),
    }
}
