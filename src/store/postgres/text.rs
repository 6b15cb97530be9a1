//! Texts as Postgres can hold them: it has no NUL character, and the service's texts may have one.
//!
//! NUL is written as two characters, and the character that starts them is, too. Texts without either, which is nearly all,
//! are written as they are, so that people can read and search them.

use std::borrow::Cow;

/// SUBSTITUTE, which no keyboard types. `0` behind it is NUL, `1` is itself.
const ESCAPE: char = '\u{1a}';

pub(super) fn stored(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', ESCAPE]) {
        return Cow::Borrowed(text);
    }
    let mut stored = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        match letter {
            '\0' => stored.extend([ESCAPE, '0']),
            ESCAPE => stored.extend([ESCAPE, '1']),
            letter => stored.push(letter),
        }
    }
    Cow::Owned(stored)
}

/// The text that was stored so. What is no writing of [`stored`] stays as it is.
pub(super) fn original(stored: &str) -> Cow<'_, str> {
    if !stored.contains(ESCAPE) {
        return Cow::Borrowed(stored);
    }
    let mut text = String::with_capacity(stored.len());
    let mut letters = stored.chars().peekable();
    while let Some(letter) = letters.next() {
        let meant = match (letter, letters.peek()) {
            (ESCAPE, Some('0')) => Some('\0'),
            (ESCAPE, Some('1')) => Some(ESCAPE),
            _ => None,
        };
        if meant.is_some() {
            letters.next();
        }
        text.push(meant.unwrap_or(letter));
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_returns() {
        for text in ["", "plain ü🚀", "\0", "a\0b\0", "\u{1a}", "\u{1a}0", "\u{1a}1\0\u{1a}"] {
            let written = stored(text);
            assert!(!written.contains('\0'), "{text:?}");
            assert_eq!(original(&written), text);
        }
    }

    #[test]
    fn other_writings_stay() {
        assert_eq!(original("\u{1a}x\u{1a}"), "\u{1a}x\u{1a}");
    }
}
