//! `[pubsub.memory]`.

use std::path::PathBuf;

use serde::Deserialize;

/// The section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where mandelboxes' rows are kept over a restart; relative to the service's state directory. Nowhere when
    /// left out.
    pub file: Option<PathBuf>,
}
