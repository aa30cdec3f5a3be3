//! The section `[runtime.podman]`.

use std::{path::PathBuf, time::Duration};

use engine_http::{Endpoint, duration};
use serde::Deserialize;

/// The rootful service's; a user's is `/run/user/UID/podman/podman.sock`.
const DEFAULT_SOCKET: &str = "/run/podman/podman.sock";

/// The section's keys.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the service listens: `unix:///path`, `tcp://host:port` or `http://host:port`.
    pub endpoint: Endpoint,
    /// How long a look-up (ping, inspect, list, …) may take. What changes containers or moves images has the
    /// caller's deadline only.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    /// Where the engine finds CDI device descriptions; a device that none describes is refused before it is asked.
    pub cdi: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoint: Endpoint::Unix(DEFAULT_SOCKET.into()),
            timeout: Duration::from_secs(30),
            cdi: cdi::DIRECTORIES.map(PathBuf::from).into(),
        }
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
        let rootless = json!({ "endpoint": "unix:///run/user/1000/podman/podman.sock" });
        let socket = Endpoint::Unix("/run/user/1000/podman/podman.sock".into());
        assert_eq!(read(rootless).unwrap().endpoint, socket);
        for (section, hint) in [
            (json!({ "timeout": "soon" }), "\"30s\""),
            (json!({ "endpoint": "podman" }), "unix:///"),
            (json!({ "socket": "x" }), "`endpoint`"),
        ] {
            let error = read(section).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
