//! `[gpu.nvml]`

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, de};

/// The section's keys.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// NVIDIA's library: a name for the loader to find, or a path.
    pub library: PathBuf,
    /// Whether a host without a working GPU is refused. Without this: not in a local profile, and in every other.
    pub required: Option<bool>,
    /// How long the driver may be silent before it is taken to hang.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    /// How long it may take to begin: without its persistence daemon the driver wakes every GPU.
    #[serde(deserialize_with = "duration")]
    pub opening: Duration,
    /// How long after its last fault a GPU that works gets mandelboxes again.
    #[serde(deserialize_with = "duration")]
    pub recovery: Duration,
    /// XID errors that programs cause and a GPU survives.
    pub ignored_xids: BTreeSet<u64>,
    /// What of the driver a mandelbox gets, as `NVIDIA_DRIVER_CAPABILITIES` lists it.
    #[serde(deserialize_with = "capabilities")]
    pub driver_capabilities: Vec<String>,
    /// Directories of CDI device descriptions; in a later one a device replaces its namesake of an earlier one.
    pub cdi: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            library: "libnvidia-ml.so.1".into(),
            required: None,
            timeout: Duration::from_secs(1),
            opening: Duration::from_secs(30),
            recovery: Duration::from_secs(300),
            ignored_xids: OF_PROGRAMS.into(),
            driver_capabilities: vec!["all".to_owned()],
            cdi: cdi::DIRECTORIES.map(PathBuf::from).into(),
        }
    }
}

/// Those that NVIDIA's own device plugin for Kubernetes takes for a program's fault: graphics exception, page fault,
/// stopped channel, preemptive clean-up, video processor exception, context switch time-out.
const OF_PROGRAMS: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// What NVIDIA's container toolkit knows.
const CAPABILITIES: [&str; 8] =
    ["all", "compute", "compat32", "display", "graphics", "ngx", "utility", "video"];

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    match humantime::parse_duration(&text) {
        Ok(Duration::ZERO) => Err(de::Error::custom("must be longer than 0s")),
        Ok(time) => Ok(time),
        Err(error) => Err(de::Error::custom(format!("{text:?} is no time such as \"10s\": {error}"))),
    }
}

fn capabilities<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let capabilities = Vec::<String>::deserialize(deserializer)?;
    if capabilities.is_empty() {
        return Err(de::Error::custom(
            "without any, the driver's libraries are missing; write [\"utility\"] for the least",
        ));
    }
    match capabilities.iter().find(|capability| !CAPABILITIES.contains(&capability.as_str())) {
        Some(unknown) => {
            Err(de::Error::custom(format!("there is no {unknown:?}; there are {}", CAPABILITIES.join(", "))))
        }
        None => Ok(capabilities),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(section: serde_json::Value) -> Result<Config, String> {
        serde_json::from_value(section).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_section_is_the_default() {
        assert_eq!(parse(serde_json::json!({})), Ok(Config::default()));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (section, told) in [
            (serde_json::json!({ "driver_capabilities": ["grafics"] }), "there is no \"grafics\""),
            (serde_json::json!({ "driver_capabilities": [] }), "utility"),
            (serde_json::json!({ "timeout": "0s" }), "longer than 0s"),
            (serde_json::json!({ "recovery": "soon" }), "\"soon\" is no time"),
            (serde_json::json!({ "libary": "x" }), "unknown field"),
        ] {
            let error = parse(section).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }
}
