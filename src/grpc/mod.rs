//! The gRPC face of the service: `errand.v1`, liveness and reflection behind one stack.
//!
//! Handlers are thin: convert, ask the engine on behalf of the caller, convert back. What a caller may do is decided in
//! the engine, and nowhere here; who the caller is, in [`auth`]. Deliberately absent: listening, and TLS.

pub mod auth;
pub mod convert;
mod health;
mod jobs;
mod liveness;
mod runners;
mod stack;
mod status;

use std::sync::Arc;

use axum::middleware::from_fn_with_state;
use errand_proto::v1::{health_server::HealthServer, jobs_server::JobsServer, runners_server::RunnersServer};
use tonic::{codec::CompressionEncoding::Gzip, service::Routes};
use tonic_health::pb::health_server::HealthServer as LivenessServer;

use crate::{
    drain::Drain,
    engine::{Engine, OnBehalf},
    model::Caller,
};
use auth::Authenticator;

/// Every service behind one stack, to be served over the network or called in process.
pub fn routes(engine: Engine, authenticator: Arc<Authenticator>, drain: Drain) -> Routes {
    let message_max = engine.limits().message_max_bytes;
    // The same four words for three types: the generated servers share no trait that has them.
    macro_rules! tuned {
        ($server:expr) => {
            $server.max_decoding_message_size(message_max).accept_compressed(Gzip)
        };
    }
    let routes = Routes::new(tuned!(JobsServer::new(jobs::JobsService::new(engine.clone()))))
        .add_service(tuned!(RunnersServer::new(runners::RunnersService::new(engine.clone(), drain))))
        .add_service(tuned!(HealthServer::new(health::HealthService::new(engine.clone()))))
        .add_service(LivenessServer::new(liveness::Liveness::new(&engine)));
    let stack = Arc::new(stack::Stack::new(engine, authenticator));
    let router = with_reflection(routes).prepare().into_axum_router();
    Routes::from(router.layer(from_fn_with_state(stack, stack::pass)))
}

/// Reflection in both versions that tools speak.
fn with_reflection(routes: Routes) -> Routes {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(errand_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    match (builder().build_v1(), builder().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => routes.add_service(v1).add_service(v1alpha),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "reflection is off: the compiled descriptors are unusable");
            routes
        }
    }
}

/// The engine's door for the caller that the stack has found.
fn door<T>(engine: &Engine, request: &tonic::Request<T>) -> Result<OnBehalf, tonic::Status> {
    match request.extensions().get::<Caller>() {
        Some(caller) => Ok(engine.on_behalf(caller.clone())),
        None => Err(status::unguarded()),
    }
}

#[cfg(test)]
mod tests;
