//! What the engine on this host can do, as it says itself when the plugin is built.

use std::collections::BTreeSet;

use host_core::runtime::Feature;
use podman_api::models::Info;

/// What may be asked of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Support {
    /// Control group controllers that it can use; without a delegation a user's engine has none.
    controllers: BTreeSet<String>,
    /// Podman 5 or later.
    recent: bool,
    pub(crate) apparmor: bool,
    pub(crate) rootless: bool,
    /// The usual log driver, if it writes files that can be bounded.
    pub(crate) log_files: Option<String>,
    /// Where events are kept; `none` keeps none.
    pub(crate) events: String,
    /// `amd64`, as images have it.
    pub(crate) architecture: String,
    /// `crun`, `runc`.
    pub(crate) oci_runtime: String,
}

impl Support {
    pub(crate) fn of(info: &Info) -> Self {
        let Some(host) = &info.host else {
            return Self::default();
        };
        let security = host.security.as_ref();
        let is_file = |driver: &String| matches!(driver.as_str(), "k8s-file" | "json-file");
        Self {
            controllers: host.cgroup_controllers.clone().unwrap_or_default().into_iter().collect(),
            recent: major(info).is_some_and(|major| major >= 5),
            apparmor: security.and_then(|security| security.apparmor_enabled).unwrap_or(false),
            rootless: security.and_then(|security| security.rootless).unwrap_or(false),
            log_files: host.log_driver.clone().filter(is_file),
            events: host.event_logger.clone().unwrap_or_default(),
            architecture: host.arch.clone().unwrap_or_default(),
            oci_runtime: host.oci_runtime.as_ref().and_then(|it| it.name.clone()).unwrap_or_default(),
        }
    }

    /// Whether there is a control group controller: `memory`, `cpu`, `pids`.
    pub(crate) fn has(&self, controller: &str) -> bool {
        self.controllers.contains(controller)
    }

    pub(crate) fn limits(&self) -> bool {
        ["memory", "cpu", "pids"].iter().all(|controller| self.has(controller))
    }

    /// Whether an out-of-memory kill is told. Until Podman 5 the container's monitor marked it where the engine does not
    /// look (containers/podman#21523).
    pub(crate) fn tells_oom(&self) -> bool {
        self.recent && self.has("memory")
    }

    pub(crate) fn features(&self) -> BTreeSet<Feature> {
        [
            Some(Feature::Isolation),
            Some(Feature::Pull),
            Some(Feature::LoadImage),
            self.limits().then_some(Feature::Limits),
            self.tells_oom().then_some(Feature::OomReport),
            Some(Feature::Cdi),
            self.apparmor.then_some(Feature::AppArmor),
            Some(Feature::HostNetwork),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn major(info: &Info) -> Option<u32> {
    info.version.as_ref()?.version.as_ref()?.split('.').next()?.parse().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn support(host: Value) -> Support {
        Support::of(&serde_json::from_value(json!({ "host": host })).unwrap())
    }

    pub(crate) fn everything() -> Support {
        support(json!({
            "cgroupControllers": ["cpu", "memory", "pids"],
            "logDriver": "k8s-file",
            "eventLogger": "file",
            "ociRuntime": { "name": "crun" },
            "security": { "apparmorEnabled": true, "rootless": false },
        }))
    }

    #[test]
    fn an_engine_without_a_controller_has_no_limits() {
        assert!(everything().features().contains(&Feature::Limits));
        for controllers in [json!(["cpu", "memory"]), json!(["memory", "pids"]), json!([]), json!(null)] {
            let support = support(json!({ "cgroupControllers": controllers }));
            assert!(!support.features().contains(&Feature::Limits), "{controllers}");
        }
    }

    #[test]
    fn only_podman_5_tells_of_memory() {
        let of = |version| {
            let info =
                json!({ "host": { "cgroupControllers": ["memory"] }, "version": { "Version": version } });
            Support::of(&serde_json::from_value(info).unwrap())
        };
        for (version, tells) in [("4.3.1", false), ("4.9.4-dev", false), ("5.4.2", true), ("10.0.0", true)] {
            assert_eq!(of(version).features().contains(&Feature::OomReport), tells, "{version}");
        }
        assert!(!everything().tells_oom(), "it does not say which it is");
    }

    #[test]
    fn only_files_are_bounded() {
        assert_eq!(support(json!({ "logDriver": "journald" })).log_files, None);
        assert_eq!(support(json!({})), Support::default());
    }
}
