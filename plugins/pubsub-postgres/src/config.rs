//! `[pubsub.postgres]`.

use std::time::Duration;

use control_plane::section::duration;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, de};

use crate::target::Target;

/// A lost change costs at most this.
const LONGEST_POLL: Duration = Duration::from_secs(30);
/// Notifications tell of changes sooner than any clock.
const SHORTEST_POLL: Duration = Duration::from_secs(1);
/// Without them, a fleet of hundreds must not keep its database busy with nothing else.
const SHORTEST_POLL_WITHOUT: Duration = Duration::from_millis(500);

/// The section's keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `postgres://user:password@host:5432/database?sslmode=verify-full`. Left out in a local profile: the local
    /// development database.
    #[serde(deserialize_with = "url")]
    pub url: Option<SecretString>,
    /// How often the full state is read though nothing was heard; 1 s to 30 s.
    #[serde(deserialize_with = "poll")]
    pub poll: Duration,
    /// The same while notifications do not come through, behind a transaction-pooling proxy for example; 500 ms to 30 s.
    #[serde(deserialize_with = "poll_without_notifications")]
    pub poll_without_notifications: Duration,
    /// Deadline of each operation. Shorter than `pubsub.timeout`, so that a status that cannot be written is queued
    /// before the host gives up.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    /// Connections for statements, opened as needed; one more listens.
    pub connections: usize,
    /// `db migrate` also makes the role `cloud_host` and turns row security on.
    pub row_security: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: None,
            poll: LONGEST_POLL,
            poll_without_notifications: Duration::from_secs(2),
            timeout: Duration::from_secs(3),
            connections: 4,
            row_security: false,
        }
    }
}

impl Config {
    /// The defaults with this URL.
    ///
    /// # Errors
    /// It is not one, with an example; the message holds nothing of it.
    pub fn with_url(url: impl Into<SecretString>) -> Result<Self, String> {
        let url = url.into();
        Target::parse(&url)?;
        Ok(Self { url: Some(url), ..Self::default() })
    }
}

/// Checked here, so that a wrong one is refused with its place in the configuration.
fn url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    let url = Option::<SecretString>::deserialize(deserializer)?;
    let url = url.filter(|url| !url.expose_secret().is_empty());
    if let Some(url) = &url {
        Target::parse(url).map_err(de::Error::custom)?;
    }
    Ok(url)
}

fn poll<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    within(SHORTEST_POLL, duration(deserializer)?).map_err(de::Error::custom)
}

fn poll_without_notifications<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    within(SHORTEST_POLL_WITHOUT, duration(deserializer)?).map_err(de::Error::custom)
}

fn within(shortest: Duration, poll: Duration) -> Result<Duration, String> {
    match poll {
        poll if poll > LONGEST_POLL => {
            Err("at most \"30s\": a notification may be lost without a sign".to_owned())
        }
        poll if poll < shortest => Err(format!("at least \"{shortest:?}\": a fleet shares its database")),
        poll => Ok(poll),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_wrong_value_is_refused_with_an_example() {
        let read = serde_json::from_value::<Config>;
        let config = read(json!({ "url": "postgres://h/d", "poll": "5s" })).unwrap();
        assert_eq!((config.poll, config.connections), (Duration::from_secs(5), 4));
        assert!(read(json!({ "url": "" })).unwrap().url.is_none());
        for (section, hint) in [
            (json!({ "poll": "0s" }), "\"30s\""),
            (json!({ "poll": "999ms" }), "at least \"1s\""),
            (json!({ "poll": "31s" }), "at most"),
            (json!({ "poll_without_notifications": "499ms" }), "at least \"500ms\""),
            (json!({ "poll_without_notifications": "1m" }), "at most"),
            (json!({ "url": "mysql://h/d" }), "postgres://"),
            (json!({ "ulr": "postgres://h/d" }), "`url`"),
        ] {
            let error = read(section).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }

    #[test]
    fn the_password_is_never_shown() {
        let shown = format!("{:?}", Config::with_url("postgres://u:hunter2@h/d").unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
