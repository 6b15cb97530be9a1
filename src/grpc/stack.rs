//! What every call passes on its way in: one layer, in one order.
//!
//! 1. Too many calls at once: RESOURCE_EXHAUSTED.
//! 2. Who calls: UNAUTHENTICATED without a valid token. What the caller may do, the engine decides.
//! 3. The deadline of the call: DEADLINE_EXCEEDED when a handler has not answered by then.
//! 4. What the transport refused by itself, such as a message that is too long: told with a reason.
//! 5. A panic, in a handler or in the stream it answered with: INTERNAL, and a line in the log.
//!
//! Liveness and reflection pass freely, whoever asks and however many others do.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderMap, HeaderValue};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tracing::Instrument;

use super::{
    auth::Authenticator,
    status::{busy, crashed, deadline_exceeded, explained},
};
use crate::engine::Engine;

/// What needs no token. Everything else does, what does not exist included.
const OPEN: [&str; 2] = ["/grpc.health.v1.", "/grpc.reflection."];
/// A runner holds this call for its whole life; the engine limits how many there are.
const SESSION: &str = "/errand.v1.Runners/Attach";

pub struct Stack {
    engine: Engine,
    authenticator: Arc<Authenticator>,
    calls: Arc<Semaphore>,
}

impl Stack {
    pub fn new(engine: Engine, authenticator: Arc<Authenticator>) -> Stack {
        let calls_max = engine.limits().calls_max.min(Semaphore::MAX_PERMITS);
        Stack { engine, authenticator, calls: Arc::new(Semaphore::new(calls_max)) }
    }

    /// Checks the call in; what it returns is held until the call is over.
    fn admit(&self, request: &mut Request) -> Result<Option<OwnedSemaphorePermit>, Status> {
        let path = request.uri().path();
        if OPEN.iter().any(|open| path.starts_with(open)) {
            return Ok(None);
        }
        let permit = match path {
            SESSION => None,
            _ => Some(self.calls.clone().try_acquire_owned().map_err(|_| busy())?),
        };
        let caller = self.authenticator.authenticate(request.headers(), self.engine.now())?;
        request.extensions_mut().insert(caller);
        Ok(permit)
    }
}

pub async fn pass(State(stack): State<Arc<Stack>>, mut request: Request, next: Next) -> Response {
    let permit = match stack.admit(&mut request) {
        Ok(permit) => permit,
        Err(status) => return status.into_http(),
    };
    let span = tracing::info_span!(
        "call",
        rpc = request.uri().path(),
        request_id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()),
    );
    let deadline = deadline(request.headers());
    let call = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone());
    let answered = match deadline {
        Some(wait) => tokio::time::timeout(wait, call).await,
        None => Ok(call.await),
    };
    match answered {
        Ok(Ok(response)) => match explained(response.headers(), stack.engine.limits().message_max_bytes) {
            Some(status) => status.into_http(),
            None => response,
        }
        .map(|body| Body::new(Answer { body, span, over: false, _permit: permit })),
        Ok(Err(panic)) => {
            log_panic(&span, panic.as_ref());
            crashed().into_http()
        }
        Err(_) => deadline_exceeded().into_http(),
    }
}

/// The time that `grpc-timeout` gives: up to eight digits and a unit. A malformed one gives none, as in tonic.
fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3_600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

fn log_panic(span: &tracing::Span, panic: &(dyn Any + Send)) {
    let said = panic.downcast_ref::<&str>().map(ToString::to_string);
    let said = said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    span.in_scope(|| tracing::error!(panic = said, "a handler panicked"));
}

/// The body of an answer. It keeps the call counted until it is over, and turns a panic into a status.
struct Answer {
    body: Body,
    span: tracing::Span,
    over: bool,
    _permit: Option<OwnedSemaphorePermit>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let answer = &mut *self;
        if answer.over {
            return Poll::Ready(None);
        }
        let span = answer.span.clone();
        let poll = AssertUnwindSafe(|| span.in_scope(|| Pin::new(&mut answer.body).poll_frame(context)));
        match std::panic::catch_unwind(poll) {
            Ok(polled) => polled,
            Err(panic) => {
                log_panic(&span, panic.as_ref());
                answer.over = true;
                Poll::Ready(Some(Ok(Frame::trailers(trailers(&crashed())))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        trailers.insert("grpc-status", HeaderValue::from(i32::from(status.code())));
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().expect("a header"));
        deadline(&headers)
    }

    #[test]
    fn deadlines_have_six_units() {
        assert_eq!(wait("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(wait("3M"), Some(Duration::from_secs(180)));
        assert_eq!(wait("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(wait("5m"), Some(Duration::from_millis(5)));
        assert_eq!(wait("6u"), Some(Duration::from_micros(6)));
        assert_eq!(wait("7n"), Some(Duration::from_nanos(7)));
    }

    #[test]
    fn malformed_deadlines_are_none() {
        for text in ["", "S", "1", "123456789S", "-1S", "+1S", "1x", "1.5S"] {
            assert_eq!(wait(text), None, "{text}");
        }
    }
}
