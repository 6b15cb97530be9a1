//! `errand token`: one JWT, signed with the service's key. It works beside a running service and before a first start.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;

use crate::{
    config::{AuthSource, Config, ServeArgs, Switches, Text, plain},
    data_dir::DataDir,
    grpc::auth,
    model::access::Permission,
    start_error::StartError,
};

/// Longer makes no difference to anybody alive, and keeps the date within what clients can read.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

#[derive(Debug, Clone, Args)]
pub struct TokenArgs {
    /// Whom the token names; jobs published with it belong to this name
    #[arg(long, value_name = "NAME")]
    pub subject: String,
    /// view_jobs, manage_jobs or run_jobs; may be repeated
    #[arg(long = "permission", value_name = "PERMISSION")]
    pub permissions: Vec<String>,
    /// A channel that a runner is bound to; may be repeated; without, any
    #[arg(long = "channel", value_name = "CHANNEL")]
    pub channels: Vec<String>,
    /// How long the token is good for
    #[arg(long, value_name = "DURATION", default_value = "30d")]
    pub expires_in: String,
    /// A TOML file with the configuration of the service [env: ERRAND_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the signing key lies; made if absent [env: ERRAND_DATA_DIR] [default: ./errand-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// The secret to sign with, in place of the key in the data directory [env: ERRAND_AUTH_SECRET_FILE]
    #[arg(long, value_name = "FILE", conflicts_with = "data_dir")]
    pub auth_secret_file: Option<String>,
}

/// The token, for standard output.
pub fn issue(args: &TokenArgs, variable: impl Fn(&str) -> Option<String>) -> Result<String, StartError> {
    let usage = |sentence: String| Err(StartError::Usage(sentence));
    if args.subject.is_empty() {
        return usage(String::from("--subject must not be empty"));
    }
    if let Some(unknown) = args.permissions.iter().find(|name| Permission::from_name(name).is_none()) {
        return usage(format!(
            "permission \"{unknown}\" is not known; the known ones are view_jobs, manage_jobs and run_jobs"
        ));
    }
    let lifetime = match humantime::parse_duration(&args.expires_in) {
        Ok(span) if !span.is_zero() && span <= LONGEST => span,
        _ => return usage(format!("--expires-in must be a duration such as 12h or 30d, not \"{}\"", args.expires_in)),
    };
    let switches = Switches {
        data_dir: args.data_dir.clone().map(Text),
        auth_secret_file: args.auth_secret_file.clone().map(Text),
        ..Switches::default()
    };
    let config = Config::load(&ServeArgs { config: args.config.clone(), switches }, variable)?;
    let secret = match &config.auth {
        AuthSource::OwnKey => DataDir::open(&config.data_dir)?.signing_key()?.secret,
        AuthSource::SecretFile(path) => read_secret(path)?,
        AuthSource::JwksFile(_) => {
            return usage(String::from(
                "auth_jwks_file: tokens come from your identity provider; this service has no key to sign with",
            ));
        }
    };
    let channels = (!args.channels.is_empty()).then_some(args.channels.as_slice());
    auth::mint(&secret, &args.subject, &args.permissions, channels, expiry(lifetime))
        .map_err(|error| StartError::Internal(format!("the token cannot be signed: {error}")))
}

/// The contents of a secret file without the white space around it, which editors add.
pub fn read_secret(path: &Path) -> Result<Vec<u8>, StartError> {
    let refused = |why: &str| StartError::Usage(format!("auth_secret_file: {} {why}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| refused(&format!("cannot be read: {}", plain(&error))))?;
    match bytes.trim_ascii() {
        [] => Err(refused("is empty")),
        secret => Ok(secret.to_vec()),
    }
}

/// In seconds since 1970. A token is for other machines, so only the wall clock counts.
#[expect(clippy::disallowed_methods, reason = "a command of one moment, with no service and no clock")]
fn expiry(lifetime: Duration) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(now.saturating_add(lifetime).as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(data_dir: &Path) -> TokenArgs {
        TokenArgs {
            subject: String::from("me"),
            permissions: vec![String::from("manage_jobs")],
            channels: Vec::new(),
            expires_in: String::from("30d"),
            config: None,
            data_dir: Some(data_dir.display().to_string()),
            auth_secret_file: None,
        }
    }

    #[test]
    fn a_token_is_three_parts_and_the_key_is_made() {
        let parent = tempfile::tempdir().expect("temporary directory");
        let token = issue(&args(&parent.path().join("data")), |_| None).expect("token");
        assert_eq!(token.split('.').count(), 3);
        assert!(parent.path().join("data/auth.key").exists());
    }

    #[test]
    fn an_unknown_permission_is_refused_with_the_known_ones() {
        let parent = tempfile::tempdir().expect("temporary directory");
        let args = TokenArgs { permissions: vec![String::from("root")], ..args(parent.path()) };
        let error = issue(&args, |_| None).expect_err("unknown");
        assert_eq!(error.exit_code(), 64);
        assert!(error.to_string().contains("view_jobs, manage_jobs and run_jobs"), "{error}");
    }
}
