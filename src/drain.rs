//! Tasks that outlive a call, and how they come to their end.
//!
//! Every loop of the service is spawned here, so that a shutdown can wait for all of them, and so that one that dies
//! takes the process down loudly instead of leaving a service that looks alive.

use std::{future::Future, panic::AssertUnwindSafe};

use futures::FutureExt;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

#[derive(Clone)]
pub struct Drain {
    tracker: TaskTracker,
    token: CancellationToken,
    failed: watch::Sender<Option<&'static str>>,
}

impl Drain {
    #[expect(clippy::new_without_default, reason = "a drain is made once, on purpose")]
    pub fn new() -> Drain {
        Drain { tracker: TaskTracker::new(), token: CancellationToken::new(), failed: watch::Sender::new(None) }
    }

    /// Runs `task` until it ends. If it panics, [`Drain::failed`] tells its name.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let failed = self.failed.clone();
        self.tracker.spawn(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                tracing::error!(task = name, "a loop of the service died");
                failed.send_replace(Some(name));
            }
        });
    }

    /// Cancelled once the loops must stop.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// The name of a loop that died; pending for as long as none has.
    pub async fn failed(&self) -> &'static str {
        let mut failed = self.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(name) => name.unwrap_or("unknown"),
            // `self` keeps the sender alive, so the channel cannot close while this waits.
            Err(_) => std::future::pending().await,
        }
    }

    /// Tells every loop to stop and waits until they have.
    pub async fn stop(&self) {
        self.token.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}
