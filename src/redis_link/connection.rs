//! One connection to one server or to a cluster, behind one type.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, Pipeline, ProtocolVersion, RedisFuture, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection, PubSub},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
};

use super::{
    Address,
    roll::{self, Roll},
};

/// How long one step of making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long Redis may take to answer: longer than it takes to load a script or to fork, and short beside a lease.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long all of it may take: a cluster's nodes are asked for its shape first.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);
/// Calls that may wait to be written to one server.
const CALLS_WAITING_MAX: usize = 512;
/// How often a cluster's redirection is followed, or an unready node asked again, within the answer's time.
const CLUSTER_RETRIES: u32 = 4;
const CLUSTER_RETRY_WAIT_MIN_MS: u64 = 5;
const CLUSTER_RETRY_WAIT_MAX_MS: u64 = 100;

/// Clones share it; calls need no turn of their own, for Redis answers in order.
#[derive(Clone)]
pub(super) enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    pub(super) async fn open(address: &Address) -> RedisResult<Connection> {
        let opened = async {
            if address.is_cluster {
                let client = ClusterClient::builder(address.nodes.clone())
                    .connection_timeout(CONNECT_TIMEOUT)
                    .response_timeout(ANSWER_TIMEOUT)
                    .retries(CLUSTER_RETRIES)
                    .min_retry_wait(CLUSTER_RETRY_WAIT_MIN_MS)
                    .max_retry_wait(CLUSTER_RETRY_WAIT_MAX_MS)
                    .build()?;
                return Ok(Connection::Cluster(client.get_async_connection().await?));
            }
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(CONNECT_TIMEOUT))
                .set_response_timeout(Some(ANSWER_TIMEOUT))
                .set_pipeline_buffer_size(CALLS_WAITING_MAX);
            let client = Client::open(first(address)?)?;
            Ok(Connection::Single(client.get_multiplexed_async_connection_with_config(&config).await?))
        };
        bounded(OPEN_TIMEOUT, opened).await
    }

    /// Whether every part of a cluster serves.
    pub(super) async fn check_state(&mut self) -> RedisResult<()> {
        match self {
            Connection::Single(_) => Ok(()),
            Connection::Cluster(cluster) => roll::check_state(cluster).await,
        }
    }

    /// The masters of a cluster.
    pub(super) async fn roll(&mut self) -> RedisResult<Roll> {
        match self {
            Connection::Single(_) => Ok(Roll::default()),
            Connection::Cluster(cluster) => Roll::call(cluster).await,
        }
    }

    /// A connection that hears messages. In a cluster any node will do, for each passes messages on to all.
    pub(super) async fn open_pubsub(address: &Address) -> RedisResult<PubSub> {
        let mut failed = None;
        for node in &address.nodes {
            // Pings on such a connection are answered in the older protocol only.
            let settings = node.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
            let client = Client::open(node.clone().set_redis_settings(settings))?;
            match bounded(CONNECT_TIMEOUT, client.get_async_pubsub()).await {
                Ok(pubsub) => return Ok(pubsub),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| no_address().into()))
    }
}

fn first(address: &Address) -> RedisResult<redis::ConnectionInfo> {
    Ok(address.nodes.first().ok_or_else(no_address)?.clone())
}

fn no_address() -> (ErrorKind, &'static str) {
    (ErrorKind::InvalidClientConfig, "an address has at least one node")
}

pub(super) async fn bounded<T>(limit: Duration, step: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    match tokio::time::timeout(limit, step).await {
        Ok(result) => result,
        Err(_) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time").into()),
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Connection::Single(single) => single.req_packed_command(cmd),
            Connection::Cluster(cluster) => cluster.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Connection::Single(single) => single.req_packed_commands(pipeline, offset, count),
            Connection::Cluster(cluster) => cluster.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Connection::Single(single) => single.get_db(),
            Connection::Cluster(cluster) => cluster.get_db(),
        }
    }
}
