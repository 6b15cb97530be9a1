//! What the engine stands on, as the configuration says: a store, a queue and a fleet.

use std::{path::Path, sync::Arc};

use crate::{
    config::{Config, Database, Redis},
    data_dir::{DataDir, Locks},
    drain::Drain,
    fleet::redis::{FleetSettings, RedisFleet},
    fleet::{Fleet, memory::Hub},
    queue::redis::{RedisQueue, RedisQueueError, RedisSettings},
    queue::{Queue, memory::MemoryQueue},
    redis_link::{LinkError, LinkSettings, RedisLink},
    start_error::StartError,
    store::{
        Store,
        postgres::{self, Attendance, PostgresStore},
        sqlite::{self, SqliteStore},
    },
};

pub struct Foundation {
    pub store: Arc<dyn Store>,
    pub queue: Arc<dyn Queue>,
    pub fleet: Arc<dyn Fleet>,
    /// The store where it is in Postgres, which another node may take away.
    postgres: Option<Arc<PostgresStore>>,
    /// Held for as long as the process runs.
    _locks: Option<Locks>,
}

impl Foundation {
    /// Opens the database, and Redis where nodes share one. What keeps connections runs on `drain`.
    pub async fn lay(config: &Config, data_dir: &DataDir, drain: &Drain) -> Result<Foundation, StartError> {
        let url = match &config.database {
            Database::Postgres(url) => url,
            Database::InDataDir => return alone_on_sqlite(config, data_dir, None).await,
            Database::Sqlite(path) => return alone_on_sqlite(config, data_dir, Some(path)).await,
        };
        let Some(redis) = &config.redis else {
            let store = Arc::new(PostgresStore::open(url, Attendance::Alone).await?);
            take_arrivals(config, &store, drain).await?;
            return Ok(Foundation { postgres: Some(store.clone()), ..alone(config, store, None) });
        };
        let store = Arc::new(PostgresStore::open(url, Attendance::Shared).await?);
        match shared(config, redis, store.clone(), drain).await {
            Ok(foundation) => {
                take_arrivals(config, &store, drain).await?;
                Ok(foundation)
            }
            Err(error) => {
                store.close().await;
                Err(error)
            }
        }
    }

    /// Why this node must end, once another one has its database.
    pub async fn ousted(&self) -> StartError {
        match &self.postgres {
            Some(store) => store.ousted().await.into(),
            None => std::future::pending().await,
        }
    }
}

/// Lets SQL publish as this node would, and hears of it.
async fn take_arrivals(config: &Config, store: &PostgresStore, drain: &Drain) -> Result<(), StartError> {
    let told = store.set_payload_max(config.limits.payload_max_bytes).await;
    told.map_err(|error| StartError::Unavailable(error.to_string()))?;
    let (listening, stopped) = (store.listen(config.node_id.clone()), drain.token());
    drain.spawn("listener", async move {
        stopped.run_until_cancelled(listening).await;
    });
    Ok(())
}

async fn alone_on_sqlite(config: &Config, data_dir: &DataDir, path: Option<&Path>) -> Result<Foundation, StartError> {
    let locks = data_dir.lock(path)?;
    let database = path.map_or_else(|| data_dir.database(), Path::to_owned);
    let store = Arc::new(SqliteStore::open(&database).await?);
    Ok(alone(config, store, Some(locks)))
}

/// A node that shares nothing but, perhaps, its database.
fn alone(config: &Config, store: Arc<dyn Store>, locks: Option<Locks>) -> Foundation {
    Foundation {
        store,
        queue: Arc::new(MemoryQueue::new(config.limits.window_max)),
        fleet: Arc::new(Hub::new(config.timings.silent_after()).join(config.node_id.clone())),
        postgres: None,
        _locks: locks,
    }
}

/// One of several nodes.
async fn shared(
    config: &Config,
    redis: &Redis,
    store: Arc<PostgresStore>,
    drain: &Drain,
) -> Result<Foundation, StartError> {
    let database_id: Arc<str> = store.identity().await.map_err(|error| StartError::Unavailable(error.to_string()))?;
    let link = LinkSettings { url: redis.url.clone(), prefix: redis.prefix.clone() };
    let link = RedisLink::open(link, drain).await?;
    let settings = RedisSettings {
        database_id: database_id.clone(),
        node_id: config.node_id.clone(),
        window_max: config.limits.window_max,
        lease_grace: config.timings.lease_ttl,
    };
    let queue = RedisQueue::open(link.clone(), settings, drain).await?;
    let silent_after = config.timings.silent_after();
    let settings = FleetSettings { database_id, node_id: config.node_id.clone(), silent_after };
    let fleet = RedisFleet::join(link, settings).await;
    Ok(Foundation {
        store: store.clone(),
        queue: Arc::new(queue),
        fleet: Arc::new(fleet),
        postgres: Some(store),
        _locks: None,
    })
}

impl From<sqlite::OpenError> for StartError {
    fn from(error: sqlite::OpenError) -> StartError {
        tracing::debug!(cause = ?error, "the database cannot be opened");
        StartError::Unavailable(error.to_string())
    }
}

impl From<postgres::OpenError> for StartError {
    fn from(error: postgres::OpenError) -> StartError {
        tracing::debug!(cause = ?error, "the database cannot be opened");
        match error {
            postgres::OpenError::Url(_) | postgres::OpenError::Attended(_) => {
                StartError::Usage(format!("database_url: {error}"))
            }
            _ => StartError::Unavailable(error.to_string()),
        }
    }
}

impl From<LinkError> for StartError {
    fn from(error: LinkError) -> StartError {
        match error {
            LinkError::Unreachable { .. } | LinkError::Untrusted { .. } | LinkError::Old { .. } => {
                StartError::Unavailable(error.to_string())
            }
            LinkError::Address(_) | LinkError::Prefix | LinkError::OneOfACluster { .. } => {
                StartError::Usage(error.to_string())
            }
        }
    }
}

impl From<RedisQueueError> for StartError {
    fn from(error: RedisQueueError) -> StartError {
        match error {
            RedisQueueError::Foreign => StartError::Usage(format!("redis_url: {error}")),
            RedisQueueError::DatabaseId => StartError::Internal(error.to_string()),
            RedisQueueError::Unanswered => StartError::Unavailable(format!("redis_url: {error}")),
        }
    }
}
