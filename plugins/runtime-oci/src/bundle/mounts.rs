//! What is mounted where.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use host_core::{
    PluginError,
    runtime::{ContainerSpec, Mount as Bind, Propagation, Tmpfs},
};
use oci_spec::runtime::{Mount, MountBuilder};

use super::{Place, incomplete, invalid, target};

/// The engines' own, for a `shm_bytes` of 0.
const DEFAULT_SHM_BYTES: u64 = 64 << 20;

/// Files of `/proc` that a runtime lets be replaced, because some fake them; nothing else may be mounted there.
const REPLACEABLE: [&str; 8] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
];

/// In the order of mounting: the engines' usual ones, then the container's, so that one at `/a/b` comes after one at
/// `/a`. A mount of the container's replaces the usual one at the same place.
pub(super) fn all(container: &ContainerSpec, place: &Place<'_>) -> Result<Vec<Mount>, PluginError> {
    let mut own = Vec::new();
    for bind in &container.mounts {
        own.push(self::bind(bind)?);
    }
    for tmpfs in &container.tmpfs {
        own.push(self::tmpfs(tmpfs)?);
    }
    let mut targets = BTreeSet::new();
    if let Some(twice) = own.iter().find(|mount| !targets.insert(mount.destination().clone())) {
        return Err(invalid(format!("two mounts are to be at {}", twice.destination().display())));
    }
    own.extend(generated(place)?.into_iter().filter(|mount| !targets.contains(mount.destination())));
    own.sort_by_key(|mount| mount.destination().components().count());

    let mut all = usual(container)?;
    all.retain(|mount| !targets.contains(mount.destination()));
    all.extend(own);
    Ok(all)
}

/// What every container has, in Docker's words.
fn usual(container: &ContainerSpec) -> Result<Vec<Mount>, PluginError> {
    let shm_bytes = if container.shm_bytes == 0 { DEFAULT_SHM_BYTES } else { container.shm_bytes };
    let shm = format!("size={shm_bytes}");
    let (safe, read_only) = (["nosuid", "noexec", "nodev"], ["nosuid", "noexec", "nodev", "ro"]);
    [
        ("/proc", "proc", "proc", &safe[..]),
        ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("/sys", "sysfs", "sysfs", &read_only),
        // Its size is relative to nothing in version 1; a runtime mounts what the host has.
        ("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
        ("/dev/mqueue", "mqueue", "mqueue", &safe),
        ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
    ]
    .into_iter()
    .map(|(target, kind, source, options)| mount(Path::new(target), kind, Path::new(source), options))
    .collect()
}

/// Over the image's own. Not writable as in the engines: they are files of the host's `/run`, which a container could fill.
fn generated(place: &Place<'_>) -> Result<Vec<Mount>, PluginError> {
    let files = &place.files;
    [
        ("/etc/resolv.conf", &files.resolv_conf),
        ("/etc/hostname", &files.hostname),
        ("/etc/hosts", &files.hosts),
    ]
    .into_iter()
    .map(|(target, source)| mount(Path::new(target), "bind", source, &["rbind", "rprivate", "ro"]))
    .collect()
}

/// Where the container's own mounts may be.
fn mount_point(path: &Path) -> Result<PathBuf, PluginError> {
    let target = target("mount point", path)?;
    if target == Path::new("/dev") || target == Path::new("/sys") {
        // Its nodes would be made in what is mounted there: on the host.
        return Err(invalid(format!("nothing can be mounted over {}; mount below it", target.display())));
    }
    if target.starts_with("/proc") && !REPLACEABLE.iter().any(|file| Path::new(file) == target) {
        return Err(invalid(format!("nothing can be mounted at {}, inside of /proc", target.display())));
    }
    Ok(target)
}

fn bind(bind: &Bind) -> Result<Mount, PluginError> {
    let target = mount_point(&bind.target)?;
    if !bind.source.is_absolute() || bind.source.to_str().is_none() {
        return Err(invalid(format!(
            "the source {} of a mount is no absolute path in UTF-8",
            bind.source.display()
        )));
    }
    fs::metadata(&bind.source).map_err(|error| {
        invalid(format!("{} cannot be mounted at {}", bind.source.display(), target.display()))
            .with_source(error)
    })?;
    let mut options = vec!["rbind", propagation(bind.propagation)];
    if bind.read_only {
        // The second also for what is mounted under it; a runtime that does not know it still has the first.
        options.extend(["ro", "rro"]);
    }
    mount(&target, "bind", &bind.source, &options)
}

fn propagation(propagation: Propagation) -> &'static str {
    match propagation {
        Propagation::Private => "rprivate",
        Propagation::Slave => "rslave",
        Propagation::Shared => "rshared",
    }
}

/// With Docker's options for its `--tmpfs`; the mode is that of the image's directory: [`super::embedded`].
fn tmpfs(tmpfs: &Tmpfs) -> Result<Mount, PluginError> {
    let target = mount_point(&tmpfs.target)?;
    if tmpfs.size_bytes == 0 {
        return Err(invalid(format!("the memory file system at {} needs a size", target.display())));
    }
    let size = format!("size={}", tmpfs.size_bytes);
    mount(&target, "tmpfs", Path::new("tmpfs"), &["noexec", "nosuid", "nodev", "rprivate", &size])
}

pub(super) fn mount(
    target: &Path,
    kind: &str,
    source: &Path,
    options: &[&str],
) -> Result<Mount, PluginError> {
    let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
    MountBuilder::default()
        .destination(target)
        .typ(kind)
        .source(source)
        .options(options)
        .build()
        .map_err(incomplete)
}
