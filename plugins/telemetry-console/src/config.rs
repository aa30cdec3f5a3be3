//! `[telemetry.console]`.

use std::num::NonZeroU32;

use serde::Deserialize;

/// The section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How records look.
    pub format: Format,
    /// How many records may wait to be written; those beyond are dropped.
    pub queue: NonZeroU32,
}

impl Default for Config {
    fn default() -> Self {
        const QUEUE: NonZeroU32 = NonZeroU32::new(8192).unwrap();
        Self { format: Format::default(), queue: QUEUE }
    }
}

/// How records look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Pretty on a terminal, JSON lines otherwise.
    #[default]
    Auto,
    /// For people.
    Pretty,
    /// For machines.
    Json,
}
