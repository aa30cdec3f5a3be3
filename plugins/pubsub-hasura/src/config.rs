//! `[pubsub.hasura]`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use control_plane::section::duration;
use http::{HeaderName, HeaderValue};
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, de};

/// A lost change costs at most this.
const LONGEST_POLL: Duration = Duration::from_secs(30);
/// Hasura itself asks its database no more often, for all hosts together.
const SHORTEST_POLL: Duration = Duration::from_secs(1);

/// The section's keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `https://hasura.example/v1/graphql`; the websocket is at the same place. Left out in a local profile: the local
    /// development server.
    #[serde(deserialize_with = "url")]
    pub url: Option<Url>,
    /// `HASURA_GRAPHQL_ADMIN_SECRET` of the server. A fleet is better given tokens: this one may do anything.
    #[serde(deserialize_with = "secret")]
    pub admin_secret: Option<SecretString>,
    /// A JWT for this host.
    #[serde(deserialize_with = "secret")]
    pub token: Option<SecretString>,
    /// A file with the JWT, read anew for each connection and request, so that it may be replaced while in use.
    #[serde(deserialize_with = "path")]
    pub token_file: Option<PathBuf>,
    /// `x-hasura-role`: which of its roles this host acts as.
    pub role: String,
    /// More headers, for example `x-hasura-instance-name` or what a proxy in between wants.
    #[serde(deserialize_with = "headers")]
    pub headers: BTreeMap<String, SecretString>,
    /// What is spoken over the websocket.
    pub protocol: Protocol,
    /// Certificate authorities (PEM) instead of this machine's.
    #[serde(deserialize_with = "path")]
    pub ca_file: Option<PathBuf>,
    /// How often everything is read though nothing was heard; 1 s to 30 s.
    #[serde(deserialize_with = "poll")]
    pub poll: Duration,
    /// How long a live query may not show what a read has, before it is made anew: several times as long as the server
    /// takes (`HASURA_GRAPHQL_LIVE_QUERIES_MULTIPLEXED_REFETCH_INTERVAL`, 1 s), since each time costs a reconnect.
    #[serde(deserialize_with = "duration")]
    pub lag: Duration,
    /// Deadline of each operation. Shorter than `pubsub.timeout`, so that a status that cannot be written is queued
    /// before the host gives up.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
}

/// What is spoken over the websocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum Protocol {
    /// The newer one, or the legacy one where the server has no other.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// `graphql-transport-ws`.
    #[serde(rename = "graphql-transport-ws")]
    Transport,
    /// `graphql-ws`, as Hasura before 2.0 has it.
    #[serde(rename = "graphql-ws")]
    Legacy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: None,
            admin_secret: None,
            token: None,
            token_file: None,
            role: String::new(),
            headers: BTreeMap::new(),
            protocol: Protocol::Auto,
            ca_file: None,
            poll: LONGEST_POLL,
            lag: Duration::from_secs(10),
            timeout: Duration::from_secs(3),
        }
    }
}

/// Nothing of its text is in an error: any part may be a password gone astray.
fn url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Url>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    let url = Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let url = url.filter(Url::has_host).ok_or_else(|| {
        de::Error::custom("it is no URL of Hasura; write for example https://hasura.example/v1/graphql")
    })?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(de::Error::custom(
            "it holds credentials; they belong into admin_secret, token, token_file or headers",
        ));
    }
    Ok(Some(url))
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    let secret = SecretString::deserialize(deserializer)?;
    if HeaderValue::from_str(secret.expose_secret()).is_err() {
        return Err(de::Error::custom("it holds characters that cannot stand in a header"));
    }
    Ok(Some(secret).filter(|secret| !secret.expose_secret().is_empty()))
}

fn headers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, SecretString>, D::Error> {
    let headers = BTreeMap::<String, SecretString>::deserialize(deserializer)?;
    for (name, value) in &headers {
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err(de::Error::custom(format_args!("{name:?} is no name of a header")));
        }
        if HeaderValue::from_str(value.expose_secret()).is_err() {
            return Err(de::Error::custom(format_args!("the value of {name} cannot stand in a header")));
        }
    }
    Ok(headers)
}

fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    Ok(Some(path).filter(|path| !path.as_os_str().is_empty()))
}

fn poll<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let poll = duration(deserializer)?;
    if poll > LONGEST_POLL {
        return Err(de::Error::custom("at most \"30s\": a subscription may fall silent without a sign"));
    }
    if poll < SHORTEST_POLL {
        return Err(de::Error::custom("at least \"1s\": subscriptions show changes as soon as that"));
    }
    Ok(poll)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(section: Value) -> Result<Config, String> {
        serde_json::from_value(section).map_err(|error| error.to_string())
    }

    #[test]
    fn a_wrong_value_is_refused_with_a_hint() {
        let config =
            read(json!({ "url": "http://localhost:8080/v1/graphql", "protocol": "graphql-ws" })).unwrap();
        assert_eq!((config.protocol, config.poll), (Protocol::Legacy, LONGEST_POLL));
        assert!(
            read(json!({ "url": "", "token_file": "", "admin_secret": "" })).unwrap().token_file.is_none()
        );
        for (section, hint) in [
            (json!({ "poll": "1m" }), "at most"),
            (json!({ "poll": "0s" }), "\"30s\""),
            (json!({ "poll": "999ms" }), "at least"),
            (json!({ "lag": "0s" }), "\"30s\""),
            (json!({ "url": "ws://h/v1/graphql" }), "https://hasura.example"),
            (json!({ "url": "https://u:hunter2@h/v1/graphql" }), "admin_secret"),
            (json!({ "admin_secret": "hunter2\n" }), "characters"),
            (json!({ "headers": { "a b": "hunter2" } }), "a b"),
            (json!({ "headers": { "ok": "hunter2\n" } }), "ok"),
            (json!({ "protocol": "mqtt" }), "graphql-transport-ws"),
            (json!({ "ulr": "" }), "`url`"),
        ] {
            let error = read(section).unwrap_err();
            assert!(error.contains(hint) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn secrets_are_never_shown() {
        let section = json!({ "admin_secret": "hunter2", "token": "hunter2", "headers": { "x": "hunter2" } });
        let shown = format!("{:?}", read(section).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
