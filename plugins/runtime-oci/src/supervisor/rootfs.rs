//! The container's file systems, in the supervisor's own mount namespace: they are gone with it.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount as mount_call},
    sched::{CloneFlags, setns, unshare},
    unistd::{Pid, chdir},
};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};

use super::Refusal;
use crate::{
    bundle::{
        apply_user,
        embedded::{Kind, Propagate, adapt},
        resolve_user,
    },
    cgroup::Layout,
    place::name,
    protocol::{Launch, Reason},
};

/// Longer than any image's list of users.
const USERS_BYTES_MAX: u64 = 4 << 20;
const NOTHING: Option<&str> = None;

/// A mount namespace of this process's own, with the bundle and the image's files in it.
pub(super) fn mount(directory: &Path, launch: &Launch, layout: &Layout) -> Result<(), Refusal> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(Refusal::of("making a mount namespace"))?;
    if launch.shared_mounts {
        detach(directory, &launch.spec)?;
    } else {
        change("/", MsFlags::MS_SLAVE | MsFlags::MS_REC).map_err(Refusal::of("leaving the host's mounts"))?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if let (Some(_), Some(unified)) = (&launch.binary, layout.hybrid()) {
        // Some runtimes refuse to work where both versions of control groups are seen. What they write there all the
        // same must not be in the host's directory of that name.
        change(unified, MsFlags::MS_PRIVATE).map_err(Refusal::of("leaving the host's control groups"))?;
        mount_call(Some("tmpfs"), unified, Some("tmpfs"), flags, Some("size=1m,mode=0700"))
            .map_err(Refusal::of("hiding the empty version 2 control groups"))?;
    }
    mount_call(Some("tmpfs"), name::BUNDLE, Some("tmpfs"), flags, Some("size=16m,mode=0700"))
        .map_err(Refusal::of("mounting the bundle"))?;
    overlay(directory, launch)
}

fn change(target: impl AsRef<Path>, flags: MsFlags) -> nix::Result<()> {
    mount_call(NOTHING, target.as_ref(), NOTHING, flags, NOTHING)
}

/// As for others, but mounts made in what is to be shared are seen by the host. Nothing else is: some runtimes mount over
/// the host's control groups.
fn detach(directory: &Path, spec: &Spec) -> Result<(), Refusal> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(Refusal::of("reading the mounts"))?;
    let own = mount_point(&mounts, directory);
    let shares = |options: &Option<Vec<String>>| {
        options.iter().flatten().any(|option| option == "shared" || option == "rshared")
    };
    let shared = spec.mounts().iter().flatten().filter(|mount| shares(mount.options()));
    let mut open = Vec::new();
    for source in shared.filter_map(|mount| mount.source().as_ref()) {
        let point = mount_point(&mounts, source);
        if !is_shared(&mounts, &point) {
            return Err(Refusal::new(
                Reason::Invalid,
                format!(
                    "{} cannot be shared, because {point} is not: mount --make-shared {point}",
                    source.display()
                ),
            ));
        }
        if point == own {
            return Err(Refusal::new(
                Reason::Invalid,
                format!(
                    "{0} cannot be shared, because it is on the same file system as the runtime's own directory: make it \
                     a mount of its own (mount --bind {0} {0} && mount --make-shared {0})",
                    source.display()
                ),
            ));
        }
        open.push((point, source));
    }
    for point in mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape) {
        if !open.iter().any(|(holder, source)| point == *holder || Path::new(&point).starts_with(source)) {
            // One that another hides is out of reach, for engines too.
            let _ = change(&point, MsFlags::MS_SLAVE);
        }
    }
    change(&own, MsFlags::MS_SLAVE).map_err(Refusal::of("leaving the host's mounts"))
}

/// Where the file system that holds `path` is mounted.
fn mount_point(mounts: &str, path: &Path) -> String {
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let holding = points.filter(|point| path.starts_with(point));
    holding.max_by_key(String::len).unwrap_or_else(|| "/".to_owned())
}

/// Whether what is mounted there is seen by other mount namespaces. The latest mount hides the earlier ones.
fn is_shared(mounts: &str, point: &str) -> bool {
    let at = |line: &&str| line.split(' ').nth(4).is_some_and(|at| unescape(at) == point);
    let latest = mounts.lines().rfind(at);
    latest.is_some_and(|line| line.split(" - ").next().unwrap_or_default().contains(" shared:"))
}

/// The kernel writes spaces and their like as `\040`.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

/// The image's layers with the container's own on top. Paths are relative to the image store, because all of them have
/// to fit on one page.
fn overlay(directory: &Path, launch: &Launch) -> Result<(), Refusal> {
    let id = &launch.id;
    let layers: Vec<_> = launch.layers.iter().map(|layer| layer.to_string_lossy()).collect();
    let own = format!("../containers/{id}");
    let options =
        format!("lowerdir={},upperdir={own}/{},workdir={own}/{}", layers.join(":"), name::UPPER, name::WORK);
    let target = directory.join(name::ROOTFS);
    let mount = |options: &str| {
        mount_call(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(options))
    };
    chdir(&launch.images).map_err(Refusal::of("entering the image store"))?;
    // What a container writes ends with it, so nothing needs to reach the disk. Kernels before 5.10 do not know the word.
    let mounted = mount(&format!("{options},volatile")).or_else(|_| mount(&options));
    chdir(directory).map_err(Refusal::of("entering the container's directory"))?;
    mounted.map_err(Refusal::of("mounting the image's files"))
}

/// The specification with all that could be known only now, and what remains to be done to mounts once the container is
/// made.
pub(super) fn complete(
    directory: &Path,
    launch: &Launch,
    network: i32,
) -> Result<(Spec, Vec<Propagate>), Refusal> {
    let mut spec = launch.spec.clone();
    let rootfs = directory.join(name::ROOTFS);
    if let Some(root) = spec.root_mut() {
        root.set_path(rootfs.clone());
    }
    // By this process's number, because another runtime's program looks from a process of its own.
    let network = PathBuf::from(format!("/proc/{}/fd/{network}", std::process::id()));
    let namespaces = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
    for namespace in namespaces.into_iter().flatten() {
        if namespace.typ() == LinuxNamespaceType::Network && namespace.path().is_some() {
            namespace.set_path(Some(network.clone()));
        }
    }
    let root: OwnedFd = File::open(&rootfs).map_err(Refusal::of("opening the image's files"))?.into();
    let users = |file| read(&root, file).map_err(Refusal::of(&format!("reading the image's {file}")));
    let user = resolve_user(&launch.user, &users("etc/passwd")?, &users("etc/group")?)
        .map_err(|error| Refusal::new(Reason::Invalid, error.to_string()))?;
    apply_user(&mut spec, &user).map_err(|error| Refusal::new(Reason::Invalid, error.to_string()))?;
    if let Some(process) = spec.process() {
        make_directory(&root, process.cwd()).map_err(Refusal::of("making the working directory"))?;
    }
    let propagate = if launch.binary.is_none() { adapt(&mut spec, root.as_fd()) } else { Vec::new() };
    Ok((spec, propagate))
}

/// Sets how mounts of a container that waits for its start are propagated, from inside.
pub(super) fn propagate(process: Pid, mounts: &[Propagate], directory: &Path) -> Result<(), Refusal> {
    if mounts.is_empty() {
        return Ok(());
    }
    let namespace = |of: &str| File::open(format!("/proc/{of}/ns/mnt"));
    let own = namespace("self").map_err(Refusal::of("opening the own mount namespace"))?;
    let inner =
        namespace(&process.to_string()).map_err(Refusal::of("opening the container's mount namespace"))?;
    setns(inner, CloneFlags::CLONE_NEWNS).map_err(Refusal::of("entering the container's mount namespace"))?;
    let propagated = mounts.iter().try_for_each(|mount| {
        let kind = match mount.to {
            Kind::Private => MsFlags::MS_PRIVATE,
            Kind::Slave => MsFlags::MS_SLAVE,
            Kind::Shared => MsFlags::MS_SHARED,
        };
        mount_call(NOTHING, &mount.target, NOTHING, kind | MsFlags::MS_REC, NOTHING)
            .map_err(Refusal::of(&format!("setting the propagation of {}", mount.target.display())))
    });
    setns(own, CloneFlags::CLONE_NEWNS).map_err(Refusal::of("returning to the own mount namespace"))?;
    chdir(directory).map_err(Refusal::of("entering the container's directory"))?;
    propagated
}

/// A file of the image, by a path that cannot lead out of it. An absent one is empty.
fn read(root: &OwnedFd, path: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    if file.metadata()?.is_file() {
        file.take(USERS_BYTES_MAX).read_to_end(&mut bytes)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A directory of the image, made with its parents where it is missing, by a path that cannot lead out of it.
fn make_directory(root: &OwnedFd, path: &Path) -> io::Result<()> {
    let open = |path: &Path| {
        openat2(
            root,
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        )
    };
    let mut reached = PathBuf::from("/");
    for part in path.components() {
        let Component::Normal(part) = part else { continue };
        let parent = open(&reached)?;
        reached.push(part);
        match open(&reached) {
            Err(rustix::io::Errno::NOENT) => match mkdirat(parent, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            },
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mount_point_holds_a_path() {
        let mounts = "1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / /var rw - ext4 b rw\n3 1 0:3 / /var/a\\040b rw - ext4 c rw\n";
        for (path, point) in
            [("/var/lib", "/var"), ("/variable", "/"), ("/var/a b/c", "/var/a b"), ("/", "/")]
        {
            assert_eq!(mount_point(mounts, Path::new(path)), point, "{path}");
        }
    }

    #[test]
    fn the_latest_of_several_mounts_at_a_place_is_the_one_that_counts() {
        let line = |tags: &str| format!("1 0 0:1 / /a\\040b rw{tags} - ext4 shared:1 rw\n");
        for (mounts, shared) in [
            (vec![" shared:5"], true),
            (vec![" shared:5 master:2"], true),
            (vec![" master:2"], false),
            (vec![""], false),
            (vec!["", " shared:5"], true),
            (vec![" shared:5", ""], false),
            (vec![], false),
        ] {
            let text: String = mounts.into_iter().map(line).collect();
            assert_eq!(is_shared(&text, "/a b"), shared, "{text}");
        }
    }

    #[test]
    fn directories_are_made_inside_only() {
        let image = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), image.path().join("out")).unwrap();
        std::os::unix::fs::symlink("/inner", image.path().join("in")).unwrap();
        fs::create_dir(image.path().join("inner")).unwrap();
        let root: OwnedFd = File::open(image.path()).unwrap().into();

        make_directory(&root, Path::new("/a/b/../c")).unwrap();
        assert!(image.path().join("a/b").is_dir());
        make_directory(&root, Path::new("/in/deep")).unwrap();
        assert!(image.path().join("inner/deep").is_dir());
        let _ = make_directory(&root, Path::new("/out/deep"));
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn files_are_read_inside_only() {
        let image = tempfile::tempdir().unwrap();
        fs::create_dir(image.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", image.path().join("etc/passwd")).unwrap();
        fs::write(image.path().join("etc/hostname"), "from inside").unwrap();
        let root: OwnedFd = File::open(image.path()).unwrap().into();
        assert_eq!(read(&root, "etc/passwd").unwrap(), "from inside");
        assert_eq!(read(&root, "etc/group").unwrap(), "");
        // A pipe that nobody writes to must not be waited for.
        nix::unistd::mkfifo(&image.path().join("etc/group"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read(&root, "etc/group").unwrap(), "");
    }
}
