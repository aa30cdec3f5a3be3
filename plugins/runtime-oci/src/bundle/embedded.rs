//! What libcontainer reads differently from other runtimes, and how the same container comes out all the same.
//!
//! libcontainer 0.7 mounts through file descriptors and, doing so, ignores the propagation that a bind asks for: each has what
//! the mounts of its whole namespace were given before, by `linux.rootfsPropagation`. So the weakest that any of them
//! needs is said there, and whoever starts the container closes the others by [`Propagate`], once it is created.
//!
//! With version 2 of control groups it leaves swap without a limit where there is to be none, and it lifts the limit of
//! locked memory, for itself, and the container inherits that.
//!
//! It leaves a memory file system with the kernel's mode, 1777, where runc keeps that of the directory below, and a
//! terminal with root, where runc gives it to the first process's user.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use oci_spec::runtime::{Mount, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Spec};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags, fstat, openat2},
    process::{Resource, getrlimit},
};

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
    deny_swap(spec);
    keep_locked_memory(spec);
    propagate(spec)
}

/// Where version 2 is absent, nobody reads this.
fn deny_swap(spec: &mut Spec) {
    let Some(resources) = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut()) else {
        return;
    };
    let memory = resources.memory().as_ref();
    if memory.is_some_and(|memory| memory.limit().is_some() && memory.limit() == memory.swap()) {
        let files = resources.unified_mut().get_or_insert_default();
        files.insert("memory.swap.max".to_owned(), "0".to_owned());
    }
}

fn keep_locked_memory(spec: &mut Spec) {
    let (Some(process), Some(own)) = (spec.process_mut(), locked_memory()) else {
        return;
    };
    let mut limits = process.rlimits().clone().unwrap_or_default();
    if !limits.iter().any(|limit| limit.typ() == own.typ()) {
        limits.push(own);
    }
    process.set_rlimits(Some(limits));
}

/// This process's own.
fn locked_memory() -> Option<PosixRlimit> {
    let own = getrlimit(Resource::Memlock);
    let [soft, hard] = [own.current, own.maximum].map(|limit| limit.unwrap_or(u64::MAX));
    let limit = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitMemlock);
    limit.soft(soft).hard(hard).build().ok()
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
    let mut left: Vec<_> = binds.into_iter().filter(|bind| bind.to != weakest).collect();
    if weakest != Kind::Private {
        // With version 1, libcontainer binds the host's own hierarchies here.
        left.push(Propagate { target: "/sys/fs/cgroup".into(), to: Kind::Private });
    }
    left
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

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use oci_spec::runtime::{LinuxMemoryBuilder, LinuxResourcesBuilder, MountBuilder, SpecBuilder};

    use super::*;

    fn mount(target: &str, kind: &str, options: &[&str]) -> Mount {
        let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        MountBuilder::default().destination(target).typ(kind).source("x").options(options).build().unwrap()
    }

    fn adapted(mounts: Vec<Mount>, uid: u32, rootfs: &Path) -> (Spec, Vec<Propagate>) {
        let mut spec = SpecBuilder::default().mounts(mounts).build().unwrap();
        spec.process_mut().as_mut().unwrap().user_mut().set_uid(uid);
        let rootfs = fs::File::open(rootfs).unwrap();
        let left = adapt(&mut spec, rootfs.as_fd());
        (spec, left)
    }

    fn propagation(options: &[&str]) -> (String, Vec<(String, Kind)>) {
        let binds = options
            .iter()
            .enumerate()
            .map(|(index, option)| mount(&format!("/{index}"), "bind", &["rbind", option]));
        let (spec, left) = adapted(binds.collect(), 0, Path::new("/"));
        let all = spec.linux().as_ref().unwrap().rootfs_propagation().clone().unwrap();
        (all, left.into_iter().map(|one| (one.target.display().to_string(), one.to)).collect())
    }

    #[test]
    fn each_bind_propagates_as_it_says_in_the_end() {
        use Kind::{Private, Slave};
        assert_eq!(propagation(&[]), ("private".to_owned(), vec![]));
        assert_eq!(propagation(&["rprivate", "ro"]), ("private".to_owned(), vec![]));
        let cgroup = ("/sys/fs/cgroup".to_owned(), Private);
        let private = |index: u32| (format!("/{index}"), Private);
        assert_eq!(
            propagation(&["rprivate", "rslave"]),
            ("slave".to_owned(), vec![private(0), cgroup.clone()])
        );
        assert_eq!(
            propagation(&["rshared", "rslave", "rprivate"]),
            ("shared".to_owned(), vec![("/1".to_owned(), Slave), private(2), cgroup])
        );
    }

    #[test]
    fn a_memory_file_system_keeps_the_mode_of_the_directory_below() {
        let rootfs = tempfile::tempdir().unwrap();
        let (inside, outside) = (rootfs.path().join("inside"), tempfile::tempdir().unwrap());
        for (directory, mode) in [(inside.as_path(), 0o1775), (outside.path(), 0o711)] {
            fs::create_dir_all(directory).unwrap();
            fs::set_permissions(directory, fs::Permissions::from_mode(mode)).unwrap();
        }
        symlink("/inside", rootfs.path().join("link")).unwrap();
        symlink(outside.path(), rootfs.path().join("escape")).unwrap();
        let mounts = [
            mount("/inside", "tmpfs", &[]),
            mount("/link", "tmpfs", &[]),
            mount("/escape", "tmpfs", &[]),
            mount("/missing", "tmpfs", &[]),
            mount("/dev/shm", "tmpfs", &["mode=1777"]),
        ];
        let (spec, _) = adapted(mounts.to_vec(), 0, rootfs.path());
        let modes: Vec<_> =
            spec.mounts().iter().flatten().map(|mount| mount.options().clone().unwrap().concat()).collect();
        assert_eq!(modes, ["mode=1775", "mode=1775", "mode=755", "mode=755", "mode=1777"]);
    }

    #[test]
    fn no_swap_is_said_in_the_words_of_version_2_too() {
        for (limit, swap, expected) in [(64, 64, Some("0")), (64, 96, None)] {
            let memory = LinuxMemoryBuilder::default().limit(limit).swap(swap).build().unwrap();
            let resources = LinuxResourcesBuilder::default().memory(memory).build().unwrap();
            let mut spec = SpecBuilder::default().build().unwrap();
            spec.linux_mut().as_mut().unwrap().set_resources(Some(resources));
            adapt(&mut spec, fs::File::open("/").unwrap().as_fd());
            let files = spec.linux().as_ref().unwrap().resources().as_ref().unwrap().unified().clone();
            let swap = files.unwrap_or_default().get("memory.swap.max").cloned();
            assert_eq!(swap.as_deref(), expected);
        }
    }

    #[test]
    fn a_terminal_belongs_to_the_first_process() {
        for (uid, expected) in [(0, "gid=5"), (1000, "gid=5uid=1000")] {
            let (spec, _) = adapted(vec![mount("/dev/pts", "devpts", &["gid=5"])], uid, Path::new("/"));
            assert_eq!(spec.mounts().as_ref().unwrap()[0].options().clone().unwrap().concat(), expected);
        }
    }
}
