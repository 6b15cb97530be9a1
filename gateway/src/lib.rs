//! The REST API of Errand: a gRPC client with HTTP in front.
//!
//! Each request becomes one call to the core, in this process or elsewhere; [`Upstream`] cannot tell which. Nothing is
//! decided here: permission, limits and states are the core's. Every answer is a JSON object with a boolean `status`.

mod actions;
mod body;
mod edge;
mod health;
mod jobs;
mod json;
mod problem;
mod publish;
mod runners;
mod upstream;

use std::{future::Future, sync::Arc};

use axum::{
    Router,
    routing::{any_service, get, post},
};
use tower::Layer;

pub use problem::Problem;
pub use upstream::Upstream;

/// What an operator chooses.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// The largest body taken, in bytes.
    pub body_max_bytes: usize,
    /// Origins that browsers may call from; `*`: any. Empty: none.
    pub cors_origins: Vec<String>,
}

impl Default for GatewayConfig {
    fn default() -> GatewayConfig {
        GatewayConfig { body_max_bytes: 8 << 20, cors_origins: Vec::new() }
    }
}

/// What every handler gets.
#[derive(Clone)]
struct Gateway {
    upstream: Upstream,
    config: Arc<GatewayConfig>,
}

/// The whole API, ready to be served.
pub fn router(upstream: Upstream, config: GatewayConfig) -> Router {
    let gateway = Gateway { upstream, config: Arc::new(config) };
    let api = Router::new()
        .route("/publish", post(publish::publish))
        .route("/list", get(jobs::list))
        .route("/job", get(jobs::browse))
        .route(
            "/job/{id}",
            get(jobs::job).post(actions::act).put(actions::act).patch(actions::act).delete(jobs::delete),
        )
        .route("/job/{id}/events", get(jobs::events))
        .route("/job/{id}/logs", get(jobs::logs))
        .route("/health", get(health::system))
        .route("/health/{channel}", get(health::channel))
        .route("/stats", get(health::stats))
        .route("/runners", get(runners::list))
        .route("/runners/ping", post(runners::ping))
        .route("/runners/shutdown", post(runners::shutdown))
        .route("/runners/broadcast", post(runners::broadcast));
    let routes = Router::new()
        .nest("/api/jobs", api)
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .fallback(edge::not_found)
        .method_not_allowed_fallback(edge::method_not_allowed)
        .with_state(gateway.clone());
    let trimmed = tower_http::normalize_path::NormalizePathLayer::trim_trailing_slash().layer(routes);
    let whole = Router::new().fallback_service(any_service(trimmed));
    edge::wrap(whole, &gateway.config)
}

/// Serves until `shutdown` completes; requests in progress are finished.
pub async fn serve(
    listener: tokio::net::TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}
