//! Where Redis is, from its URL.
//!
//! `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]` names one server, `rediss://` the same over TLS, and `unix:///PATH` a
//! socket. `redis+cluster://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]` and `rediss+cluster://` name a Redis Cluster by any
//! of its nodes, from which the others are learnt. `valkey` in place of `redis` means the same. Certificates are checked
//! against those that the system trusts (or those of `SSL_CERT_FILE`).

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

/// What was wanted, without what was given: a URL may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    #[error(
        "wanted redis://HOST:PORT/DATABASE, rediss:// in its place for TLS, \
         or redis+cluster://HOST:PORT,HOST:PORT for a cluster"
    )]
    Shape,
    #[error("several nodes are those of a cluster: say redis+cluster:// or rediss+cluster://")]
    Several,
    #[error("a cluster has database 0 only: leave the database out")]
    Database,
}

#[derive(Debug, Clone)]
pub struct Address {
    /// At least one; more than one in a cluster only.
    pub nodes: Vec<ConnectionInfo>,
    pub is_cluster: bool,
}

impl Address {
    pub fn parse(url: &str) -> Result<Address, InvalidAddress> {
        let (scheme, rest) = url.split_once("://").ok_or(InvalidAddress::Shape)?;
        let (scheme, is_cluster) = match scheme.strip_suffix("+cluster") {
            Some(scheme) => (scheme, true),
            None => (scheme, false),
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (user, hosts) = match authority.rfind('@') {
            Some(at) => authority.split_at(at + 1),
            None => ("", authority),
        };
        if hosts.contains(',') && !is_cluster {
            return Err(InvalidAddress::Several);
        }
        let node = |host: &str| {
            let info = format!("{scheme}://{user}{host}{path}").into_connection_info();
            info.map_err(|_| InvalidAddress::Shape)
        };
        let nodes = hosts.split(',').map(node).collect::<Result<Vec<ConnectionInfo>, InvalidAddress>>()?;
        if is_cluster && nodes.iter().any(|node| node.redis_settings().db() != 0) {
            return Err(InvalidAddress::Database);
        }
        Ok(Address { nodes, is_cluster })
    }

    /// With further nodes of the same cluster, which are spoken to in the same way.
    pub fn with<'a>(&self, further: impl Iterator<Item = (&'a str, u16)>) -> Address {
        let mut whole = self.clone();
        let Some(model) = self.nodes.first() else { return whole };
        for (host, port) in further {
            let addr = match model.addr().clone() {
                ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                    ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure, tls_params }
                }
                _ => ConnectionAddr::Tcp(host.to_owned(), port),
            };
            if whole.nodes.iter().all(|node| *node.addr() != addr) {
                whole.nodes.push(model.clone().set_addr(addr));
            }
        }
        whole
    }
}

/// Hosts and ports, for people.
impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, node) in self.nodes.iter().enumerate() {
            if number > 0 {
                f.write_str(", ")?;
            }
            match node.addr() {
                ConnectionAddr::Unix(path) => write!(f, "{}", path.display())?,
                addr => write!(f, "{addr}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Address, InvalidAddress};

    fn parsed(url: &str) -> (String, bool) {
        let address = Address::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        (address.to_string(), address.is_cluster)
    }

    #[test]
    fn a_url_names_one_server_or_the_nodes_of_a_cluster() {
        assert_eq!(parsed("redis://10.0.0.1"), ("10.0.0.1:6379".to_owned(), false));
        assert_eq!(parsed("rediss://ann:p%40ss@redis.example:6380/7"), ("redis.example:6380".to_owned(), false));
        assert_eq!(parsed("valkey://10.0.0.1:7000"), ("10.0.0.1:7000".to_owned(), false));
        assert_eq!(parsed("unix:///run/redis.sock"), ("/run/redis.sock".to_owned(), false));
        assert_eq!(parsed("redis+cluster://a:1,b:2,[::1]:3"), ("a:1, b:2, ::1:3".to_owned(), true));
    }

    #[test]
    fn every_node_of_a_cluster_gets_the_password_and_tls() {
        let address = Address::parse("rediss+cluster://ann:secret@a:1,b:2").expect("it is well-formed");
        assert_eq!(address.nodes.len(), 2);
        for node in &address.nodes {
            assert_eq!(node.redis_settings().password(), Some("secret"));
            assert!(matches!(node.addr(), redis::ConnectionAddr::TcpTls { .. }));
        }
        assert!(!address.to_string().contains("secret"));
    }

    #[test]
    fn further_nodes_of_a_cluster_are_like_those_named() {
        let address = Address::parse("rediss+cluster://ann:secret@a:1").expect("it is well-formed");
        let whole = address.with([("a", 1), ("b", 2)].into_iter());
        assert_eq!(whole.to_string(), "a:1, b:2");
        assert!(matches!(whole.nodes[1].addr(), redis::ConnectionAddr::TcpTls { .. }));
        assert_eq!(whole.nodes[1].redis_settings().password(), Some("secret"));
    }

    #[test]
    fn a_url_that_cannot_be_meant_is_refused() {
        for url in ["", "10.0.0.1:6379", "http://10.0.0.1", "redis+cluster://", "redis://a:port", "rediss+unix:///a"] {
            assert_eq!(Address::parse(url).expect_err(url), InvalidAddress::Shape);
        }
        assert_eq!(Address::parse("redis://a:1,b:2").expect_err("two"), InvalidAddress::Several);
        assert_eq!(Address::parse("redis+cluster://a:1/3").expect_err("db"), InvalidAddress::Database);
    }
}
