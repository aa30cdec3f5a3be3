//! Times in a plugin's section.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// `"30s"`; not zero. For `#[serde(deserialize_with = …)]`.
///
/// # Errors
/// It is no time, with an example.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    match humantime::parse_duration(&text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(de::Error::custom(format_args!(
            "{text:?} is no time to wait; write for example \"30s\" or \"500ms\""
        ))),
    }
}
