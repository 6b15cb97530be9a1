//! Hears of arrivals: a connection that listens for the notification which `errand.publish` leaves with its transaction.
//!
//! It proves itself, by a notification of its own that must come back: a pooler that lends connections by the transaction
//! takes a LISTEN and delivers nothing, and a connection that a network swallowed looks like one on which nothing happens.
//! Where it does not hear, the bell says so, and whoever takes arrivals in looks for them by itself.
//!
//! The driver's listener wants a pool. It gets one of a single connection, and both go with the first trouble.

use std::{sync::Arc, time::Duration};

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::time::{Instant, timeout};

use super::connections::{Connections, Kind, unavailable};
use crate::store::{Bell, StoreError};

/// As in `errand.publish`.
const CHANNEL: &str = "errand_arrivals";
/// How long a connection may take to be made.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is put to the proof, and for how long its own notification may be on the way.
const PROOF_INTERVAL: Duration = Duration::from_secs(30);
const PROOF_PATIENCE: Duration = Duration::from_secs(2);
/// How long until the next try, after a connection that was lost and after one that proved deaf.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const DEAF_PAUSE: Duration = Duration::from_secs(60);

/// Why it no longer hears.
enum Silence {
    /// The connection is lost, or cannot be had.
    Lost(StoreError),
    /// It is there, and delivers nothing.
    Deaf,
}

pub(super) struct Listener {
    pub options: PgConnectOptions,
    pub writers: Connections,
    pub bell: Arc<Bell>,
    /// What its own notifications say, and nobody else's.
    pub node_id: Arc<str>,
}

impl Listener {
    /// Listens for ever. Whoever has it stopped drops it.
    pub(super) async fn run(self) {
        let mut is_known_deaf = false;
        loop {
            let silence = self.listen().await;
            let was_heard = self.bell.is_reliable();
            self.bell.set_reliable(false);
            match silence {
                Silence::Lost(error) => {
                    if was_heard {
                        let error: &dyn std::error::Error = &error;
                        tracing::debug!(error, "the connection that listens for arrivals was lost");
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Silence::Deaf => {
                    if was_heard || !is_known_deaf {
                        tracing::info!(
                            "the database delivers no notifications, as behind a pooler: jobs that SQL publishes are looked for"
                        );
                    }
                    is_known_deaf = true;
                    tokio::time::sleep(DEAF_PAUSE).await;
                }
            }
        }
    }

    /// Returns only once it no longer hears.
    async fn listen(&self) -> Silence {
        let mut listener = match self.connect().await {
            Ok(listener) => listener,
            Err(error) => return Silence::Lost(error),
        };
        loop {
            if let Err(silence) = self.prove(&mut listener).await {
                return silence;
            }
            self.bell.set_reliable(true);
            let next_proof = Instant::now() + PROOF_INTERVAL;
            // Being cut off while it waits loses nothing: what has been read of a message stays with the connection.
            while let Ok(heard) = tokio::time::timeout_at(next_proof, listener.try_recv()).await {
                match heard {
                    Ok(Some(notification)) => self.hear(notification.payload()),
                    Ok(None) => return Silence::Lost(StoreError::Unavailable("the connection was closed".into())),
                    Err(error) => return Silence::Lost(unavailable(error)),
                }
            }
        }
    }

    async fn connect(&self) -> Result<PgListener, StoreError> {
        let options = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
        let pool = options.acquire_timeout(CONNECT_PATIENCE).connect_lazy_with(self.options.clone());
        let connect = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            // A lost connection is told of, and made again here.
            listener.eager_reconnect(false);
            listener.listen(CHANNEL).await?;
            Ok(listener)
        };
        let connected = timeout(CONNECT_PATIENCE, connect).await;
        connected.map_err(|_| StoreError::Unavailable("no answer in time".into()))?.map_err(unavailable)
    }

    /// Sends a notification to itself and waits for it.
    async fn prove(&self, listener: &mut PgListener) -> Result<(), Silence> {
        self.notify().await.map_err(Silence::Lost)?;
        let returned = async {
            loop {
                match listener.try_recv().await {
                    Ok(Some(notification)) if *notification.payload() == *self.node_id => return Ok(()),
                    Ok(Some(notification)) => self.hear(notification.payload()),
                    Ok(None) => return Err(Silence::Lost(StoreError::Unavailable("the connection was closed".into()))),
                    Err(error) => return Err(Silence::Lost(unavailable(error))),
                }
            }
        };
        timeout(PROOF_PATIENCE, returned).await.unwrap_or(Err(Silence::Deaf))
    }

    async fn notify(&self) -> Result<(), StoreError> {
        let query = sqlx::query(
            "-- name prove_notifications
            SELECT pg_notify($1, $2)",
        );
        let mut transaction = self.writers.begin(Kind::Write).await?;
        transaction.execute(query.bind(CHANNEL).bind(&*self.node_id)).await?;
        Ok(transaction.commit().await?)
    }

    /// An arrival's notification says nothing; others are the proofs of nodes.
    fn hear(&self, payload: &str) {
        if payload.is_empty() {
            self.bell.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::postgres::scratch::Scratch;

    #[tokio::test]
    async fn a_connection_without_notifications_is_found_deaf() {
        // Notifications do not cross from one database to another, so its own never come.
        let (here, elsewhere) = (Scratch::new().await, Scratch::new().await);
        let options = |scratch: &Scratch| scratch.url().parse::<PgConnectOptions>().expect("a URL");
        let writers = Connections::new(options(&elsewhere), 1);
        let bell = Arc::new(Bell::default());
        let listener = Listener { options: options(&here), writers, bell: bell.clone(), node_id: "node-1".into() };
        assert!(matches!(listener.listen().await, Silence::Deaf));
        assert!(!bell.is_reliable());
    }
}
