//! The connection that hears messages.
//!
//! Messages are lost while it is broken; whoever listens hears afterwards that it is there again, and should look at
//! whatever the messages would have told.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use futures::StreamExt;
use redis::{RedisError, RedisResult, aio::PubSubSink};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    RETRY_FIRST, RETRY_LAST, RedisLink,
    connection::{ANSWER_TIMEOUT, Connection, bounded},
};

/// How often a silent connection is asked whether it is alive.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Failures in a row after which it is told that messages are not heard: with the waits between them some 4 s. A lost
/// Redis has been told of by then.
const FAILURES_TOLD: u32 = 10;

/// Hears the messages of one channel. Neither call may wait.
pub trait Listener: Send + Sync {
    fn hear(&self, message: &[u8]);

    /// From here on messages are heard; earlier ones may have been lost.
    fn hearing(&self);
}

pub(super) struct Subscription {
    link: RedisLink,
    failures: u32,
}

impl Subscription {
    pub(super) fn new(link: RedisLink) -> Subscription {
        Subscription { link, failures: 0 }
    }

    pub(super) async fn run(mut self, stopped: CancellationToken) {
        let mut retry = RETRY_FIRST;
        loop {
            let before = self.failures;
            // Cancel-safe: a message that is not heard at the end concerns nobody any more.
            let broken = tokio::select! {
                broken = self.hear() => broken,
                () = stopped.cancelled() => return,
            };
            self.link.0.is_hearing.store(false, Ordering::Release);
            if self.failures < before {
                retry = RETRY_FIRST;
            }
            self.failures += 1;
            match broken {
                Err(error) if self.failures == FAILURES_TOLD => {
                    tracing::warn!(redis = %self.link.0.address, %error, "messages of redis are not heard");
                }
                Err(error) => tracing::debug!(%error, "the connection for messages broke"),
                Ok(()) => tracing::debug!("the connection for messages was closed"),
            }
            tokio::select! {
                () = sleep(retry) => {}
                () = stopped.cancelled() => return,
            }
            retry = (retry * 2).min(RETRY_LAST);
        }
    }

    /// Connects and passes messages on until the connection breaks.
    async fn hear(&mut self) -> RedisResult<()> {
        let inner = self.link.0.clone();
        if inner.listeners.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            inner.listeners_changed.notified().await;
        }
        let (mut sink, mut messages) = Connection::open_pubsub(&inner.whole_address()).await?.split();
        let mut heard = 0;
        let mut pings = interval(PING_INTERVAL);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            heard = self.subscribe(&mut sink, heard).await?;
            if self.failures >= FAILURES_TOLD {
                tracing::info!(redis = %inner.address, "messages of redis are heard again");
            }
            self.failures = 0;
            inner.is_hearing.store(true, Ordering::Release);
            // Cancel-safe: a message is received whole or not at all.
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => self.pass_on(message.get_channel_name(), message.get_payload_bytes()),
                    None => return Ok(()),
                },
                _ = pings.tick() => bounded(ANSWER_TIMEOUT, sink.ping::<redis::Value>()).await.map(drop)?,
                () = inner.listeners_changed.notified() => {}
            }
        }
    }

    /// Subscribes to the channels behind the first `heard`; answers how many there are now.
    async fn subscribe(&self, sink: &mut PubSubSink, heard: usize) -> Result<usize, RedisError> {
        let fresh: Vec<_> = {
            let listeners = self.link.0.listeners.lock().unwrap_or_else(PoisonError::into_inner);
            listeners.iter().skip(heard).cloned().collect()
        };
        for (channel, listener) in &fresh {
            bounded(ANSWER_TIMEOUT, sink.subscribe(channel)).await?;
            listener.hearing();
        }
        Ok(heard + fresh.len())
    }

    fn pass_on(&self, channel: &str, message: &[u8]) {
        let listeners = self.link.0.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let found = listeners.iter().find(|(name, _)| name == channel).map(|(_, listener)| Arc::clone(listener));
        drop(listeners);
        if let Some(listener) = found {
            listener.hear(message);
        }
    }
}
