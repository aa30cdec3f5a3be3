//! `[telemetry.logzio]`.

use std::{
    num::{NonZeroU32, NonZeroU64},
    path::PathBuf,
    time::Duration,
};

use reqwest::Url;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer, de};
use telemetry_http::section::{duration, path, secret};

/// What the listener takes at once.
const LARGEST_BATCH_BYTES: u32 = 10_485_760;
/// A single line may have half a million.
const SMALLEST_BATCH_BYTES: u32 = 1 << 20;
/// Less holds no burst.
const SMALLEST_SPOOL_BYTES: u64 = 4 << 20;

/// The section's keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The listener; other regions have others: `https://listener-eu.logz.io:8071`.
    #[serde(deserialize_with = "url")]
    pub url: Url,
    /// The account's shipping token; `LOGZIO_SHIPPING_TOKEN` sets it, too.
    #[serde(deserialize_with = "secret")]
    pub token: Option<SecretString>,
    /// A file with the token.
    #[serde(deserialize_with = "path")]
    pub token_file: Option<PathBuf>,
    /// Certificate authorities (PEM) instead of this machine's.
    #[serde(deserialize_with = "path")]
    pub ca_file: Option<PathBuf>,
    /// The directory of the spool, this service's alone, on a disk that outlives a reboot.
    pub spool: PathBuf,
    /// What the spool may grow to; records beyond are dropped.
    #[serde(deserialize_with = "spool_bytes")]
    pub spool_bytes: NonZeroU64,
    /// Records that may wait to be spooled; those beyond are dropped.
    pub queue: NonZeroU32,
    /// Sent at once, before compression.
    #[serde(deserialize_with = "batch_bytes")]
    pub batch_bytes: u32,
    /// How long records wait for others to be sent with.
    #[serde(deserialize_with = "duration")]
    pub linger: Duration,
    /// Deadline of each request.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        const QUEUE: NonZeroU32 = NonZeroU32::new(65_536).unwrap();
        const SPOOL_BYTES: NonZeroU64 = NonZeroU64::new(256 << 20).unwrap();
        #[allow(clippy::unwrap_used, reason = "a constant, which every test parses")]
        let url = Url::parse("https://listener.logz.io:8071/").unwrap();
        Self {
            url,
            token: None,
            token_file: None,
            ca_file: None,
            spool: "/var/spool/host-service/logzio".into(),
            spool_bytes: SPOOL_BYTES,
            queue: QUEUE,
            batch_bytes: 4 << 20,
            linger: Duration::from_secs(1),
            timeout: Duration::from_secs(30),
        }
    }
}

fn url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    let text = String::deserialize(deserializer)?;
    let url = Url::parse(&text)
        .map_err(|_| de::Error::custom("no URL; write for example \"https://listener.logz.io:8071\""))?;
    if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.host().is_none() {
        return Err(de::Error::custom(
            "an http or https URL without a query; the token has a key of its own",
        ));
    }
    Ok(url)
}

fn spool_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NonZeroU64, D::Error> {
    let bytes = NonZeroU64::deserialize(deserializer)?;
    if bytes.get() < SMALLEST_SPOOL_BYTES {
        return Err(de::Error::custom(format_args!("at least {SMALLEST_SPOOL_BYTES}")));
    }
    Ok(bytes)
}

fn batch_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let bytes = u32::deserialize(deserializer)?;
    if !(SMALLEST_BATCH_BYTES..=LARGEST_BATCH_BYTES).contains(&bytes) {
        return Err(de::Error::custom(format_args!("from {SMALLEST_BATCH_BYTES} to {LARGEST_BATCH_BYTES}")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_defaults_are_what_an_empty_section_gives() {
        let config: Config = serde_json::from_value(json!({})).unwrap();
        assert_eq!(config.url.as_str(), "https://listener.logz.io:8071/");
        assert_eq!(config.spool_bytes.get(), 256 << 20);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for wrong in [
            json!({"url": "ftp://listener"}),
            json!({"url": "https://listener/?token=secret"}),
            json!({"batch_bytes": 100}),
            json!({"batch_bytes": 20_000_000}),
            json!({"spool_bytes": 1}),
            json!({"linger": "0s"}),
            json!({"tokn": "x"}),
        ] {
            assert!(serde_json::from_value::<Config>(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_token_is_not_shown() {
        let config: Config = serde_json::from_value(json!({"token": "hunter2"})).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
