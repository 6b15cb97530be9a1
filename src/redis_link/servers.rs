//! The servers that `scripts/with-servers` gives to tests, one of each kind that is served. They may be filled with rubbish.

pub fn one_server() -> String {
    named("ERRAND_TEST_REDIS_URL")
}

/// Three masters, so that most keys that are not bound to one slot are on different ones.
pub fn cluster() -> String {
    named("ERRAND_TEST_REDIS_CLUSTER_URL")
}

/// Its authority is one of those that `SSL_CERT_FILE` names.
pub fn over_tls() -> String {
    // Fails only where a provider is installed, which is what was wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    named("ERRAND_TEST_REDIS_TLS_URL")
}

pub fn valkey() -> String {
    named("ERRAND_TEST_VALKEY_URL")
}

fn named(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} should name a server: run this under scripts/with-servers"))
}
