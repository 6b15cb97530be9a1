//! How the value of a key is spelt: addresses, durations, sizes, counts. Each reader takes the key, what was given and the
//! default, and answers with the value or with what it wanted.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::{Database, Fault};
use crate::model::limits::{self, Retention};

/// The text of a value, from wherever it came. A TOML file may also give a number or a boolean; they become their text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Text(pub String);

impl Text {
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(&self.0)
    }

    /// The part of a URL that carries no secret.
    pub(super) fn scheme(&self) -> &str {
        self.0.split(':').next().unwrap_or("")
    }
}

impl From<String> for Text {
    fn from(text: String) -> Text {
        Text(text)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Text;
            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a text or a number")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A list, or one text with commas.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Text>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Shape {
        Many(Vec<Text>),
        One(Text),
    }
    Ok(match Shape::deserialize(deserializer)? {
        Shape::Many(texts) => texts,
        Shape::One(text) => {
            let parts = text.0.split(',').map(str::trim).filter(|part| !part.is_empty());
            parts.map(|part| Text(part.to_owned())).collect()
        }
    })
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

pub(super) fn log_format(key: &'static str, given: &Option<Text>) -> Result<LogFormat, Fault> {
    match given.as_ref().map(|text| text.0.as_str()) {
        None | Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some(other) => Err(Fault::new(key, format!("must be text or json, not \"{other}\""))),
    }
}

/// A level for everything, or a filter with a level for each part.
pub(super) fn log_filter(key: &'static str, given: &Option<Text>) -> Result<String, Fault> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let Some(Text(text)) = given else { return Ok(String::from("info")) };
    let known = |part: &str| {
        let level = part.rsplit('=').next().unwrap_or(part).trim();
        LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level))
    };
    if text.split(',').all(known) && tracing_subscriber::EnvFilter::try_new(text).is_ok() {
        return Ok(text.clone());
    }
    Err(Fault::new(
        key,
        format!("must be one of {}, or a filter such as info,errand=debug, not \"{text}\"", LEVELS.join(", ")),
    ))
}

pub(super) fn http_address(key: &'static str, given: &Option<Text>, default: &str) -> Result<Option<String>, Fault> {
    if given.as_ref().is_some_and(|text| text.0 == "off") {
        return Ok(None);
    }
    address(key, given, default)
        .map(Some)
        .map_err(|fault| Fault::new(key, fault.wanted.replacen("must be", "must be off or", 1)))
}

/// `host:port`; whether the host exists shows when it is bound.
pub(super) fn address(key: &'static str, given: &Option<Text>, default: &str) -> Result<String, Fault> {
    let text = given.as_ref().map_or(default, |text| text.0.as_str());
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err(Fault::new(key, format!("must be an address such as {default}, not \"{text}\""))),
    }
}

/// `sqlite:PATH`, `sqlite://PATH`, or a URL of Postgres. The text is not repeated: a database URL may carry a password.
pub(super) fn database(key: &'static str, given: &Option<Text>) -> Result<Database, Fault> {
    let Some(text) = given else { return Ok(Database::InDataDir) };
    let scheme = text.scheme();
    if scheme == "sqlite" {
        let path = text.0.strip_prefix("sqlite://").or_else(|| text.0.strip_prefix("sqlite:")).unwrap_or("");
        return match path {
            "" | ":memory:" => Err(Fault::new(key, "must name a file, such as sqlite:/var/lib/errand/errand.db")),
            path => Ok(Database::Sqlite(PathBuf::from(path))),
        };
    }
    if scheme == "postgres" || scheme == "postgresql" {
        return Ok(Database::Postgres(text.0.clone()));
    }
    Err(Fault::new(key, "must be sqlite:PATH, or postgres://USER:PASSWORD@HOST/DATABASE"))
}

/// A duration above zero and up to a day, such as 500ms, 5s or 2m.
pub(super) fn duration(key: &'static str, given: &Option<Text>, default: Duration) -> Result<Duration, Fault> {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let Some(Text(text)) = given else { return Ok(default) };
    span(key, text, (DAY, "a day"), "500ms, 5s or 2m")
}

/// A duration above zero; a fault tells the longest one in words, and what a good one looks like.
fn span(key: &'static str, text: &str, (longest, told): (Duration, &str), such_as: &str) -> Result<Duration, Fault> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err(Fault::new(key, "must be longer than zero")),
        Ok(span) if span > longest => Err(Fault::new(key, format!("must be at most {told}, not {text}"))),
        Ok(span) => Ok(span),
        Err(_) => Err(Fault::new(key, format!("must be a duration such as {such_as}, not \"{text}\""))),
    }
}

/// A duration up to a hundred years, such as 12h or 7d; `None`: for ever.
pub(super) fn retain_for(key: &'static str, given: &Option<Text>) -> Result<Option<Duration>, Fault> {
    const CENTURY: Duration = Duration::from_secs(limits::SECONDS_MAX as u64);
    let Some(Text(text)) = given else { return Ok(Retention::default().keep_for) };
    if text == "off" || text == "forever" {
        return Ok(None);
    }
    span(key, text, (CENTURY, "100 years, or off"), "12h or 7d, or off").map(Some)
}

/// From 1 to a trillion, which no database here holds; `None`: any number.
pub(super) fn retain_max(key: &'static str, given: &Option<Text>) -> Result<Option<u64>, Fault> {
    let Some(Text(text)) = given else { return Ok(Retention::default().keep_max) };
    if text == "off" {
        return Ok(None);
    }
    match text.parse::<u64>() {
        Ok(number @ 1..=1_000_000_000_000) => Ok(Some(number)),
        _ => Err(Fault::new(key, format!("must be a whole number from 1 to 1000000000000, or off, not \"{text}\""))),
    }
}

/// Bytes: 8388608, 8MiB, 512KiB, 8MB. From 1 to 1 GiB, so that sums of a few never overflow.
pub(super) fn size(key: &'static str, given: &Option<Text>, default: usize) -> Result<usize, Fault> {
    const LARGEST: u64 = 1 << 30;
    let Some(Text(text)) = given else { return Ok(default) };
    let digits_end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let factor: Option<u64> = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "kb" => Some(1_000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        "k" | "kib" => Some(1 << 10),
        "m" | "mib" => Some(1 << 20),
        "g" | "gib" => Some(1 << 30),
        _ => None,
    };
    let bytes = digits.parse::<u64>().ok().zip(factor).map(|(number, factor)| number.saturating_mul(factor));
    match bytes {
        Some(bytes @ 1..=LARGEST) => {
            usize::try_from(bytes).map_err(|_| Fault::new(key, "is more than this machine can address"))
        }
        Some(_) => Err(Fault::new(key, format!("must be from 1 byte to 1GiB, not {text}"))),
        None => Err(Fault::new(key, format!("must be a size such as 8MiB, 512KiB or 1048576, not \"{text}\""))),
    }
}

/// A count from 1 to 10 million, the most that any bounded queue here may hold.
pub(super) fn count(key: &'static str, given: &Option<Text>, default: usize) -> Result<usize, Fault> {
    let Some(Text(text)) = given else { return Ok(default) };
    match text.parse::<usize>() {
        Ok(number @ 1..=10_000_000) => Ok(number),
        _ => Err(Fault::new(key, format!("must be a whole number from 1 to 10000000, not \"{text}\""))),
    }
}

pub(super) fn node_id(key: &'static str, given: &Option<Text>) -> Result<Arc<str>, Fault> {
    let Some(Text(text)) = given else { return Ok(default_node_id().into()) };
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "_.-".contains(letter);
    if (1..=100).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.as_str().into());
    }
    Err(Fault::new(key, format!("must be 1 to 100 letters, digits, dots, dashes or underscores, not \"{text}\"")))
}

/// Random at its end: a container restarted under the same host name and process id is another node.
#[expect(clippy::disallowed_methods, reason = "a name that must differ between processes, before there are dice")]
fn default_node_id() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    let host = match host.trim() {
        "" => "node",
        host => host,
    };
    let random = uuid::Uuid::new_v4().as_u64_pair().0 >> 32;
    format!("{host}-{}-{random:08x}", std::process::id())
}

/// The known name that a misspelt one is likely to mean: at most a third of its letters differ.
pub(super) fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let closest = known.iter().map(|name| (distance(given, name), *name)).min()?;
    (closest.0 <= (given.len() / 3).max(2)).then_some(closest.1)
}

/// How many letters to insert, drop, replace or swap to get from one word to the other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=to.len()).collect()];
    for (i, letter) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, other) in to.iter().enumerate() {
            let replaced = rows[i][j] + usize::from(letter != other);
            let mut least = replaced.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *letter == to[j - 1] && from[i - 1] == *other {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}
