//! Times and durations as people write them, and as JSON and tables show them.

use std::time::SystemTime;

use chrono::{DateTime, NaiveDateTime, SecondsFormat, Utc};
use prost_types::Timestamp;

/// Reads `90`, `90s` or `2h 30m` as whole seconds.
pub fn seconds(text: &str) -> Result<u32, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let duration =
        humantime::parse_duration(text).map_err(|_| "write seconds, or a duration like 90s or 2h".to_owned())?;
    u32::try_from(duration.as_secs()).map_err(|_| "that is over 136 years".to_owned())
}

/// Reads an RFC 3339 time; one without offset is UTC.
pub fn moment(text: &str) -> Result<Timestamp, String> {
    let time = DateTime::parse_from_rfc3339(text).map(|time| time.to_utc()).or_else(|error| {
        let naive = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M"];
        let parsed = naive.iter().find_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
        parsed.map(|time| time.and_utc()).ok_or(error)
    });
    let time = time.map_err(|_| "write a time like 2030-01-31T18:00:00Z".to_owned())?;
    Ok(SystemTime::from(time).into())
}

/// Reads a time, or a duration before this moment.
pub fn since(text: &str) -> Result<Timestamp, String> {
    match humantime::parse_duration(text) {
        Ok(ago) => {
            SystemTime::now().checked_sub(ago).map(Timestamp::from).ok_or_else(|| "that is too long ago".to_owned())
        }
        Err(_) => moment(text).map_err(|_| "write a time like 2030-01-31T18:00:00Z, or a duration like 2h".to_owned()),
    }
}

/// RFC 3339 in UTC with `Z`.
pub fn written(time: Option<&Timestamp>) -> Option<String> {
    let time = time?;
    let time = DateTime::<Utc>::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)?;
    Some(time.to_rfc3339_opts(SecondsFormat::Millis, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_without_offset_is_utc() {
        let written = |text| super::written(moment(text).ok().as_ref());
        assert_eq!(written("2030-01-31T18:00:00").as_deref(), Some("2030-01-31T18:00:00.000Z"));
        assert_eq!(written("2030-01-31T18:00:00+02:00").as_deref(), Some("2030-01-31T16:00:00.000Z"));
        assert_eq!(written("soon"), None);
    }

    #[test]
    fn a_bare_number_is_seconds() {
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("2m"), Ok(120));
        assert!(seconds("-1").is_err());
    }
}
