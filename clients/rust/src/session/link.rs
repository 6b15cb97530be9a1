//! One `Attach` stream: opened with Hello, good once Welcome is there.

use std::time::Duration;

use errand_proto::v1::{
    AttachRequest, AttachResponse, Hello, Welcome, attach_request, attach_response, runners_client::RunnersClient,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::endpoint::{Dialer, EndpointError, MESSAGE_BYTES_MAX};

/// Messages between the session and the socket. Few, so that a heartbeat is made when there is room to send it.
const OUTBOUND_MAX: usize = 8;
/// From Hello to Welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The same Hello will be refused again.
    #[error("{0}")]
    Refused(Status),
    /// Another live session bears the runner id; maybe the own one, not yet lapsed.
    #[error("{0}")]
    Taken(String),
    /// Worth another try, here or elsewhere.
    #[error("{0}")]
    Unavailable(String),
}

/// An open stream.
#[derive(Debug)]
pub struct Link {
    pub outbound: mpsc::Sender<AttachRequest>,
    pub inbound: Streaming<AttachResponse>,
    pub welcome: Welcome,
    pub since: Instant,
}

impl Link {
    /// Dials server number `index` and waits for its Welcome.
    pub async fn open(servers: &Dialer, index: usize, hello: Hello) -> Result<Self, LinkError> {
        let transport = servers.connect(index).await.map_err(|error| match error {
            EndpointError::Invalid(_) => LinkError::Refused(Status::invalid_argument(error.to_string())),
            EndpointError::Unreachable { .. } => LinkError::Unavailable(error.to_string()),
        })?;
        let (outbound, requests) = mpsc::channel(OUTBOUND_MAX);
        // Hello waits in the queue before the call: a server may answer nothing before it has read it.
        let hello = AttachRequest { message: Some(attach_request::Message::Hello(hello)) };
        outbound.try_send(hello).map_err(|error| LinkError::Unavailable(error.to_string()))?;
        let mut client = RunnersClient::new(transport).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let opened = timeout(WELCOME_TIMEOUT, async {
            let mut inbound = client.attach(ReceiverStream::new(requests)).await?.into_inner();
            match inbound.message().await? {
                Some(AttachResponse { message: Some(attach_response::Message::Welcome(welcome)) }) => {
                    Ok((inbound, welcome))
                }
                Some(AttachResponse { message: Some(attach_response::Message::GoAway(away)) }) => {
                    Err(Status::unavailable(format!("the server goes away: {}", away.reason)))
                }
                _ => Err(Status::unavailable("the server did not answer Hello with Welcome")),
            }
        });
        match opened.await {
            Ok(Ok((inbound, welcome))) => Ok(Self { outbound, inbound, welcome, since: Instant::now() }),
            Ok(Err(status)) => Err(status.into()),
            Err(_) => Err(LinkError::Unavailable("the server sends no Welcome".to_owned())),
        }
    }

    /// Closes the own half and waits, for a while, until the service has read everything.
    pub async fn close(self) {
        let Self { outbound, mut inbound, .. } = self;
        drop(outbound);
        let drained = async { while let Ok(Some(_)) = inbound.message().await {} };
        // A service that keeps its half open must not keep the runner.
        let _ = timeout(Duration::from_secs(1), drained).await;
    }
}

impl From<Status> for LinkError {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument | Code::Unimplemented => {
                Self::Refused(status)
            }
            Code::AlreadyExists => Self::Taken(status.message().to_owned()),
            _ => Self::Unavailable(format!("{}: {}", status.code(), status.message())),
        }
    }
}
