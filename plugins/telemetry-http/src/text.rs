//! Texts from anywhere, made harmless and short.

use std::{
    borrow::Cow,
    fmt::Write,
    time::{Duration, SystemTime},
};

use serde_json::Value;

/// The last second of the year 9999, the last that RFC 3339 can write.
const LAST: Duration = Duration::from_secs(253_402_300_799);

/// `2026-11-23T03:48:13.123456Z`.
pub fn rfc3339(at: SystemTime) -> String {
    let at = at.clamp(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + LAST);
    humantime::format_rfc3339_micros(at).to_string()
}

/// What JSON leaves as it is though it commands a terminal, ends a line or reorders text where it is shown.
fn is_hostile(c: char) -> bool {
    matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{61c}' | '\u{200e}' | '\u{200f}')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// JSON with everything hostile escaped; it stands only in strings, so the value stays the same.
pub fn harmless_json(json: &str) -> Cow<'_, str> {
    if !json.contains(is_hostile) {
        return Cow::Borrowed(json);
    }
    let mut harmless = String::with_capacity(json.len() + 64);
    for c in json.chars() {
        if is_hostile(c) {
            // Everything hostile is in the basic multilingual plane: one \u suffices.
            let _ = write!(harmless, "\\u{:04x}", u32::from(c));
        } else {
            harmless.push(c);
        }
    }
    Cow::Owned(harmless)
}

/// A text of at most about `longest` bytes, with everything hostile written out.
pub fn harmless(text: &str, longest: usize) -> String {
    let mut harmless = String::with_capacity(text.len().min(longest));
    for c in text.chars() {
        if harmless.len() >= longest {
            harmless.push('…');
            break;
        }
        if is_hostile(c) {
            harmless.extend(c.escape_default());
        } else {
            harmless.push(c);
        }
    }
    harmless
}

/// A JSON value with [`harmless`] texts and keys, and no deeper than anybody looks.
pub fn harmless_value(value: &Value, longest: usize, deepest: usize) -> Value {
    match value {
        Value::String(text) => harmless(text, longest).into(),
        Value::Array(_) | Value::Object(_) if deepest == 0 => "…".into(),
        Value::Array(items) => items.iter().map(|item| harmless_value(item, longest, deepest - 1)).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (harmless(name, longest), harmless_value(value, longest, deepest - 1)))
            .collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    proptest! {
        #[test]
        fn harmless_json_says_the_same_in_one_line(
            texts in proptest::collection::vec(r#"\PC{0,8}[\x00-\x1f\x7f-\x9f\u{2028}-\u{202e}\u{2066}-\u{2069}"\\]{0,4}\PC{0,8}"#, 2)
        ) {
            let value = json!({texts[0].clone(): [texts[1]]});
            let text = value.to_string();
            let harmless = harmless_json(&text);
            prop_assert!(!harmless.contains(|c: char| c.is_control() || is_hostile(c)), "{harmless:?}");
            prop_assert_eq!(serde_json::from_str::<Value>(&harmless).unwrap(), value);
        }

        #[test]
        fn long_texts_are_cut_between_characters(text in r"\PC{0,64}", longest in 0_usize..32) {
            prop_assert!(harmless(&text, longest).len() <= longest + 16);
        }
    }

    #[test]
    fn any_clock_can_be_written() {
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000000Z");
        assert_eq!(
            rfc3339(SystemTime::UNIX_EPOCH + LAST + Duration::from_secs(1)),
            "9999-12-31T23:59:59.000000Z"
        );
    }
}
