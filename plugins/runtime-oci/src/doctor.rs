//! What this host has and lacks for containers without a daemon.

use std::fs::{self, File};

use host_core::{chain, check::Check};

use crate::{config::Config, key, place::Root};

pub(crate) async fn examine(config: &Config, root: &Root) -> Vec<Check> {
    let mut checks = vec![overlay()];
    checks.extend(network(config).await);
    if !is_in_use(root) {
        checks.extend(leftovers(root).await);
    }
    checks
}

fn is_in_use(root: &Root) -> bool {
    File::open(root.lock()).is_ok_and(|lock| lock.try_lock_shared().is_err())
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
