//! What Linux in particular is asked for: namespaces, what of the kernel is hidden, the system call filter.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use host_core::{
    PluginError,
    runtime::{ContainerSpec, Propagation},
};
use oci_spec::runtime::{Linux, LinuxBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType};

use super::{Cgroups, NetworkNamespace, Place, devices, incomplete, resources};
use crate::seccomp;

/// What the engines hide: the host's memory, its keys, its hardware, and what betrays other containers' doings.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Of every CPU besides, as in Docker 28: how hot it gets tells what others compute. Looked up once per process.
static THROTTLES: LazyLock<Vec<String>> = LazyLock::new(|| throttles(Path::new("/sys/devices/system/cpu")));

/// What the engines let nobody write.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What Docker opens in a network of the container's own: there, ports below 1024 and pings harm nobody else.
const SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

pub(super) fn linux(container: &ContainerSpec, place: &Place<'_>) -> Result<Linux, PluginError> {
    let given = devices::given(&container.devices)?;
    let mut resources = resources::resources(&container.limits, place)?;
    resources.set_devices(Some(devices::rules(&given)?));
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(place)?)
        .cgroups_path(&*place.cgroups_path)
        .resources(resources)
        .devices(given.into_iter().map(|given| given.node).collect::<Vec<_>>())
        .masked_paths(masked())
        .readonly_paths(read_only(&place.cgroups))
        .build()
        .map_err(incomplete)?;
    linux.set_rootfs_propagation(open(container).map(str::to_owned));
    let security = &container.security;
    linux.set_seccomp(seccomp::filter(&security.seccomp, &security.capabilities)?);
    if place.network != NetworkNamespace::Host {
        let sysctls = SYSCTLS.map(|(name, value)| (name.to_owned(), value.to_owned()));
        linux.set_sysctl(Some(HashMap::from(sysctls)));
    }
    Ok(linux)
}

fn masked() -> Vec<String> {
    MASKED.into_iter().map(str::to_owned).chain(THROTTLES.iter().cloned()).collect()
}

fn throttles(cpus: &Path) -> Vec<String> {
    let is_cpu = |name: &str| name.strip_prefix("cpu").is_some_and(|number| number.parse::<u32>().is_ok());
    let entries = fs::read_dir(cpus).into_iter().flatten().flatten();
    let paths = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_cpu))
        .map(|entry| entry.path().join("thermal_throttle"))
        .filter(|path| path.is_dir());
    let mut paths: Vec<_> = paths.map(|path| path.display().to_string()).collect();
    paths.sort();
    paths
}

/// As Docker says it: by default a runtime closes all mounts before it binds any, and what a bind says comes too late.
fn open(container: &ContainerSpec) -> Option<&'static str> {
    let any = |propagation| container.mounts.iter().any(|mount| mount.propagation == propagation);
    if any(Propagation::Shared) { Some("rshared") } else { any(Propagation::Slave).then_some("rslave") }
}

/// Control groups get a namespace of their own where Docker gives one: with version 2. With version 1 the paths in
/// `/proc/self/cgroup` then are the host's.
fn namespaces(place: &Place<'_>) -> Result<Vec<LinuxNamespace>, PluginError> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Uts};
    let mut namespaces = [Pid, Ipc, Uts, Mount].map(|kind| (kind, None)).to_vec();
    match &place.network {
        NetworkNamespace::Path(path) => namespaces.push((Network, Some(path))),
        NetworkNamespace::Host => {}
    }
    if place.cgroups == Cgroups::V2 {
        namespaces.push((Cgroup, None));
    }
    namespaces.into_iter().map(|(kind, path)| namespace(kind, path)).collect()
}

fn namespace(kind: LinuxNamespaceType, path: Option<&PathBuf>) -> Result<LinuxNamespace, PluginError> {
    let mut namespace = LinuxNamespaceBuilder::default().typ(kind).build().map_err(incomplete)?;
    namespace.set_path(path.cloned());
    Ok(namespace)
}

/// With version 1, libcontainer mounts the hierarchies of control groups writable whatever the mount says, and what they
/// are in: root inside could lift its own limits, and fill the host's memory.
fn read_only(cgroups: &Cgroups) -> Vec<String> {
    let mut paths = READ_ONLY.map(str::to_owned).to_vec();
    if let Cgroups::V1(hierarchies) = cgroups {
        let names = hierarchies.iter().filter_map(|hierarchy| hierarchy.file_name()?.to_str());
        // Systemd's own is not a controller's; a path that does not exist is skipped.
        let mut names: Vec<_> = names.chain(["systemd"]).collect();
        names.sort_unstable();
        names.dedup();
        // Each is bound over itself with all that is in it, so what they are in comes first.
        paths.push("/sys/fs/cgroup".to_owned());
        paths.extend(names.into_iter().map(|name| format!("/sys/fs/cgroup/{name}")));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_is_hidden_of_every_cpu_that_tells_it() {
        let directory = tempfile::tempdir().unwrap();
        for path in ["cpu0/thermal_throttle", "cpu11/thermal_throttle", "cpu2", "cpufreq/thermal_throttle"] {
            fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        let expected = ["cpu0/thermal_throttle", "cpu11/thermal_throttle"]
            .map(|path| directory.path().join(path).display().to_string());
        assert_eq!(throttles(directory.path()), expected);
        assert!(throttles(Path::new("/nonexistent")).is_empty());
        assert!(masked().ends_with(&THROTTLES) && masked().contains(&"/proc/kcore".to_owned()));
    }
}
