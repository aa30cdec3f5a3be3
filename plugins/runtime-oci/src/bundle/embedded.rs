//! What libcontainer reads differently from other runtimes, and how the same container comes out all the same.
//!
//! libcontainer 0.7 mounts through file descriptors and, doing so, ignores the propagation that a bind asks for: each has what
//! the mounts of its whole namespace were given before, by `linux.rootfsPropagation`. So the weakest that any of them
//! needs is said there, and whoever starts the container closes the others by [`Propagate`], once it is created.
//!
//! It leaves a memory file system with the kernel's mode, 1777, where runc keeps that of the directory below, and a
//! terminal with root, where runc gives it to the first process's user.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, openat2};

/// A mount of the container whose propagation is still to be set, from within its mount namespace, with all
/// below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Propagate {
    /// Inside.
    pub(crate) target: PathBuf,
    pub(crate) to: Kind,
}

/// From closed to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Private,
    Slave,
    Shared,
}

/// Changes a complete specification, with its user, into what makes libcontainer do the same. `rootfs` is the
/// container's, mounted. What is returned is to be done between create and start.
pub(crate) fn adapt(spec: &mut Spec, rootfs: BorrowedFd<'_>) -> Vec<Propagate> {
    let uid = spec.process().as_ref().map_or(0, |process| process.user().uid());
    for mount in spec.mounts_mut().iter_mut().flatten() {
        match mount.typ().as_deref() {
            Some("tmpfs") => keep_mode(mount, rootfs),
            Some("devpts") if uid != 0 => add_option(mount, format!("uid={uid}")),
            _ => {}
        }
    }
    propagate(spec)
}

fn propagate(spec: &mut Spec) -> Vec<Propagate> {
    let binds: Vec<_> = spec.mounts().iter().flatten().filter_map(bind).collect();
    let weakest = binds.iter().map(|bind| bind.to).max().unwrap_or(Kind::Private);
    if let Some(linux) = spec.linux_mut() {
        let name = match weakest {
            Kind::Private => "private",
            Kind::Slave => "slave",
            Kind::Shared => "shared",
        };
        linux.set_rootfs_propagation(Some(name.to_owned()));
    }
    binds.into_iter().filter(|bind| bind.to != weakest).collect()
}

fn bind(mount: &Mount) -> Option<Propagate> {
    let options = mount.options().as_deref().unwrap_or_default();
    let is_bind = options.iter().any(|option| option == "bind" || option == "rbind");
    if !is_bind && mount.typ().as_deref() != Some("bind") {
        return None;
    }
    let to = options.iter().rev().find_map(|option| match option.as_str() {
        "shared" | "rshared" => Some(Kind::Shared),
        "slave" | "rslave" => Some(Kind::Slave),
        "private" | "rprivate" => Some(Kind::Private),
        _ => None,
    });
    Some(Propagate { target: mount.destination().clone(), to: to.unwrap_or(Kind::Private) })
}

/// A directory that is not there gets the engines' usual mode for one that they make.
fn keep_mode(mount: &mut Mount, rootfs: BorrowedFd<'_>) {
    let options = mount.options().as_deref().unwrap_or_default();
    if options.iter().any(|option| option.starts_with("mode=")) {
        return;
    }
    let mode = mode_of(rootfs, mount.destination()).unwrap_or(0o755);
    add_option(mount, format!("mode={mode:o}"));
}

/// Links are followed as they are from inside: one to `/` must not lead to the host.
fn mode_of(rootfs: BorrowedFd<'_>, path: &Path) -> Option<u32> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat2(rootfs, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?;
    Some(fstat(directory.as_fd()).ok()?.st_mode & 0o7777)
}

fn add_option(mount: &mut Mount, option: String) {
    mount.options_mut().get_or_insert_default().push(option);
}
