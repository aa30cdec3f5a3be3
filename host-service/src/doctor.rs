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

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The service runs, with less than it could have.
    Warn,
    /// The service cannot run, or mandelboxes cannot.
    Fail,
}

impl Check {
    fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), verdict: Verdict::Ok, found: found.into(), remedy: None }
    }

    fn warn(name: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, remedy: Some(remedy.into()), ..Self::ok(name, found) }
    }

    fn fail(name: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, ..Self::warn(name, found, remedy) }
    }
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
    checks.extend(security::checks(&machine, settings));
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
