//! What this host has and lacks for containers without a daemon.

use std::fs::{self, File};

use host_core::{chain, check::Check};

use crate::{bundle::AppArmor, cgroup::Layout, config::Config, key, launch, place::Root};

const CONTROL_GROUPS: &str = "control groups";

pub(crate) async fn examine(config: &Config, root: &Root) -> Vec<Check> {
    let mut checks = vec![control_groups(), overlay()];
    checks.extend(apparmor(&launch::apparmor()));
    checks.extend(network(config).await);
    if !is_in_use(root) {
        checks.extend(leftovers(root).await);
    }
    checks
}

fn is_in_use(root: &Root) -> bool {
    File::open(root.lock()).is_ok_and(|lock| lock.try_lock_shared().is_err())
}

fn control_groups() -> Check {
    match Layout::detect() {
        Ok(layout) => judge(&layout),
        Err(error) => Check::fail(
            CONTROL_GROUPS,
            chain(&error),
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup, or boot with systemd",
        ),
    }
}

fn judge(layout: &Layout) -> Check {
    let lacking = layout.lacking();
    if !lacking.is_empty() {
        let found = format!("{layout}, without {}: their limits cannot be set", lacking.join(", "));
        let remedy = match layout {
            Layout::V1 { .. } => "mount them, or boot without cgroup_disable= on the kernel's command line",
            Layout::V2(_) => {
                "boot without cgroup_disable= and cgroup_no_v1= on the kernel's command line, or with a kernel that has them"
            }
        };
        return Check::fail(CONTROL_GROUPS, found, remedy);
    }
    if !layout.counts_swap() {
        let found = format!("{layout}, without swap: limits of memory do not count it");
        return Check::warn(CONTROL_GROUPS, found, "swapaccount=1 on the kernel's command line, or no swap");
    }
    Check::ok(CONTROL_GROUPS, layout.to_string())
}

fn overlay() -> Check {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.ends_with("\toverlay")) {
        return Check::ok("overlayfs", "present");
    }
    Check::warn(
        "overlayfs",
        "not loaded: the kernel loads it with the first container, if it has it",
        "modprobe overlay",
    )
}

/// Nothing to say where there is none.
fn apparmor(found: &AppArmor) -> Option<Check> {
    match found {
        AppArmor::Absent => None,
        AppArmor::Enabled { default: Some(profile) } => {
            Some(Check::ok("AppArmor", format!("{profile} is loaded")))
        }
        AppArmor::Enabled { default: None } => Some(Check::warn(
            "AppArmor",
            "enabled, and docker-default is not loaded: containers that ask for no profile have none",
            "load the engines' profile, which Docker does at its start, or name one in the containers' specification",
        )),
    }
}

async fn network(config: &Config) -> Vec<Check> {
    let name = "containers' network";
    match oci_network::check(&config.network).await {
        Ok(concerns) if concerns.is_empty() => vec![Check::ok(name, "nftables; nothing stands in its way")],
        Ok(concerns) => {
            concerns.into_iter().map(|concern| Check::warn(name, concern.what, concern.remedy)).collect()
        }
        Err(error) => vec![Check::fail(name, chain(&error), "install nftables, and run as root")],
    }
}

/// The next service takes these over; without one they stay.
async fn leftovers(root: &Root) -> Option<Check> {
    let left = oci_network::leftovers(&key(root.path()), &root.network()).await.ok()?;
    if left.is_empty() {
        return None;
    }
    let found = format!("an earlier service left its tables or addresses: {left:?}");
    Some(Check::warn("network leftovers", found, "start the service, which takes them over, and end it"))
}

#[cfg(test)]
mod tests {
    use host_core::check::Verdict;

    use super::*;

    #[test]
    fn it_is_told_which_control_groups_there_are_and_what_they_lack() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("group");
        fs::create_dir(&group).unwrap();
        fs::write(group.join("memory.max"), "max").unwrap();
        let layout = Layout::V2(root.path().to_owned());
        let seen = judge(&layout);
        assert_eq!(seen.verdict, Verdict::Fail);
        assert!(seen.found.contains("version 2, without cpu, memory, pids"), "{}", seen.found);
        fs::write(root.path().join("cgroup.controllers"), "cpu memory pids").unwrap();
        let seen = judge(&layout);
        assert_eq!(seen.verdict, Verdict::Warn);
        assert!(seen.found.contains("without swap"), "{}", seen.found);
        fs::write(group.join("memory.swap.max"), "max").unwrap();
        assert_eq!(judge(&layout), Check::ok("control groups", "version 2"));
    }

    #[test]
    fn a_profile_that_is_missing_is_told() {
        assert_eq!(apparmor(&AppArmor::Absent), None);
        let verdict = |default: Option<&str>| {
            let found = AppArmor::Enabled { default: default.map(str::to_owned) };
            apparmor(&found).unwrap().verdict
        };
        assert_eq!(verdict(Some("docker-default")), Verdict::Ok);
        assert_eq!(verdict(None), Verdict::Warn);
    }
}
