//! What an operator may set, and from where: the switch wins, then the variable `ERRAND_<NAME>`, then the file that
//! `--config` names, then the default.
//!
//! [`Switches`] is the one list of names: each of its fields is a switch, a variable and a key of the file. [`Config`] is what
//! they mean, checked. Nothing here reads the process's environment by itself; whoever loads hands it in.

mod values;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use figment::{
    Figment, Metadata, Profile, Provider,
    error::Kind,
    providers::{Format, Toml},
    value::{Dict, Map, Value},
};
use serde::{Deserialize, Serialize};

use crate::{
    engine::messages::Timings,
    model::limits::{Limits, Retention},
};
pub use values::{LogFormat, Text};

/// Why a configuration is refused: one sentence that names the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// What `errand serve` takes.
#[derive(Debug, Clone, Default, Args)]
pub struct ServeArgs {
    /// A TOML file; its keys are the names of the switches below [env: ERRAND_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub switches: Switches,
}

/// The names. Every one is also a variable (`--data-dir` is ERRAND_DATA_DIR) and a key of the file (`data_dir`).
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Switches {
    /// The REST gateway; `off` for none, port 0 picks one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<Text>,
    /// gRPC; port 0 picks one [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<Text>,
    /// The embedded database and the signing key; made if absent [default: ./errand-data]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<Text>,
    /// The database: sqlite:PATH or postgres://USER@HOST/NAME [default: errand.db in the data directory]
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database_url: Option<Text>,
    /// What nodes that share a Postgres share besides: redis://HOST:PORT/DB, rediss:// or redis+cluster:// [default: none]
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis_url: Option<Text>,
    /// How every key in Redis begins [default: errand]
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis_prefix: Option<Text>,
    /// The secret that signs tokens (HS256) [default: auth.key in the data directory, made if absent]
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_secret_file: Option<Text>,
    /// The public keys of your identity provider, as a JWK set (RS256, ES256, EdDSA)
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_jwks_file: Option<Text>,
    /// How often runners report that they live [default: 5s]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_interval: Option<Text>,
    /// How long a runner may take to accept a job [default: 5s]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accept_timeout: Option<Text>,
    /// How long a job stays with a runner that is silent [default: 15s]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_ttl: Option<Text>,
    /// How long a runner whose connection broke may take to come back [default: 2s]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume_window: Option<Text>,
    /// The certificate chain of both listeners, PEM
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<Text>,
    /// The private key of the certificate, PEM
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<Text>,
    /// Who signs the certificates that clients must then present, PEM
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_client_ca: Option<Text>,
    /// A web origin that may call the REST gateway, or `*`; may be repeated
    #[arg(long, value_name = "ORIGIN")]
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "values::one_or_many")]
    pub cors_origin: Vec<Text>,
    /// The largest body of an HTTP request [default: 8MiB]
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_max: Option<Text>,
    /// The largest payload or result of a job [default: 1MiB]
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_max: Option<Text>,
    /// The most jobs in one batch [default: 1000]
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_max: Option<Text>,
    /// The largest gRPC message [default: 16MiB]
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_max: Option<Text>,
    /// The most runners attached at once [default: 10000]
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions_max: Option<Text>,
    /// The most gRPC calls in progress at once [default: 10000]
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls_max: Option<Text>,
    /// The most writes waiting for their commit [default: 16384]
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending_writes_max: Option<Text>,
    /// Jobs kept ready in memory for each channel [default: 10000]
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_max: Option<Text>,
    /// How long jobs that have ended are kept, with all that belongs to them, or `off` for ever [default: 7d]
    #[arg(long, value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retain_finished: Option<Text>,
    /// How many jobs that have ended are kept at most; beyond it the oldest go [default: off, any number]
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retain_finished_max: Option<Text>,
    /// How logs are written to standard error: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<Text>,
    /// What is logged: a level, or a filter such as info,errand=debug [default: info] [env: ERRAND_LOG]
    #[arg(long, value_name = "LEVEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<Text>,
    /// How this node is called among others [default: host-pid-random]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_id: Option<Text>,
}

/// Where jobs are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Database {
    /// SQLite, in a file in the data directory.
    InDataDir,
    Sqlite(PathBuf),
    /// The URL, which may carry a password.
    Postgres(String),
}

/// What nodes share besides the database. The URL may carry a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redis {
    pub url: String,
    pub prefix: String,
}

/// Who vouches for callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthSource {
    /// A secret made in the data directory.
    OwnKey,
    SecretFile(PathBuf),
    JwksFile(PathBuf),
}

/// The files of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
}

/// Everything that is set, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// `host:port`; `None`: no REST gateway in this process.
    pub http: Option<String>,
    pub grpc: String,
    pub data_dir: PathBuf,
    pub database: Database,
    /// `None`: this node is alone.
    pub redis: Option<Redis>,
    pub auth: AuthSource,
    pub timings: Timings,
    pub tls: Option<TlsFiles>,
    pub cors_origins: Vec<String>,
    pub body_max_bytes: usize,
    pub limits: Limits,
    pub retention: Retention,
    pub log_format: LogFormat,
    pub log_filter: String,
    pub node_id: Arc<str>,
}

impl Config {
    /// Reads the file, merges and checks. `variable` answers for the process's environment.
    pub fn load(args: &ServeArgs, variable: impl Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = args.config.clone().or_else(|| variable("ERRAND_CONFIG").map(PathBuf::from));
        let mut figment = Figment::new();
        if let Some(path) = &path {
            figment = figment.merge(file_layer(path)?);
        }
        figment = figment.merge(environment_layer(&variable)).merge(switch_layer(&args.switches)?);
        let switches: Switches = figment.extract().map_err(|error| sentence(error, &figment))?;
        Config::check(switches).map_err(|fault| {
            let source = origin(&figment, fault.key).map(|name| format!(" (from {name})")).unwrap_or_default();
            ConfigError(format!("{}: {}{source}", fault.key, fault.wanted))
        })
    }

    fn check(switches: Switches) -> Result<Config, Fault> {
        let database = values::database("database_url", &switches.database_url)?;
        let redis = redis(&switches, &database)?;
        let data_dir = switches.data_dir.as_ref().map_or_else(|| PathBuf::from("./errand-data"), Text::path);
        let limits = limits(&switches)?;
        let body_max_bytes = values::size("body_max", &switches.body_max, 8 << 20)?;
        let log_filter = values::log_filter("log_level", &switches.log_level)?;
        Ok(Config {
            http: values::http_address("http", &switches.http, "127.0.0.1:8080")?,
            grpc: values::address("grpc", &switches.grpc, "127.0.0.1:50051")?,
            data_dir,
            database,
            redis,
            auth: auth(&switches)?,
            timings: timings(&switches)?,
            tls: tls(&switches)?,
            cors_origins: switches.cors_origin.iter().map(|origin| origin.0.clone()).collect(),
            body_max_bytes,
            limits,
            retention: Retention {
                keep_for: values::retain_for("retain_finished", &switches.retain_finished)?,
                keep_max: values::retain_max("retain_finished_max", &switches.retain_finished_max)?,
            },
            log_format: values::log_format("log_format", &switches.log_format)?,
            log_filter,
            node_id: values::node_id("node_id", &switches.node_id)?,
        })
    }
}

/// What is wrong with the value of one key; turned into a [`ConfigError`] that also names its source.
#[derive(Debug)]
struct Fault {
    key: &'static str,
    wanted: String,
}

impl Fault {
    fn new(key: &'static str, wanted: impl Into<String>) -> Fault {
        Fault { key, wanted: wanted.into() }
    }
}

fn limits(switches: &Switches) -> Result<Limits, Fault> {
    let defaults = Limits::default();
    let limits = Limits {
        payload_max_bytes: values::size("payload_max", &switches.payload_max, defaults.payload_max_bytes)?,
        batch_max: values::count("batch_max", &switches.batch_max, defaults.batch_max)?,
        message_max_bytes: values::size("message_max", &switches.message_max, defaults.message_max_bytes)?,
        sessions_max: values::count("sessions_max", &switches.sessions_max, defaults.sessions_max)?,
        calls_max: values::count("calls_max", &switches.calls_max, defaults.calls_max)?,
        pending_writes_max: values::count(
            "pending_writes_max",
            &switches.pending_writes_max,
            defaults.pending_writes_max,
        )?,
        window_max: values::count("window_max", &switches.window_max, defaults.window_max)?,
    };
    if limits.message_max_bytes <= limits.payload_max_bytes {
        return Err(Fault::new("message_max", "must be larger than payload_max, for a message carries a payload"));
    }
    Ok(limits)
}

fn redis(switches: &Switches, database: &Database) -> Result<Option<Redis>, Fault> {
    let Some(Text(url)) = &switches.redis_url else {
        return match switches.redis_prefix {
            Some(_) => Err(Fault::new("redis_prefix", "asks for redis_url as well")),
            None => Ok(None),
        };
    };
    if !matches!(database, Database::Postgres(_)) {
        let wanted = "is for nodes that share a Postgres, and SQLite serves one process: leave it out, or set \
                      database_url to postgres://USER:PASSWORD@HOST/DATABASE";
        return Err(Fault::new("redis_url", wanted));
    }
    let prefix = switches.redis_prefix.as_ref().map_or_else(|| "errand".to_owned(), |text| text.0.clone());
    Ok(Some(Redis { url: url.clone(), prefix }))
}

fn timings(switches: &Switches) -> Result<Timings, Fault> {
    let defaults = Timings::default();
    let timings = Timings {
        heartbeat_interval: values::duration(
            "heartbeat_interval",
            &switches.heartbeat_interval,
            defaults.heartbeat_interval,
        )?,
        accept_timeout: values::duration("accept_timeout", &switches.accept_timeout, defaults.accept_timeout)?,
        lease_ttl: values::duration("lease_ttl", &switches.lease_ttl, defaults.lease_ttl)?,
        resume_window: values::duration("resume_window", &switches.resume_window, defaults.resume_window)?,
    };
    // One lost heartbeat must not cost a runner its jobs.
    if timings.lease_ttl <= timings.heartbeat_interval.saturating_mul(2) {
        let span = |span: Duration| humantime::format_duration(span).to_string();
        let wanted = format!(
            "must be more than twice heartbeat_interval ({}), not {}",
            span(timings.heartbeat_interval),
            span(timings.lease_ttl)
        );
        return Err(Fault::new("lease_ttl", wanted));
    }
    if timings.resume_window > timings.lease_ttl {
        return Err(Fault::new("resume_window", "must not be longer than lease_ttl"));
    }
    Ok(timings)
}

fn auth(switches: &Switches) -> Result<AuthSource, Fault> {
    match (&switches.auth_secret_file, &switches.auth_jwks_file) {
        (None, None) => Ok(AuthSource::OwnKey),
        (Some(file), None) => Ok(AuthSource::SecretFile(file.path())),
        (None, Some(file)) => Ok(AuthSource::JwksFile(file.path())),
        (Some(_), Some(_)) => Err(Fault::new("auth_jwks_file", "cannot be set together with auth_secret_file")),
    }
}

fn tls(switches: &Switches) -> Result<Option<TlsFiles>, Fault> {
    match (&switches.tls_cert, &switches.tls_key) {
        (Some(cert), Some(key)) => Ok(Some(TlsFiles {
            cert: cert.path(),
            key: key.path(),
            client_ca: switches.tls_client_ca.as_ref().map(Text::path),
        })),
        (Some(_), None) => Err(Fault::new("tls_key", "must be set together with tls_cert")),
        (None, Some(_)) => Err(Fault::new("tls_cert", "must be set together with tls_key")),
        (None, None) if switches.tls_client_ca.is_some() => {
            Err(Fault::new("tls_client_ca", "asks for tls_cert and tls_key as well"))
        }
        (None, None) => Ok(None),
    }
}

/// One source of values.
struct Layer {
    name: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

fn file_layer(path: &Path) -> Result<Layer, ConfigError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError(format!("configuration file {name} cannot be read: {}", plain(&error))))?;
    let values: Dict = Toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        ConfigError(format!(
            "configuration file {name} is not valid TOML at line {line}: {}",
            error.message().replace('\n', ", ")
        ))
    })?;
    let values = values.into_iter().map(|(key, value)| (key.replace('-', "_"), value)).collect();
    Ok(Layer { name, values })
}

fn environment_layer(variable: &impl Fn(&str) -> Option<String>) -> Layer {
    let mut values = Dict::new();
    for key in keys() {
        let short = (key == "log_level").then(|| variable("ERRAND_LOG")).flatten();
        if let Some(text) = variable(&format!("ERRAND_{}", key.to_uppercase())).or(short) {
            values.insert(key, Value::from(text));
        }
    }
    Layer { name: String::from("the environment"), values }
}

fn switch_layer(switches: &Switches) -> Result<Layer, ConfigError> {
    let values = Value::serialize(switches).map_err(|error| ConfigError(error.to_string()))?;
    Ok(Layer { name: String::from("the command line"), values: values.into_dict().unwrap_or_default() })
}

/// The names of all switches, as keys.
fn keys() -> Vec<String> {
    let command = Switches::augment_args(clap::Command::new("serve"));
    command.get_arguments().map(|argument| argument.get_id().to_string()).collect()
}

fn origin(figment: &Figment, key: &str) -> Option<String> {
    figment.find_metadata(key).map(|metadata| metadata.name.to_string())
}

fn sentence(error: figment::Error, figment: &Figment) -> ConfigError {
    let place = error.metadata.as_ref().map(|metadata| format!(" in {}", metadata.name)).unwrap_or_default();
    match error.kind {
        Kind::UnknownField(key, known) => {
            let place = origin(figment, &key).map_or(place, |name| format!(" in {name}"));
            let guess =
                values::nearest(&key, known).map(|near| format!("; did you mean \"{near}\"?")).unwrap_or_default();
            ConfigError(format!("configuration key \"{key}\"{place} is not known{guess}"))
        }
        kind => {
            let key = error.path.join(".");
            ConfigError(format!("configuration key \"{key}\"{place} must be a text or a number: {kind}"))
        }
    }
}

/// An I/O error in a few words, without the number that the operating system gives it.
pub(crate) fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => String::from("no such file or directory"),
        std::io::ErrorKind::PermissionDenied => String::from("permission denied"),
        kind => kind.to_string(),
    }
}

#[cfg(test)]
mod tests;
