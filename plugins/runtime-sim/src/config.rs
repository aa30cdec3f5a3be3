//! The section `[runtime.sim]`.

use std::{collections::BTreeMap, time::Duration};

use host_core::ImageRef;
use serde::{Deserialize, Deserializer, de};

use crate::faults::Op;

/// The section's keys.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A started container behaves like an application that follows the in-container contract.
    pub application: bool,
    /// The images that are present; without this key every image is.
    pub images: Option<Vec<ImageRef>>,
    /// How long each call of an operation takes; at once without.
    #[serde(deserialize_with = "delays")]
    pub delays: BTreeMap<Op, Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self { application: true, images: None, delays: BTreeMap::new() }
    }
}

fn delays<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<Op, Duration>, D::Error> {
    let texts = BTreeMap::<Op, String>::deserialize(deserializer)?;
    let delay = |(op, text): (Op, String)| match humantime::parse_duration(&text) {
        Ok(delay) => Ok((op, delay)),
        Err(_) => Err(de::Error::custom(format_args!("{text:?} is no duration; write for example \"80ms\""))),
    };
    texts.into_iter().map(delay).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_section_is_read() {
        let read = serde_json::from_value::<Config>;
        assert_eq!(read(json!({})).unwrap(), Config::default());
        let config = read(json!({ "images": ["a/b:c"], "delays": { "tag_image": "80ms" } })).unwrap();
        assert_eq!(config.images.unwrap().len(), 1);
        assert_eq!(config.delays, BTreeMap::from([(Op::TagImage, Duration::from_millis(80))]));
        for (bad, hint) in [
            (json!({ "delays": { "strat": "1s" } }), "`start`"),
            (json!({ "delays": { "start": "soon" } }), "80ms"),
            (json!({ "aplication": true }), "`application`"),
        ] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
