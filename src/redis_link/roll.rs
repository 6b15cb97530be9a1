//! The masters of a cluster.
//!
//! One that comes back empty, or whose place a replica has taken, may have lost hints, while the others have forgotten
//! nothing. Each process of Redis has an id of its own, and so a change shows.

use std::collections::BTreeMap;

use redis::{
    ErrorKind, RedisResult, ServerErrorKind, Value,
    cluster_async::ClusterConnection,
    cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo},
};

/// The process behind each address.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Roll(BTreeMap<(String, u16), String>);

impl Roll {
    pub(super) async fn call(cluster: &mut ClusterConnection) -> RedisResult<Roll> {
        let answers = every_master(cluster, &["INFO", "server"]).await?;
        Ok(Roll(answers.iter().filter_map(entry_of).collect()))
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = (&str, u16)> {
        self.0.keys().map(|(host, port)| (host.as_str(), *port))
    }
}

/// An error where a master says that the cluster is down. It answers pings all the same, and others may not know yet.
pub(super) async fn check_state(cluster: &mut ClusterConnection) -> RedisResult<()> {
    let answers = every_master(cluster, &["CLUSTER", "INFO"]).await?;
    if answers.iter().all(|(_, info)| is_up(info)) {
        return Ok(());
    }
    Err((ErrorKind::Server(ServerErrorKind::ClusterDown), "a master says that the cluster is down").into())
}

async fn every_master(cluster: &mut ClusterConnection, words: &[&str]) -> RedisResult<Vec<(Value, Value)>> {
    let mut cmd = redis::Cmd::new();
    cmd.arg(words);
    let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
    match cluster.route_command(cmd, masters).await? {
        Value::Map(answers) => Ok(answers),
        _ => Ok(Vec::new()),
    }
}

/// Who may not ask has an operator who knows.
fn is_up(info: &Value) -> bool {
    let info: String = redis::from_redis_value_ref(info).unwrap_or_default();
    !info.contains("cluster_state:fail")
}

/// Who may not ask for the id is known by its address only.
fn entry_of((address, info): &(Value, Value)) -> Option<((String, u16), String)> {
    let address: String = redis::from_redis_value_ref(address).ok()?;
    let (host, port) = address.rsplit_once(':')?;
    let info: String = redis::from_redis_value_ref(info).unwrap_or_default();
    let id = info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or_default();
    Some(((host.to_owned(), port.parse().ok()?), id.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::entry_of;

    fn answer(address: &str, info: &str) -> (Value, Value) {
        (Value::BulkString(address.into()), Value::BulkString(info.into()))
    }

    #[test]
    fn a_master_is_known_by_its_address_and_its_process() {
        let entry = entry_of(&answer("::1:7000", "# Server\r\nredis_version:7\r\nrun_id:abc\r\n"));
        assert_eq!(entry, Some((("::1".to_owned(), 7000), "abc".to_owned())));
        assert_eq!(entry_of(&answer("a:1", "")), Some((("a".to_owned(), 1), String::new())));
        assert_eq!(entry_of(&answer("nowhere", "")), None);
    }
}
