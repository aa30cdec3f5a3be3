//! What the engine on this host can do, as it says itself when the plugin is built.

use std::collections::BTreeSet;

use host_core::runtime::Feature;
use podman_api::models::Info;

/// What may be asked of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Support {
    /// Control group controllers that it can use; without a delegation a user's engine has none.
    controllers: BTreeSet<String>,
    /// Control groups of version 2, where an out-of-memory kill is told.
    pub(crate) unified: bool,
    pub(crate) apparmor: bool,
    pub(crate) rootless: bool,
    /// The usual log driver, if it writes files that can be bounded.
    pub(crate) log_files: Option<String>,
    /// Where events are kept; `none` keeps none.
    pub(crate) events: String,
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
            unified: host.cgroup_version.as_deref() == Some("v2"),
            apparmor: security.and_then(|security| security.apparmor_enabled).unwrap_or(false),
            rootless: security.and_then(|security| security.rootless).unwrap_or(false),
            log_files: host.log_driver.clone().filter(is_file),
            events: host.event_logger.clone().unwrap_or_default(),
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

    /// Whether an out-of-memory kill is told. With control groups of version 1 the container's monitor hears of it and of
    /// the end at once, and mostly forgets the first.
    pub(crate) fn tells_oom(&self) -> bool {
        self.unified && self.has("memory")
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
            "cgroupVersion": "v2",
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
    fn only_control_groups_of_version_2_tell_of_memory() {
        let host = |version| support(json!({ "cgroupVersion": version, "cgroupControllers": ["memory"] }));
        assert!(host("v2").features().contains(&Feature::OomReport));
        assert!(!host("v1").features().contains(&Feature::OomReport));
    }

    #[test]
    fn only_files_are_bounded() {
        assert_eq!(support(json!({ "logDriver": "journald" })).log_files, None);
        assert_eq!(support(json!({})), Support::default());
    }
}
