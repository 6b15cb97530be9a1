//! Counts calls that wait for their answer, so that a shutdown can let these finish and need not wait for streams, which
//! end when their client pleases.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::sync::watch;
use tower::{Layer, Service};

/// How many calls wait for their answer. Clones share the count.
#[derive(Clone)]
pub struct InFlight(watch::Sender<usize>);

impl InFlight {
    pub fn new() -> InFlight {
        InFlight(watch::Sender::new(0))
    }

    /// Returns once no call waits.
    pub async fn none_left(&self) {
        // An error means that the sender is gone, and `self` holds it.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }

    fn enter(&self) -> Ticket {
        self.0.send_modify(|count| *count += 1);
        Ticket(self.clone())
    }
}

/// One call that waits; the count is right also where it is abandoned.
struct Ticket(InFlight);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

impl<S> Layer<S> for InFlight {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, in_flight: self.clone() }
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
pub struct Counted<S> {
    inner: S,
    in_flight: InFlight,
}

impl<S, Request> Service<Request> for Counted<S>
where
    S: Service<Request>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let ticket = self.in_flight.enter();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let _ticket = ticket;
            answer.await
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tower::{ServiceExt, service_fn};

    use super::*;

    #[tokio::test]
    async fn a_call_counts_until_it_is_answered_or_abandoned() {
        let in_flight = InFlight::new();
        let stuck = in_flight.layer(service_fn(|()| std::future::pending::<Result<(), ()>>()));
        let mut call = Box::pin(stuck.oneshot(()));
        assert!(call.as_mut().now_or_never().is_none());
        assert!(in_flight.none_left().now_or_never().is_none(), "one call waits");
        drop(call);
        assert!(in_flight.none_left().now_or_never().is_some(), "none is left");
    }
}
