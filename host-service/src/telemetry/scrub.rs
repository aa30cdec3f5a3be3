//! The last net under records: whatever looks like a secret is taken out of them before any plugin gets them. Types that
//! cannot be printed are what keeps secrets away; this is for the text of another's error, a URL, a panic.
//!
//! Looked for: values under names of secrets (`password=…`, `"token":"…"`, `Authorization: …`), credentials in URLs,
//! JSON Web Tokens, and 32 hexadecimal digits, which is what an AES key looks like, except for the id of the mandelbox
//! that the record is about. One pass over each text, for this runs where the record is made.

use host_core::telemetry::{MANDELBOX, Record};
use serde_json::Value;

/// What stands instead of a secret.
pub(super) const REDACTED: &str = "[redacted]";

/// Names of secrets, in lower case, each with how far its value goes.
const NAMES: [(&str, Until); 13] = [
    ("admin-secret", Until::Word),
    ("admin_secret", Until::Word),
    ("aes_key", Until::Word),
    ("api_key", Until::Word),
    ("authorization", Until::Line),
    ("config_encryption_token", Until::Word),
    ("cookie", Until::Line),
    ("cookies", Until::Line),
    ("passwd", Until::Word),
    ("password", Until::Word),
    ("private_key", Until::Word),
    ("secret", Until::Word),
    ("token", Until::Word),
];
/// What announces a secret by itself.
const SCHEMES: [&str; 2] = ["bearer ", "basic "];
const HEX_KEY: usize = 32;
/// Shorter is a word that follows one of these names by chance.
const SHORTEST_CREDENTIAL: usize = 8;

#[derive(Clone, Copy)]
enum Until {
    Word,
    Line,
}

/// Takes out of `record` what looks like a secret.
pub(super) fn scrub(record: &mut Record) {
    let id = record.fields.get(MANDELBOX).and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(clean) = scrubbed(&record.message, &id) {
        record.message = clean;
    }
    for (name, value) in &mut record.fields {
        scrub_value(name, value, &id);
    }
}

fn scrub_value(name: &str, value: &mut Value, id: &str) {
    let secret = NAMES.iter().any(|(secret, _)| name.eq_ignore_ascii_case(secret));
    match value {
        Value::String(text) if secret && !text.is_empty() => REDACTED.clone_into(text),
        Value::String(text) => {
            if let Some(clean) = scrubbed(text, id) {
                *text = clean;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| scrub_value(name, item, id)),
        Value::Object(fields) => fields.iter_mut().for_each(|(name, value)| scrub_value(name, value, id)),
        _ => {}
    }
}

/// The text without what looks like a secret; `None` when nothing does.
fn scrubbed(text: &str, id: &str) -> Option<String> {
    let mut clean: Option<String> = None;
    let (mut kept, mut at) = (0, 0);
    while at < text.len() {
        let Some((start, end)) = secret_at(text, at, id) else {
            at += 1;
            continue;
        };
        let clean = clean.get_or_insert_default();
        clean.push_str(&text[kept..start]);
        clean.push_str(REDACTED);
        (kept, at) = (end, end);
    }
    let mut clean = clean?;
    clean.push_str(&text[kept..]);
    Some(clean)
}

/// Where the secret is that is announced at `at`. Only ASCII announces and ends one, so both are between characters.
fn secret_at(text: &str, at: usize, id: &str) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    let after_word = at > 0 && bytes[at - 1].is_ascii_alphanumeric();
    let first = bytes[at];
    match first {
        b':' if bytes[at..].starts_with(b"://") => return password(text, at + 3),
        b'e' if !after_word && bytes[at..].starts_with(b"eyJ") => {
            let end = end_of(bytes, at, |byte| byte.is_ascii_alphanumeric() || b"-_.=".contains(&byte));
            let is_token = bytes[at..end].iter().filter(|byte| **byte == b'.').count() >= 2;
            return is_token.then_some((at, end));
        }
        _ => {}
    }
    if first.is_ascii_hexdigit() && !after_word {
        let end = end_of(bytes, at, |byte| byte.is_ascii_hexdigit());
        let is_whole = bytes.get(end).is_none_or(|byte| !byte.is_ascii_alphanumeric());
        if end - at == HEX_KEY && is_whole && text[at..end] != *id {
            return Some((at, end));
        }
    }
    if !matches!(first | 0x20, b'a' | b'b' | b'c' | b'p' | b's' | b't') {
        return None;
    }
    let starts = |word: &str| {
        bytes.len() - at >= word.len() && bytes[at..at + word.len()].eq_ignore_ascii_case(word.as_bytes())
    };
    if !after_word && let Some(scheme) = SCHEMES.iter().find(|scheme| starts(scheme)) {
        let start = at + scheme.len();
        let end = end_of(bytes, start, |byte| byte.is_ascii_alphanumeric() || b"-_.=+/~".contains(&byte));
        return (end - start >= SHORTEST_CREDENTIAL).then_some((start, end));
    }
    NAMES
        .iter()
        .filter(|(name, _)| starts(name))
        .find_map(|(name, until)| value(bytes, at + name.len(), *until))
}

/// The value after a name: `=…`, `: …`, `":"…"`, with or without spaces and quotes.
fn value(bytes: &[u8], after_name: usize, until: Until) -> Option<(usize, usize)> {
    let skip = |at: usize, of: &[u8]| end_of(bytes, at, |byte| of.contains(&byte));
    let separator = skip(after_name, b"\"'\\ ");
    if !matches!(bytes.get(separator), Some(b'=' | b':')) {
        return None;
    }
    let start = skip(separator + 1, b"\"'\\ ");
    let ends: &[u8] = match until {
        Until::Word => b"\"'\\ \t\r\n&;,)}]",
        Until::Line => b"\"'\\\r\n",
    };
    let end = end_of(bytes, start, |byte| !ends.contains(&byte));
    (end > start && &bytes[start..end] != REDACTED.as_bytes()).then_some((start, end))
}

/// Where the password of a URL's authority is.
fn password(text: &str, start: usize) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    let end = end_of(bytes, start, |byte| !byte.is_ascii_whitespace() && !b"\"'<>".contains(&byte));
    let at = start + text.get(start..end)?.find('@')?;
    let colon = start + text[start..at].find(':')?;
    (at > colon + 1).then_some((colon + 1, at))
}

fn end_of(bytes: &[u8], start: usize, goes_on: impl Fn(u8) -> bool) -> usize {
    bytes[start..].iter().position(|byte| !goes_on(*byte)).map_or(bytes.len(), |length| start + length)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::SystemTime};

    use host_core::telemetry::Level;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_looks_like_a_secret_is_taken_out_and_the_rest_stays() {
        for (text, clean) in [
            ("postgres://user:hunter2@host/db refused", "postgres://user:[redacted]@host/db refused"),
            ("POST https://listener/?token=abc&type=x", "POST https://listener/?token=[redacted]&type=x"),
            (r#"{"token":"abc","id":1}"#, r#"{"token":"[redacted]","id":1}"#),
            (r#"say {\"password\": \"abc\"} twice"#, r#"say {\"password\": \"[redacted]\"} twice"#),
            ("Authorization: Bearer abc.def, more", "Authorization: [redacted]"),
            ("header Bearer abcdefghij given", "header Bearer [redacted] given"),
            ("x-hasura-admin-secret: s3cr3t", "x-hasura-admin-secret: [redacted]"),
            ("Cookie: a=b; c=d", "Cookie: [redacted]"),
            ("jwt eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl.", "jwt [redacted]"),
            ("key 0123456789abcdef0123456789ABCDEF!", "key [redacted]!"),
            ("größe password=ü€ ok", "größe password=[redacted] ok"),
        ] {
            assert_eq!(scrubbed(text, "").as_deref(), Some(clean), "{text}");
        }
    }

    #[test]
    fn what_is_none_stays() {
        for text in [
            "the token's file cannot be read",
            "token_file: /run/token",
            "telemetry.logzio.token is not set; set it",
            "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "https://host:5000/image",
            "Basic set-up",
            "the secret of success",
            "0123456789abcdef",
            "",
        ] {
            assert_eq!(scrubbed(text, ""), None, "{text}");
        }
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(scrubbed(&format!("container app-{id}"), id), None, "a mandelbox's id is none");
    }

    #[test]
    fn fields_are_scrubbed_by_name_and_by_text_however_deep() {
        let fields = json!({"aes_key": "short", "error": {"url": ["a://u:p@h"], "Token": "x"}, "n": 1, "mandelbox": "m"});
        let mut record = Record {
            at: SystemTime::UNIX_EPOCH,
            level: Level::Error,
            target: "test",
            message: "password=abc".to_owned(),
            fields: fields.as_object().unwrap().clone(),
            instance: None,
            environment: Arc::from("test"),
        };
        scrub(&mut record);
        assert_eq!(record.message, "password=[redacted]");
        let clean = json!({
            "aes_key": REDACTED, "error": {"url": ["a://u:[redacted]@h"], "Token": REDACTED}, "n": 1, "mandelbox": "m"
        });
        assert_eq!(Value::Object(record.fields), clean);
    }

    proptest! {
        #[test]
        fn any_text_can_be_scrubbed_and_twice_is_as_once(
            parts in proptest::collection::vec(r"(token|password|cookie|Bearer |://|eyJ|[=:@ \x22'.]|[0-9a-f]{8}|\PC{0,4})", 0..12)
        ) {
            let text = parts.concat();
            let once = scrubbed(&text, "").unwrap_or_else(|| text.clone());
            prop_assert!(!once.contains("token=x") || text.contains("token=x"));
        }
    }
}
