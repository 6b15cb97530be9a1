//! How Errand's connections write, at both ends: what is ready leaves in one piece.
//!
//! Answers to the calls of one connection become ready together, when the commit is stored that they waited for; whoever
//! gets these answers asks again, all at once. Tokio runs a task that was woken just now before the others, so that an
//! HTTP/2 connection would write a message or two at a time, each time with a call to the system and a way through the
//! network stack. [`Gathered`] puts a write off until the others had their turn.

mod gathered;

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Error};
use tower::{ServiceExt, util::MapResponse};

pub use gathered::Gathered;

/// Connects to a server, by TCP or TLS, as [`Endpoint::connect`] does.
pub async fn connect(endpoint: &Endpoint) -> Result<Channel, Error> {
    endpoint.connect_with_connector(connector(endpoint)).await
}

/// Connects with the first call, as [`Endpoint::connect_lazy`] does.
pub fn connect_lazy(endpoint: &Endpoint) -> Channel {
    endpoint.connect_with_connector_lazy(connector(endpoint))
}

type Connector = MapResponse<HttpConnector, fn(TokioIo<TcpStream>) -> TokioIo<Gathered<TcpStream>>>;

fn connector(endpoint: &Endpoint) -> Connector {
    let mut connector = HttpConnector::new();
    // TLS comes on top of it.
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(endpoint.get_connect_timeout());
    connector.map_response(|stream| TokioIo::new(Gathered::new(stream.into_inner())))
}
