//! What must not be shown: values under names that sound secret, and passwords within any text.

use figment::value::{Dict, Value};

use crate::{key::Key, tree};

/// Shown instead of a secret.
pub(crate) const MASK: &str = "********";

const SECRETIVE: &[&str] = &[
    "password",
    "passwd",
    "secret",
    "token",
    "key",
    "dsn",
    "credential",
    "authorization",
    "cookie",
    "headers",
];

/// A name with one of these endings says where a secret lies, not the secret.
const HARMLESS: &[&str] = &["_file", "_path", "_dir", "_name"];

/// Whether a value under this name is a secret.
pub(crate) fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    SECRETIVE.iter().any(|word| name.contains(word)) && !HARMLESS.iter().any(|end| name.ends_with(end))
}

/// Whether the value of `key` is a secret. Any part of the key can say so, but not a plugin's name.
pub(crate) fn hides(key: &Key) -> bool {
    let parts: Vec<&str> = key.0.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["http", "key"] | ["mandelbox", "env", ..] => false,
        [kind, _, own @ ..] if tree::KINDS.contains(kind) && !own.is_empty() => {
            own.iter().any(|part| is_secret(part))
        }
        all => all.iter().any(|part| is_secret(part)),
    }
}

/// `value` of `key` without its secrets.
pub(crate) fn value(key: &Key, value: &Value) -> Value {
    match value {
        Value::Dict(tag, dict) => {
            let masked =
                |(name, inner): (&String, &Value)| (name.clone(), self::value(&key.child(name), inner));
            Value::Dict(*tag, dict.iter().map(masked).collect::<Dict>())
        }
        Value::Array(tag, items) => {
            Value::Array(*tag, items.iter().map(|inner| self::value(key, inner)).collect())
        }
        Value::String(tag, inner) if hides(key) && !inner.is_empty() => Value::String(*tag, MASK.to_owned()),
        Value::Num(tag, _) if hides(key) => Value::String(*tag, MASK.to_owned()),
        Value::String(tag, inner) => Value::String(*tag, text(inner)),
        other => other.clone(),
    }
}

/// A text without the passwords of URLs (`scheme://user:password@host`) and parameters (`password=…`).
pub(crate) fn text(text: &str) -> String {
    parameters(&urls(text))
}

fn urls(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        shown.push_str(before);
        rest = after;
        if let Some((start, end)) = password_in(after) {
            shown.push_str(&after[..start]);
            shown.push_str(MASK);
            rest = &after[end..];
        }
    }
    shown + rest
}

/// Where the password is in what follows `://`. One that holds an unescaped `/` makes no valid URL, but is a
/// password all the same; a port is none.
fn password_in(url: &str) -> Option<(usize, usize)> {
    let end = |ends: fn(char) -> bool| url.find(ends).unwrap_or(url.len());
    let authority = &url[..end(|c| c.is_whitespace() || "/?#\"'".contains(c))];
    let word = &url[..end(|c| c.is_whitespace() || "\"'".contains(c))];
    let colon = authority.find(':')?;
    let port = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let at = match authority.rfind('@') {
        Some(at) => at,
        None if port(&authority[colon + 1..]) => return None,
        None => word.rfind('@')?,
    };
    (at > colon + 1).then_some((colon + 1, at))
}

fn parameters(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.to_ascii_lowercase().find("password=") {
        let (before, after) = rest.split_at(at + "password=".len());
        let end = after.find(|c: char| c.is_whitespace() || "&;\"".contains(c)).unwrap_or(after.len());
        shown.push_str(before);
        shown.push_str(if end == 0 { "" } else { MASK });
        rest = &after[end..];
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(key: &str) -> bool {
        hides(&Key::parse(key).unwrap())
    }

    #[test]
    fn names_that_sound_secret_hide_their_values() {
        for key in [
            "pubsub.hasura.admin_secret",
            "telemetry.logzio.token",
            "telemetry.sentry.dsn",
            "pubsub.postgres.PASSWORD",
            "pubsub.hasura.headers.authorization",
            "pubsub.hasura.headers.x-proxy",
            "pubsub.x.secrets.first",
            "mandelbox.environment.API_KEY",
            "pubsub.password",
            "auth.tokens.first",
        ] {
            assert!(hidden(key), "{key} was shown");
        }
        for key in [
            "http.key",
            "auth.jwks_file",
            "mandelbox.env.aes_key",
            "pubsub.postgres.url",
            "telemetry.token_plugin.level",
            "telemetry.sentry.token_file",
            "runtime.plugin",
        ] {
            assert!(!hidden(key), "{key} was hidden");
        }
    }

    #[test]
    fn passwords_in_texts_are_masked_wherever_they_are() {
        for (text, shown) in [
            ("postgres://user:pass@host/db", "postgres://user:********@host/db"),
            ("a://u:p@h b://u:p@h", "a://u:********@h b://u:********@h"),
            ("a://u:p/s@h/db", "a://u:********@h/db"),
            ("a://u:p@ss@h/db", "a://u:********@h/db"),
            ("host=h password=abc user=u", "host=h password=******** user=u"),
            ("a://h/db?sslPassword=abc&x=1", "a://h/db?sslPassword=********&x=1"),
        ] {
            assert_eq!(self::text(text), shown);
        }
    }

    #[test]
    fn texts_without_passwords_stay_as_they_are() {
        for text in [
            "unix:///var/run/docker.sock",
            "http://localhost:8080/v1/graphql",
            "https://host:5000/image@sha256:abc",
            "https://user@host/",
            "a://u:@h",
            "plain",
            "",
        ] {
            assert_eq!(self::text(text), text);
        }
    }
}
