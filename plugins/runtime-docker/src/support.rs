//! What the engine on this host can do, as it says itself when the plugin is built.

use std::collections::BTreeSet;

use bollard::models::SystemInfo;
use host_core::runtime::Feature;

/// What may be asked of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Support {
    pub(crate) memory: bool,
    pub(crate) pids: bool,
    pub(crate) cpu_shares: bool,
    pub(crate) cpu_quota: bool,
    pub(crate) apparmor: bool,
    /// The usual log driver writes files that can be bounded.
    pub(crate) log_files: bool,
    /// `linux/amd64`, where it is known how images call this host's processor.
    pub(crate) platform: Option<&'static str>,
    pub(crate) cdi: Cdi,
}

/// Which CDI devices the engine can inject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cdi {
    /// It does not know CDI, or it is switched off.
    Off,
    /// It does, and does not tell which devices it found (API below 1.50).
    Untold,
    /// Those that it found. It is switched on by default since Docker 28.2, often on hosts that describe none.
    Found(BTreeSet<String>),
}

impl Cdi {
    /// Whether all of `names` can be injected, as far as it is known.
    pub(crate) fn has(&self, names: &[String]) -> bool {
        match self {
            Self::Off => false,
            Self::Untold => true,
            Self::Found(found) => names.iter().all(|name| found.contains(name)),
        }
    }

    fn of(info: &SystemInfo) -> Self {
        if info.cdi_spec_dirs.as_deref().unwrap_or_default().is_empty() {
            return Self::Off;
        }
        match &info.discovered_devices {
            None => Self::Untold,
            Some(devices) => Self::Found(
                devices
                    .iter()
                    .filter(|device| device.source.as_deref() == Some("cdi"))
                    .filter_map(|device| device.id.clone())
                    .collect(),
            ),
        }
    }
}

impl Support {
    pub(crate) fn of(info: &SystemInfo) -> Self {
        let security = info.security_options.as_deref().unwrap_or_default();
        Self {
            memory: info.memory_limit.unwrap_or(false),
            pids: info.pids_limit.unwrap_or(false),
            cpu_shares: info.cpu_shares.unwrap_or(false),
            cpu_quota: info.cpu_cfs_quota.unwrap_or(false),
            apparmor: security.iter().any(|option| option == "name=apparmor"),
            log_files: matches!(info.logging_driver.as_deref(), Some("json-file" | "local")),
            platform: platform(info.architecture.as_deref().unwrap_or_default()),
            cdi: Cdi::of(info),
        }
    }

    pub(crate) fn features(&self) -> BTreeSet<Feature> {
        let limits = self.memory && self.pids && self.cpu_shares && self.cpu_quota;
        [
            Some(Feature::Isolation),
            Some(Feature::Pull),
            Some(Feature::LoadImage),
            limits.then_some(Feature::Limits),
            Some(Feature::OomReport),
            (self.cdi != Cdi::Off).then_some(Feature::Cdi),
            Some(Feature::DeviceRequests),
            self.apparmor.then_some(Feature::AppArmor),
            Some(Feature::HostNetwork),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// From the kernel's name to the images'.
fn platform(machine: &str) -> Option<&'static str> {
    match machine {
        "x86_64" => Some("linux/amd64"),
        "aarch64" => Some("linux/arm64"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn support(info: serde_json::Value) -> Support {
        Support::of(&serde_json::from_value(info).unwrap())
    }

    #[test]
    fn an_engine_without_cgroups_has_no_limits() {
        let all = json!({ "MemoryLimit": true, "PidsLimit": true, "CPUShares": true, "CpuCfsQuota": true });
        assert!(support(all.clone()).features().contains(&Feature::Limits));
        for missing in ["MemoryLimit", "PidsLimit", "CPUShares", "CpuCfsQuota"] {
            let mut info = all.clone();
            info[missing] = false.into();
            assert!(!support(info).features().contains(&Feature::Limits), "{missing}");
        }
    }

    #[test]
    fn apparmor_is_there_when_the_engine_says_so() {
        let with = json!({ "SecurityOptions": ["name=apparmor", "name=seccomp,profile=default"] });
        assert!(support(with).apparmor);
        assert!(!support(json!({ "SecurityOptions": ["name=seccomp,profile=default"] })).apparmor);
        assert!(!support(json!({ "SecurityOptions": null })).apparmor);
    }

    #[test]
    fn cdi_devices_are_those_that_the_engine_found() {
        let gpu = &["nvidia.com/gpu=0".to_owned()][..];
        assert!(!support(json!({})).cdi.has(gpu));
        assert!(!support(json!({ "CDISpecDirs": [] })).cdi.has(gpu));
        let dirs = json!(["/etc/cdi"]);
        assert!(support(json!({ "CDISpecDirs": dirs })).cdi.has(gpu));
        let none = json!({ "CDISpecDirs": dirs, "DiscoveredDevices": [] });
        assert!(!support(none).cdi.has(gpu));
        let one = json!({ "CDISpecDirs": dirs, "DiscoveredDevices": [{ "Source": "cdi", "ID": "nvidia.com/gpu=0" }] });
        assert!(support(one).cdi.has(gpu));
    }
}
