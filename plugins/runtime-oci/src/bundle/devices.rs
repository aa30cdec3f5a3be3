//! Device nodes, and which of them the kernel lets a container open.

use std::{
    fs::{self, Metadata},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use host_core::{PluginError, runtime::Device};
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};

use super::{incomplete, invalid, target, unsupported};

/// A node to make, and what may be done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) node: LinuxDevice,
    pub(super) permissions: String,
}

/// Directories such as `/dev/dri` hold a handful.
const MOST_IN_DIRECTORY: usize = 256;

/// What every container may open, as in the engines; major and minor, where `None` is any. Runtimes that have the same
/// list built in take it twice.
const USUAL: [(LinuxDeviceType, Option<i64>, Option<i64>, &str); 11] = {
    use LinuxDeviceType::{B, C};
    [
        // Making a node needs a capability besides, and opens nothing yet.
        (C, None, None, "m"),
        (B, None, None, "m"),
        (C, Some(1), Some(3), "rwm"), // null
        (C, Some(1), Some(5), "rwm"), // zero
        (C, Some(1), Some(7), "rwm"), // full
        (C, Some(1), Some(8), "rwm"), // random
        (C, Some(1), Some(9), "rwm"), // urandom
        (C, Some(5), Some(0), "rwm"), // tty
        (C, Some(5), Some(1), "rwm"), // console
        (C, Some(5), Some(2), "rwm"), // ptmx
        (C, Some(136), None, "rwm"),  // pseudo terminals
    ]
};

/// The nodes of the host, as they are there. As in Docker, a directory stands for every node in it.
pub(super) fn given(devices: &[Device]) -> Result<Vec<Given>, PluginError> {
    let mut all = Vec::new();
    for device in devices {
        let permissions = permissions(&device.permissions, &device.host)?;
        for (host, inside) in nodes(device)? {
            add(&mut all, Given { node: node(&host, &inside)?, permissions: permissions.to_owned() })?;
        }
    }
    Ok(all)
}

/// Adds a node; the same one may be asked for twice, and then both permissions hold.
pub(super) fn add(all: &mut Vec<Given>, given: Given) -> Result<(), PluginError> {
    let Some(known) = all.iter_mut().find(|known| known.node.path() == given.node.path()) else {
        all.push(given);
        return Ok(());
    };
    let identity = |node: &LinuxDevice| (node.typ(), node.major(), node.minor());
    if identity(&known.node) != identity(&given.node) {
        return Err(invalid(format!("two different devices are to be at {}", given.node.path().display())));
    }
    let more = given.permissions.chars().filter(|one| !known.permissions.contains(*one));
    known.permissions = known.permissions.chars().chain(more).collect();
    Ok(())
}

/// The control group's rules: everything is denied but the usual and what is given.
pub(super) fn rules(given: &[Given]) -> Result<Vec<LinuxDeviceCgroup>, PluginError> {
    let deny = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build().map_err(incomplete)?;
    let mut rules = vec![deny];
    for (kind, major, minor, access) in USUAL {
        rules.push(allow(kind, major, minor, access)?);
    }
    for given in given {
        rules.extend(rule(given)?);
    }
    Ok(rules)
}

/// The rule that lets a container open what it is given; a pipe needs none.
pub(super) fn rule(given: &Given) -> Result<Option<LinuxDeviceCgroup>, PluginError> {
    let node = &given.node;
    let kind = match node.typ() {
        LinuxDeviceType::P => return Ok(None),
        // Both are character devices to the kernel's rules.
        LinuxDeviceType::U => LinuxDeviceType::C,
        kind => kind,
    };
    allow(kind, Some(node.major()), Some(node.minor()), &given.permissions).map(Some)
}

fn allow(
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> Result<LinuxDeviceCgroup, PluginError> {
    let mut rule = LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(kind)
        .access(access)
        .build()
        .map_err(incomplete)?;
    rule.set_major(major).set_minor(minor);
    Ok(rule)
}

/// Of `r`, `w` and `m`, each at most once.
pub(super) fn permissions<'a>(text: &'a str, of: &Path) -> Result<&'a str, PluginError> {
    let is_once = |one: char| "rwm".contains(one) && text.matches(one).count() == 1;
    if text.is_empty() || !text.chars().all(is_once) {
        return Err(invalid(format!("permissions {text:?} of {} are not of r, w and m", of.display())));
    }
    Ok(text)
}

/// Which node of the host goes where.
fn nodes(device: &Device) -> Result<Vec<(PathBuf, PathBuf)>, PluginError> {
    let inside = target("device", &device.container)?;
    if !look(&device.host)?.is_dir() {
        return Ok(vec![(device.host.clone(), inside)]);
    }
    let mut nodes = Vec::new();
    walk(&device.host, &inside, &mut nodes)?;
    match nodes.len() {
        0 => Err(invalid(format!("there is no device in {}", device.host.display()))),
        MOST_IN_DIRECTORY.. => {
            Err(invalid(format!("there are too many devices in {}", device.host.display())))
        }
        _ => Ok(nodes),
    }
}

/// Links inside a directory are not followed, or one of `/dev/char` could lead in a circle.
fn walk(host: &Path, inside: &Path, nodes: &mut Vec<(PathBuf, PathBuf)>) -> Result<(), PluginError> {
    let unreadable = |error| invalid(format!("{} cannot be read", host.display())).with_source(error);
    let mut entries: Vec<_> =
        fs::read_dir(host).and_then(Iterator::collect::<Result<_, _>>).map_err(unreadable)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let kind = entry.file_type().map_err(unreadable)?;
        let (host, inside) = (entry.path(), inside.join(entry.file_name()));
        if kind.is_dir() {
            walk(&host, &inside, nodes)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            nodes.push((host, inside));
        }
        if nodes.len() >= MOST_IN_DIRECTORY {
            break;
        }
    }
    Ok(())
}

/// A node for the container like the host's, which a link may lead to.
pub(super) fn node(host: &Path, inside: &Path) -> Result<LinuxDevice, PluginError> {
    let inside = target("device", inside)?;
    if !inside.starts_with("/dev/") {
        return Err(unsupported(format!("device {} can only be put below /dev", inside.display())));
    }
    let metadata = look(host)?;
    let kind = metadata.file_type();
    let kind = if kind.is_char_device() {
        LinuxDeviceType::C
    } else if kind.is_block_device() {
        LinuxDeviceType::B
    } else {
        return Err(invalid(format!("{} is no device", host.display())));
    };
    let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    LinuxDeviceBuilder::default()
        .path(inside)
        .typ(kind)
        .major(major)
        .minor(minor)
        .file_mode(metadata.mode() & 0o7777)
        .uid(metadata.uid())
        .gid(metadata.gid())
        .build()
        .map_err(incomplete)
}

fn look(host: &Path) -> Result<Metadata, PluginError> {
    if !host.is_absolute() {
        return Err(invalid(format!("device {} is no absolute path", host.display())));
    }
    fs::metadata(host)
        .map_err(|error| invalid(format!("device {} cannot be given", host.display())).with_source(error))
}
