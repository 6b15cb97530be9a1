//! A gRPC server whose only method answers with the publish that it was sent: the least that a unary call can cost.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    io::Write,
    pin::Pin,
    task::{Context, Poll},
};

use errand_proto::v1::PublishJobRequest;
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, UnaryService},
    transport::{Server, server::TcpIncoming},
};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::{config::plain, start_error::StartError};

pub async fn serve() -> Result<(), StartError> {
    let unavailable = |error: std::io::Error| StartError::Unavailable(format!("no address: {}", plain(&error)));
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(unavailable)?;
    let address = listener.local_addr().map_err(unavailable)?;
    // Nobody calls where nobody reads.
    let _ = writeln!(std::io::stdout(), "{address}");
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let served = Server::builder().add_service(Echo).serve_with_incoming(incoming).await;
    served.map_err(|error| StartError::Unavailable(error.to_string()))
}

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "errand.probe.Echo";
}

/// Whatever the method is called: there is only one.
impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let codec = ProstCodec::<PublishJobRequest, PublishJobRequest>::default();
            Ok(Grpc::new(codec).unary(Echo, request).await)
        })
    }
}

impl UnaryService<PublishJobRequest> for Echo {
    type Response = PublishJobRequest;
    type Future = Ready<Result<Response<PublishJobRequest>, Status>>;

    fn call(&mut self, request: Request<PublishJobRequest>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner())))
    }
}
