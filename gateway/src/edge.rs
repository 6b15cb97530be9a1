//! What holds for every request: ids, compression, CORS, and JSON even where something goes wrong.

use std::any::Any;

use axum::{
    Router,
    extract::Request,
    http::{HeaderName, HeaderValue, Method, StatusCode, Uri},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    compression::CompressionLayer,
    cors::{AllowOrigin, Any as AnyHeader, CorsLayer},
};

use crate::{GatewayConfig, Problem};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest request id taken from a client.
const REQUEST_ID_MAX: usize = 128;

pub fn wrap(router: Router, config: &GatewayConfig) -> Router {
    router
        .layer(CatchPanicLayer::custom(panicked))
        .layer(CompressionLayer::new())
        .layer(cors(&config.cors_origins))
        .layer(from_fn(name_request))
}

fn cors(origins: &[String]) -> CorsLayer {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers(AnyHeader)
        .expose_headers([REQUEST_ID]);
    if origins.iter().any(|origin| origin == "*") {
        return layer.allow_origin(AnyHeader);
    }
    layer.allow_origin(AllowOrigin::list(origins.iter().filter_map(|origin| origin.parse::<HeaderValue>().ok())))
}

/// Takes the client's request id, or makes one; the core and the client both hear it.
#[expect(clippy::disallowed_methods, reason = "an id that nothing depends on; no simulation reaches the gateway")]
async fn name_request(mut request: Request, next: Next) -> Response {
    let given = request.headers().get(&REQUEST_ID).filter(|id| {
        id.len() <= REQUEST_ID_MAX && !id.is_empty() && id.as_bytes().iter().all(|byte| byte.is_ascii_graphic())
    });
    let id = match given {
        Some(id) => id.clone(),
        None => HeaderValue::from_str(&uuid::Uuid::new_v4().simple().to_string())
            .unwrap_or(HeaderValue::from_static("unnamed")),
    };
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let mut response = next.run(request).await;
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

pub async fn not_found(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("No such path: {}", uri.path()))
}

pub async fn method_not_allowed(method: Method) -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("Method {method} is not allowed here"))
}

fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    tracing::error!("a request handler panicked");
    Problem::internal().into_response()
}
