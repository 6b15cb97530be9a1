//! Reading what clients send: bodies, fields, parameters and times.

use std::collections::{BTreeMap, HashMap};

use axum::{
    body::{Bytes, to_bytes},
    extract::{FromRequest, FromRequestParts, Query, Request},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE, request::Parts},
};
use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use prost_types::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::{Gateway, Problem};

/// A body that is a JSON object, or an object within it; each value is kept as the client spelt it.
#[derive(Debug)]
pub(crate) struct Object(BTreeMap<String, Box<RawValue>>);

impl FromRequest<Gateway> for Object {
    type Rejection = Problem;

    /// An empty body counts as `{}`.
    async fn from_request(request: Request, gateway: &Gateway) -> Result<Object, Problem> {
        let limit = gateway.config.body_max_bytes;
        let is_json = speaks_json(request.headers());
        let bytes = to_bytes(request.into_body(), limit).await.map_err(|error| unreadable(&error, limit))?;
        if is_json.unwrap_or(bytes.is_empty()) {
            parse(&bytes)
        } else {
            Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json"))
        }
    }
}

impl Object {
    /// The object that a value is, if it is one.
    pub(crate) fn nested(value: &RawValue) -> Option<Object> {
        value.get().starts_with('{').then(|| serde_json::from_str(value.get()).ok()).flatten().map(Object)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(crate) fn raw(&self, name: &str) -> Option<&RawValue> {
        self.0.get(name).map(AsRef::as_ref)
    }

    pub(crate) fn is_true(&self, name: &str) -> bool {
        self.raw(name).is_some_and(|raw| raw.get() == "true")
    }

    /// A field's value, or none where it is absent or null.
    fn field<T: DeserializeOwned>(&self, name: &str, wanted: &str) -> Result<Option<T>, Problem> {
        match self.raw(name).map(RawValue::get) {
            None | Some("null") => Ok(None),
            Some(text) => serde_json::from_str(text).map(Some).map_err(|_| Problem::field(name, wanted)),
        }
    }

    pub(crate) fn string(&self, name: &str) -> Result<Option<String>, Problem> {
        self.field(name, "must be a string")
    }

    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>, Problem> {
        self.field(name, "must be true or false")
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<f64>, Problem> {
        self.field(name, "must be a number")
    }

    pub(crate) fn integer(&self, name: &str) -> Result<Option<i32>, Problem> {
        self.field(name, "must be a whole number")
    }

    pub(crate) fn count(&self, name: &str) -> Result<Option<u32>, Problem> {
        self.field(name, "must be a whole number of at least 0")
    }

    pub(crate) fn time(&self, name: &str) -> Result<Option<Timestamp>, Problem> {
        let text: Option<String> = self.field(name, WANTED_TIME)?;
        text.map(|text| time(name, &text)).transpose()
    }

    /// A JSON object, spelt as the client spelt it.
    pub(crate) fn object(&self, name: &str) -> Result<Option<String>, Problem> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        if raw.get().starts_with('{') {
            Ok(Some(raw.get().to_owned()))
        } else {
            Err(Problem::field(name, "must be a JSON object"))
        }
    }
}

/// Whether the content type is JSON; none where there is no content type.
fn speaks_json(headers: &HeaderMap) -> Option<bool> {
    let value = headers.get(CONTENT_TYPE)?;
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    Some(essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")))
}

fn unreadable(error: &axum::Error, limit: usize) -> Problem {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(cause) = source {
        if cause.is::<http_body_util::LengthLimitError>() {
            let sentence = format!("Request body exceeds maximum size of {limit} bytes");
            return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, sentence);
        }
        source = cause.source();
    }
    Problem::invalid("The request body could not be read")
}

fn parse(bytes: &Bytes) -> Result<Object, Problem> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Object(BTreeMap::new()));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Problem::invalid("Malformed JSON: not valid UTF-8"))?;
    let value: &RawValue = serde_json::from_str(text).map_err(|error| {
        Problem::invalid(format!("Malformed JSON at line {}, character {}", error.line(), error.column()))
    })?;
    Object::nested(value).ok_or_else(|| Problem::invalid("Invalid body: must be a JSON object"))
}

const WANTED_TIME: &str = "must be an ISO 8601 time such as 2024-01-15T10:45:00Z";

/// A time as clients spell it; without an offset it is UTC, and a date alone is its first moment.
fn time(name: &str, text: &str) -> Result<Timestamp, Problem> {
    // In a query string an unescaped plus sign of an offset arrives as a space.
    let candidates = [text.to_owned(), text.replacen(' ', "+", 1), text.replacen(' ', "T", 1)];
    let parsed =
        candidates.iter().find_map(|text| parse_time(text)).ok_or_else(|| Problem::field(name, WANTED_TIME))?;
    Ok(Timestamp { seconds: parsed.timestamp(), nanos: i32::try_from(parsed.timestamp_subsec_nanos()).unwrap_or(0) })
}

fn parse_time(text: &str) -> Option<DateTime<Utc>> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.with_timezone(&Utc));
    }
    let naive = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"]
        .iter()
        .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
        .or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().map(|date| date.and_time(NaiveTime::MIN)))?;
    Some(naive.and_utc())
}

/// The query string. Unknown parameters are there and ignored; empty ones count as absent.
pub(crate) struct Parameters(HashMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Parameters, Problem> {
        let query = Query::<HashMap<String, String>>::from_request_parts(parts, state).await;
        query.map(|Query(named)| Parameters(named)).map_err(|_| Problem::invalid("Malformed query string"))
    }
}

impl Parameters {
    pub(crate) fn string(&self, name: &str) -> String {
        self.text(name).unwrap_or_default().to_owned()
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    pub(crate) fn time(&self, name: &str) -> Result<Option<Timestamp>, Problem> {
        self.text(name).map(|text| time(name, text)).transpose()
    }

    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>, Problem> {
        self.text(name)
            .map(|text| match text.to_ascii_lowercase().as_str() {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(Problem::field(name, "must be true or false")),
            })
            .transpose()
    }

    /// A whole number within `min..=max`.
    pub(crate) fn count(&self, name: &str, default: u32, min: u32, max: u32) -> Result<u32, Problem> {
        let Some(text) = self.text(name) else { return Ok(default) };
        let number = text.parse().ok().filter(|number| (min..=max).contains(number));
        number.ok_or_else(|| Problem::field(name, &format!("must be a whole number from {min} to {max}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> Option<i64> {
        time("since", text).ok().map(|time| time.seconds)
    }

    #[test]
    fn times_without_an_offset_are_utc() {
        let expected = Some(1_705_315_500);
        assert_eq!(seconds("2024-01-15T10:45:00Z"), expected);
        assert_eq!(seconds("2024-01-15T10:45:00"), expected);
        assert_eq!(seconds("2024-01-15 10:45"), expected);
        assert_eq!(seconds("2024-01-15T11:45:00+01:00"), expected);
        assert_eq!(seconds("2024-01-15T11:45:00 01:00"), expected, "as an unescaped query string has it");
        assert_eq!(seconds("tomorrow"), None);
    }

    #[test]
    fn malformed_json_is_told_by_its_place() {
        let problem = parse(&Bytes::from_static(b"{\"a\": ")).expect_err("it is cut");
        assert_eq!(problem.error, "Malformed JSON at line 1, character 6");
        let problem = parse(&Bytes::from_static(b"[1]")).expect_err("it is a list");
        assert_eq!(problem.error, "Invalid body: must be a JSON object");
    }

    #[test]
    fn a_field_keeps_its_spelling() {
        let fields =
            parse(&Bytes::from_static(b"{\"payload\": {\"z\":1.0,\"a\":12345678901234567890123}}")).expect("it parses");
        assert_eq!(fields.raw("payload").expect("it is there").get(), "{\"z\":1.0,\"a\":12345678901234567890123}");
    }
}
