//! The section `[runtime.docker]`.

use std::time::Duration;

use engine_http::{Endpoint, duration};
use serde::Deserialize;

const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// The section's keys.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the engine listens: `unix:///path`, `tcp://host:port` or `http://host:port`.
    pub endpoint: Endpoint,
    /// How long a look-up (ping, inspect, list, …) may take. What changes containers or moves images has the
    /// caller's deadline only.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { endpoint: Endpoint::Unix(DEFAULT_SOCKET.into()), timeout: Duration::from_secs(30) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_wrong_value_is_refused_with_an_example() {
        let read = serde_json::from_value::<Config>;
        assert_eq!(read(json!({})).unwrap(), Config::default());
        assert_eq!(read(json!({ "timeout": "5s" })).unwrap().timeout, Duration::from_secs(5));
        for (section, hint) in [
            (json!({ "timeout": "soon" }), "\"30s\""),
            (json!({ "timeout": "0s" }), "\"30s\""),
            (json!({ "endpoint": "docker" }), "unix:///"),
            (json!({ "endpiont": "x" }), "`endpoint`"),
        ] {
            let error = read(section).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
