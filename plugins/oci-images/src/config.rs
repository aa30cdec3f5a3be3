//! The section `[runtime.oci.images]`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, de};

/// The section's keys.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How many bytes an image may have when it is unpacked, its layers together; 64 GiB if not said.
    pub unpacked_bytes_max: u64,
    /// How many files and directories an image may bring, its layers together; two million if not said.
    pub entries_max: u64,
    /// How long a registry may say nothing, from the connection to the last byte. The whole of a pull has the
    /// caller's deadline only.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    /// How registries are spoken to, by `host` or `host:port` as images' names have it; `docker.io` for Docker Hub.
    pub registries: BTreeMap<String, Registry>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            unpacked_bytes_max: 64 << 30,
            entries_max: 2_000_000,
            timeout: Duration::from_secs(30),
            registries: BTreeMap::new(),
        }
    }
}

/// A registry that needs something of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Who pulls; if not said, whom `~/.docker/config.json` names, or else nobody in particular.
    pub username: Option<String>,
    /// A file with the password, a newline at its end left out; read for each pull.
    pub password_file: Option<PathBuf>,
    /// Certificates, as PEM, of those who may vouch for the registry, and nobody else; the system's if not said.
    pub ca_file: Option<PathBuf>,
    /// Speaks HTTP without TLS. Never if not said, not even to loopback.
    pub plain_http: bool,
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    match humantime::parse_duration(&text) {
        Ok(Duration::ZERO) => Err(de::Error::custom("a time-out of 0 would never be kept")),
        parsed => parsed.map_err(de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_is_read() {
        let section = serde_json::json!({
            "timeout": "5s",
            "registries": { "r.io:5000": { "username": "me", "password_file": "/p", "plain_http": true } },
        });
        let config: Config = serde_json::from_value(section).unwrap();
        assert_eq!(config.timeout, Duration::from_secs(5));
        assert_eq!(config.entries_max, 2_000_000);
        assert!(config.registries["r.io:5000"].plain_http);
        assert!(!Registry::default().plain_http);
    }

    #[test]
    fn what_nobody_knows_is_refused() {
        for bad in [
            serde_json::json!({ "registry": {} }),
            serde_json::json!({ "timeout": "0s" }),
            serde_json::json!({ "registries": { "r.io": { "password": "x" } } }),
        ] {
            assert!(serde_json::from_value::<Config>(bad.clone()).is_err(), "{bad} was accepted");
        }
    }
}
