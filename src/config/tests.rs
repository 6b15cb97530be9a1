//! Precedence, spelling, and what is said of mistakes.

use std::io::Write;

use super::*;

fn text(value: &str) -> Option<Text> {
    Some(Text(value.to_owned()))
}

fn file(contents: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().expect("temporary file");
    file.write_all(contents.as_bytes()).expect("write");
    file
}

fn load_with(file_text: &str, variables: &[(&str, &str)], switches: Switches) -> Result<Config, ConfigError> {
    let file = file(file_text);
    let args = ServeArgs { config: Some(file.path().to_owned()), switches };
    Config::load(&args, |name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
}

#[test]
fn the_switch_wins_then_the_variable_then_the_file() {
    let toml = "http = \"127.0.0.1:1\"\n";
    let variables = [("ERRAND_HTTP", "127.0.0.1:2")];
    let config = load_with(toml, &[], Switches::default()).expect("file");
    assert_eq!(config.http.as_deref(), Some("127.0.0.1:1"));
    let config = load_with(toml, &variables, Switches::default()).expect("variable");
    assert_eq!(config.http.as_deref(), Some("127.0.0.1:2"));
    let switches = Switches { http: text("127.0.0.1:3"), ..Switches::default() };
    let config = load_with(toml, &variables, switches).expect("switch");
    assert_eq!(config.http.as_deref(), Some("127.0.0.1:3"));
}

#[test]
fn an_unknown_key_is_named_with_the_likely_one() {
    let error = load_with("htpp = \"off\"\n", &[], Switches::default()).expect_err("unknown key").to_string();
    assert!(error.starts_with("configuration key \"htpp\" in "), "{error}");
    assert!(error.ends_with(" is not known; did you mean \"http\"?"), "{error}");
}

#[test]
fn variables_of_the_client_mean_nothing_to_the_service() {
    let variables = [("ERRAND_SERVER", "x"), ("ERRAND_TOKEN", "y"), ("ERRAND_JOB_ID", "z")];
    load_with("", &variables, Switches::default()).expect("defaults");
}

#[test]
fn keys_may_be_spelt_with_dashes_and_values_be_numbers() {
    let toml = "data-dir = \"/tmp/x\"\nbatch_max = 5\nbody-max = 1024\ncors-origin = [\"https://a\", \"https://b\"]\n";
    let config = load_with(toml, &[], Switches::default()).expect("config");
    assert_eq!(config.data_dir, PathBuf::from("/tmp/x"));
    assert_eq!(config.limits.batch_max, 5);
    assert_eq!(config.body_max_bytes, 1024);
    assert_eq!(config.cors_origins, ["https://a", "https://b"]);
}

#[test]
fn durations_read_as_people_write_them() {
    let variables = [("ERRAND_HEARTBEAT_INTERVAL", "500ms"), ("ERRAND_LEASE_TTL", "2m")];
    let config = load_with("", &variables, Switches::default()).expect("config");
    assert_eq!(config.timings.heartbeat_interval, Duration::from_millis(500));
    assert_eq!(config.timings.lease_ttl, Duration::from_secs(120));
    let error = load_with("lease_ttl = 5\n", &[], Switches::default()).expect_err("no unit").to_string();
    assert!(error.starts_with("lease_ttl: must be a duration such as 500ms, 5s or 2m, not \"5\""), "{error}");
}

#[test]
fn sizes_read_as_people_write_them() {
    for (given, bytes) in [("8MiB", 8 << 20), ("512KiB", 512 << 10), ("1MB", 1_000_000), ("77", 77)] {
        assert_eq!(values::size("body_max", &text(given), 1).expect(given), bytes);
    }
    for given in ["", "MiB", "8 apples", "0", "5TiB", "-1"] {
        assert!(values::size("body_max", &text(given), 1).is_err(), "{given}");
    }
}

#[test]
fn a_lease_must_outlive_two_heartbeats() {
    let error = load_with("lease_ttl = \"10s\"\n", &[], Switches::default()).expect_err("too short").to_string();
    assert!(error.starts_with("lease_ttl: must be more than twice heartbeat_interval (5s), not 10s (from "), "{error}");
}

#[test]
fn another_database_is_refused_without_repeating_the_password() {
    let variables = [("ERRAND_DATABASE_URL", "mysql://me:secret@db/errand")];
    let error = load_with("", &variables, Switches::default()).expect_err("mysql").to_string();
    assert_eq!(
        error,
        "database_url: must be sqlite:PATH, or postgres://USER:PASSWORD@HOST/DATABASE (from the environment)"
    );
}

#[test]
fn postgres_may_have_a_redis_beside_it() {
    let url = "postgres://me:secret@db/errand?sslmode=require";
    let variables = [("ERRAND_DATABASE_URL", url), ("ERRAND_REDIS_URL", "redis://cache/3")];
    let config = load_with("redis_prefix = \"jobs\"\n", &variables, Switches::default()).expect("a fleet");
    assert_eq!(config.database, Database::Postgres(url.to_owned()));
    assert_eq!(config.redis, Some(Redis { url: "redis://cache/3".to_owned(), prefix: "jobs".to_owned() }));
}

#[test]
fn sqlite_has_no_use_for_a_redis() {
    let variables = [("ERRAND_REDIS_URL", "redis://:secret@cache")];
    let error = load_with("", &variables, Switches::default()).expect_err("no postgres").to_string();
    assert!(error.starts_with("redis_url: is for nodes that share a Postgres"), "{error}");
    assert!(error.contains("database_url") && !error.contains("secret"), "{error}");
}

#[test]
fn a_sqlite_path_is_taken_in_both_spellings() {
    for url in ["sqlite:/tmp/a.db", "sqlite:///tmp/a.db"] {
        let config = load_with("", &[("ERRAND_DATABASE_URL", url)], Switches::default()).expect(url);
        assert_eq!(config.database, Database::Sqlite(PathBuf::from("/tmp/a.db")));
    }
}

#[test]
fn a_certificate_asks_for_its_key() {
    let switches = Switches { tls_cert: text("a.pem"), ..Switches::default() };
    let error = load_with("", &[], switches).expect_err("no key").to_string();
    assert!(error.starts_with("tls_key: must be set together with tls_cert"), "{error}");
}

#[test]
fn broken_toml_is_told_with_its_line() {
    let error = load_with("http = \"off\"\ngrpc = \n", &[], Switches::default()).expect_err("broken").to_string();
    assert!(error.contains("is not valid TOML at line 2"), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn ended_jobs_are_kept_as_long_as_people_write() {
    let kept = |retention: &str| load_with(retention, &[], Switches::default()).map(|config| config.retention);
    let of = |keep_for, keep_max| Retention { keep_for, keep_max };
    assert_eq!(kept("").expect("the default"), of(Some(Duration::from_secs(7 * 24 * 3_600)), None));
    for (text, keep_for) in [("off", None), ("forever", None), ("90d", Some(Duration::from_secs(90 * 24 * 3_600)))] {
        assert_eq!(kept(&format!("retain_finished = \"{text}\"\n")).expect(text), of(keep_for, None));
    }
    let variables = [("ERRAND_RETAIN_FINISHED", "1s"), ("ERRAND_RETAIN_FINISHED_MAX", "2000000000")];
    let config = load_with("", &variables, Switches::default()).expect("both bounds");
    assert_eq!(config.retention, of(Some(Duration::from_secs(1)), Some(2_000_000_000)));
    for (text, wanted) in [
        ("retain_finished = 7", "retain_finished: must be a duration such as 12h or 7d, or off, not \"7\""),
        ("retain_finished = \"0s\"", "retain_finished: must be longer than zero"),
        ("retain_finished = \"101years\"", "retain_finished: must be at most 100 years, or off, not 101years"),
        ("retain_finished_max = 0", "retain_finished_max: must be a whole number from 1 to 1000000000000, or off"),
        ("retain_finished_max = \"many\"", "retain_finished_max: must be a whole number"),
    ] {
        let error = kept(&format!("{text}\n")).expect_err(text).to_string();
        assert!(error.starts_with(wanted), "{error}");
    }
}
