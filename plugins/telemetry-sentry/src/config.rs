//! `[telemetry.sentry]`.

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use secrecy::SecretString;
use serde::Deserialize;
use telemetry_http::section::{duration, path, secret};

/// The section's keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The project's DSN, `https://KEY@HOST/PROJECT`; `SENTRY_DSN` sets it, too.
    #[serde(deserialize_with = "secret")]
    pub dsn: Option<SecretString>,
    /// A file with the DSN.
    #[serde(deserialize_with = "path")]
    pub dsn_file: Option<PathBuf>,
    /// Certificate authorities (PEM) instead of this machine's.
    #[serde(deserialize_with = "path")]
    pub ca_file: Option<PathBuf>,
    /// How many of the last records an error takes along.
    pub breadcrumbs: u32,
    /// Errors that may wait to be sent; those beyond are dropped.
    pub events: NonZeroU32,
    /// Records of any level that may wait to be looked at; those beyond are dropped.
    pub queue: NonZeroU32,
    /// Deadline of each request.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        const EVENTS: NonZeroU32 = NonZeroU32::new(1024).unwrap();
        const QUEUE: NonZeroU32 = NonZeroU32::new(65_536).unwrap();
        Self {
            dsn: None,
            dsn_file: None,
            ca_file: None,
            breadcrumbs: 50,
            events: EVENTS,
            queue: QUEUE,
            timeout: Duration::from_secs(10),
        }
    }
}
