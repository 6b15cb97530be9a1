//! `grpc.health.v1.Health` for meshes and load balancers: serving while the engine says so.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};

use crate::engine::Engine;

/// The names one may ask for; the empty one means the whole server. They stand and fall together.
const SERVICES: [&str; 4] = ["", "errand.v1.Jobs", "errand.v1.Runners", "errand.v1.Health"];

pub struct Liveness {
    serving: watch::Receiver<bool>,
}

impl Liveness {
    pub fn new(engine: &Engine) -> Liveness {
        Liveness { serving: engine.health() }
    }
}

fn answer(is_known: bool, is_serving: bool) -> HealthCheckResponse {
    let status = match (is_known, is_serving) {
        (false, _) => ServingStatus::ServiceUnknown,
        (true, true) => ServingStatus::Serving,
        (true, false) => ServingStatus::NotServing,
    };
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Liveness {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !SERVICES.contains(&request.get_ref().service.as_str()) {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(answer(true, *self.serving.borrow())))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// The protocol has Watch answer SERVICE_UNKNOWN where Check answers NOT_FOUND.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let is_known = SERVICES.contains(&request.get_ref().service.as_str());
        let changes = WatchStream::new(self.serving.clone()).map(move |serving| Ok(answer(is_known, serving)));
        Ok(Response::new(changes.boxed()))
    }
}
