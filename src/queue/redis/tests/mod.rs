//! Against real servers of each kind, which `scripts/with-servers` starts. Tests that stop a Redis start their own.

mod outages;
mod server;
mod two_nodes;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use super::{RedisQueue, RedisQueueError, RedisSettings};
use crate::{
    clock::{Dice, SystemDice},
    drain::Drain,
    queue::{
        Queue,
        contract::{Backstage, Bench, PATIENCE, WINDOW_MAX},
    },
    redis_link::{LinkSettings, RedisLink, Script, servers},
};

/// No other test has this one.
fn any_prefix() -> String {
    format!("test.{:016x}", SystemDice::new().roll())
}

fn settings(node: &str) -> RedisSettings {
    RedisSettings {
        database_id: "database-1".into(),
        node_id: node.into(),
        window_max: WINDOW_MAX,
        lease_grace: Duration::from_millis(500),
    }
}

async fn link(url: &str, prefix: &str) -> RedisLink {
    let settings = LinkSettings { url: url.to_owned(), prefix: prefix.to_owned() };
    RedisLink::open(settings, &Drain::new()).await.unwrap_or_else(|error| panic!("{error}"))
}

/// A queue over a connection of its own, as a node has it.
async fn node(url: &str, prefix: &str, name: &str) -> Arc<RedisQueue> {
    node_with(url, prefix, settings(name)).await
}

async fn node_with(url: &str, prefix: &str, settings: RedisSettings) -> Arc<RedisQueue> {
    let link = link(url, prefix).await;
    let opened = RedisQueue::open(link.clone(), settings, &Drain::new()).await;
    // The first word of messages being heard wakes everybody, which would be taken for an announcement.
    until("the hearing of messages", async || link.is_hearing()).await;
    Arc::new(opened.unwrap_or_else(|error| panic!("{error}")))
}

async fn until(what: &str, mut fact: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !fact().await {
        assert!(Instant::now() < end, "{what} did not come about");
        sleep(Duration::from_millis(10)).await;
    }
}

fn bench(queue: &Arc<RedisQueue>) -> Bench {
    Bench { queue: queue.clone(), backstage: Box::new(InRedis(queue.clone())) }
}

/// A queue on its own, for the contract.
pub async fn fresh(url: &str) -> Bench {
    bench(&node(url, &any_prefix(), "node").await)
}

struct InRedis(Arc<RedisQueue>);

#[async_trait]
impl Backstage for InRedis {
    /// Moves every deadline instead of the clock of Redis.
    async fn pass(&self, time: Duration) {
        let keys = super::keys::Keys::new(self.0.access.link.prefix()).leases();
        let script = Script::new(
            "for _, lease in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
               redis.call('ZINCRBY', KEYS[1], -ARGV[1], lease)
             end
             redis.call('SET', KEYS[2], 1, 'PX', 60000)
             redis.call('DEL', KEYS[3])",
        );
        let call = script.call(&[keys.deadlines, keys.alive, keys.grace]).arg(time.as_millis() as u64);
        self.0.access.link.run::<()>(&call).await.expect("redis is there");
        self.0.leases.look_in(Duration::ZERO);
    }

    async fn settle(&self) {
        self.0.flushed().await;
    }
}

#[tokio::test]
async fn a_redis_serves_one_database() {
    let (url, prefix) = (servers::one_server(), any_prefix());
    let first = node(&url, &prefix, "one").await;
    let other = RedisSettings { database_id: "database-2".into(), ..settings("two") };
    let refused = RedisQueue::open(link(&url, &prefix).await, other.clone(), &Drain::new()).await;
    let error = refused.err().expect("it belongs to database-1");
    assert!(matches!(error, RedisQueueError::Foreign) && error.to_string().contains("redis_prefix"), "{error}");
    assert!(RedisQueue::open(link(&url, &any_prefix()).await, other, &Drain::new()).await.is_ok());
    assert!(first.is_well());
}

#[tokio::test]
async fn a_url_that_leads_nowhere_is_told_without_its_password() {
    let settings = LinkSettings { url: "redis://ann:secret@127.0.0.1:1".into(), prefix: "a".into() };
    let error = RedisLink::open(settings, &Drain::new()).await.err().expect("nobody listens there").to_string();
    assert!(error.contains("127.0.0.1:1 cannot be used") && !error.contains("secret"), "{error}");
}
