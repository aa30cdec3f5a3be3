//! What this host has and lacks for the chosen configuration. Only looks: nothing is created, changed or started.
//!
//! Checks of the machine read an injected root instead of `/`, so that tests can show them any host.

use std::path::Path;

use host_config::Loaded;
use host_core::registry::Registry;
use serde::Serialize;

use crate::client::Client;

mod engine;
mod files;
mod machine;
mod network;
mod security;

pub use host_core::check::{Check, Verdict};
pub use machine::Machine;

/// Everything found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// For which profile.
    pub profile: String,
    /// The worst of all checks.
    pub verdict: Verdict,
    /// In the order of a start: first what everything else needs.
    pub checks: Vec<Check>,
}

/// Looks at everything.
pub async fn examine(loaded: &Loaded, registry: &Registry) -> Report {
    let machine = Machine::this();
    let settings = &loaded.settings;
    let service = Client::new(&settings.admin.socket).status().await.ok();
    let mut checks = machine::checks(&machine, settings);
    checks.extend(engine::checks(loaded, registry, &machine, service.as_ref()).await);
    checks.extend(files::checks(&machine, settings));
    checks.extend(network::checks(&machine, settings, service.is_some()));
    checks.extend(security::checks(&machine, settings).await);
    Report {
        profile: loaded.profile.name().to_owned(),
        verdict: checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok),
        checks,
    }
}

/// The directory itself, or the nearest above it that exists.
fn nearest_existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}
