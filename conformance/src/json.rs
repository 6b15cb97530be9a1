//! Whether two JSON texts say the same, to the last digit.
//!
//! Spaces, escapes, the order of keys and the spelling of fractions (1.0, 1e0) are a language's own; the digits of an
//! integer are not.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// The longest integer that every language's numbers hold exactly.
const SAFE_DIGITS: usize = 15;

/// True where both are JSON and mean the same value.
pub fn same(one: &str, other: &str) -> bool {
    match (read(one), read(other)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

#[derive(Debug)]
enum Value {
    Plain(serde_json::Value),
    Number(String),
    List(Vec<Value>),
    Object(BTreeMap<String, Value>),
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Plain(one), Self::Plain(other)) => one == other,
            (Self::Number(one), Self::Number(other)) => one == other || same_number(one, other),
            (Self::List(one), Self::List(other)) => one == other,
            (Self::Object(one), Self::Object(other)) => one == other,
            _ => false,
        }
    }
}

fn same_number(one: &str, other: &str) -> bool {
    let is_long =
        |text: &str| text.len() > SAFE_DIGITS && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit());
    if is_long(one) || is_long(other) {
        return false;
    }
    match (one.parse::<f64>(), other.parse::<f64>()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

fn read(text: &str) -> Option<Value> {
    let text = text.trim();
    match text.bytes().next()? {
        b'{' => {
            let members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text).ok()?;
            let read = members.into_iter().map(|(key, value)| Some((key, read(value.get())?)));
            read.collect::<Option<_>>().map(Value::Object)
        }
        b'[' => {
            let items: Vec<Box<RawValue>> = serde_json::from_str(text).ok()?;
            items.iter().map(|item| read(item.get())).collect::<Option<_>>().map(Value::List)
        }
        b'-' | b'0'..=b'9' => serde_json::from_str::<&RawValue>(text).ok().map(|_| Value::Number(text.to_owned())),
        _ => serde_json::from_str(text).ok().map(Value::Plain),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelling_does_not_matter_and_digits_do() {
        assert!(same(r#"{"a": 1.0, "b": "\u00e9"}"#, r#"{"b":"é","a":1}"#));
        assert!(same("[1e3, null]", "[1000.0,null]"));
        assert!(!same("9007199254740993", "9007199254740992"));
        assert!(!same("12345678901234567890123", "1.2345678901234568e22"));
        assert!(!same("[1, 2]", "[2, 1]"));
        assert!(!same("1", "\"1\""));
        assert!(!same("", ""));
    }
}
