//! What the kernel says about this process and its container.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::json::Json;

/// The fields of `/proc/self/status`.
#[derive(Debug)]
pub(crate) struct Status(String);

impl Status {
    pub(crate) fn read() -> Self {
        Self(fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    /// A field's first word: `0000000000000000` for `CapEff`.
    pub(crate) fn word(&self, field: &str) -> Option<&str> {
        let mut lines = self.0.lines();
        lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.split_whitespace().next())
    }

    pub(crate) fn number(&self, field: &str) -> Option<i64> {
        self.word(field)?.parse().ok()
    }
}

/// A value of this process's cgroup, under version 1, version 2 or both; `None` when unlimited or not visible.
pub(crate) fn cgroup_value(controller: &str, v1_file: &str, v2_file: &str) -> Option<i64> {
    // Version 1 says "unlimited" with the largest multiple of the page size.
    const UNLIMITED_FROM: i64 = 1 << 62;
    let memberships = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut paths = memberships.lines().flat_map(|line| cgroup_files(line, controller, v1_file, v2_file));
    let text = paths.find_map(|path| fs::read_to_string(path).ok())?;
    text.trim().parse().ok().filter(|value| *value < UNLIMITED_FROM)
}

/// Where the file may lie for one line of `/proc/self/cgroup`: a container sees its own cgroup either at its host
/// path or as the root.
fn cgroup_files(membership: &str, controller: &str, v1_file: &str, v2_file: &str) -> Vec<PathBuf> {
    let mut fields = membership.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
        return Vec::new();
    };
    let (mount, file) = if controllers.is_empty() {
        (PathBuf::from("/sys/fs/cgroup"), v2_file)
    } else if controllers.split(',').any(|name| name == controller) {
        (Path::new("/sys/fs/cgroup").join(controller), v1_file)
    } else {
        return Vec::new();
    };
    vec![mount.join(path.trim_start_matches('/')).join(file), mount.join(file)]
}

/// Every mount, with its size where it is a tmpfs.
pub(crate) fn mounts() -> Vec<Json> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().filter_map(mount).collect()
}

fn mount(line: &str) -> Option<Json> {
    let mut fields = line.split(' ').skip(1);
    let (target, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
    let size = if kind == "tmpfs" { size_of_file_system(target) } else { None };
    Some(Json::object([
        ("target", Json::from(target)),
        ("type", Json::from(kind)),
        ("read_only", Json::from(options.split(',').any(|option| option == "ro"))),
        ("size_bytes", Json::from(size)),
    ]))
}

fn size_of_file_system(path: &str) -> Option<i64> {
    let statistics = rustix::fs::statvfs(path).ok()?;
    i64::try_from(statistics.f_blocks.checked_mul(statistics.f_frsize)?).ok()
}

/// Every device node under /dev, and whether it opens where asking does no harm.
pub(crate) fn devices() -> Vec<Json> {
    let mut paths = Vec::new();
    collect_devices(Path::new("/dev"), &mut paths);
    paths.sort();
    let device = |path: &PathBuf| {
        Json::object([("path", Json::from(path.display().to_string())), ("opens", Json::from(opens(path)))])
    };
    paths.iter().map(device).collect()
}

fn collect_devices(directory: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect_devices(&entry.path(), found),
            Ok(kind) if kind.is_char_device() || kind.is_block_device() => found.push(entry.path()),
            _ => {}
        }
    }
}

/// Whether the device opens, for the kinds that a mandelbox is given; others may act on being opened.
fn opens(path: &Path) -> Option<bool> {
    const GIVEN: [&str; 4] = ["/dev/fuse", "/dev/uinput", "/dev/input/", "/dev/nvidia"];
    let name = path.to_str()?;
    GIVEN.iter().any(|prefix| name.starts_with(prefix)).then(|| {
        let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or_default();
        OpenOptions::new().read(true).custom_flags(flags).open(path).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory_files(membership: &str) -> Vec<PathBuf> {
        cgroup_files(membership, "memory", "memory.limit_in_bytes", "memory.max")
    }

    #[test]
    fn version_1_lies_under_its_controller() {
        let files = memory_files("7:memory:/docker/abc");
        assert_eq!(files[0], Path::new("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes"));
        assert_eq!(files[1], Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
    }

    #[test]
    fn version_2_has_one_tree() {
        let files = memory_files("0::/");
        assert_eq!(files[0], Path::new("/sys/fs/cgroup/memory.max"));
    }

    #[test]
    fn another_controller_has_no_file() {
        assert!(memory_files("3:pids:/docker/abc").is_empty());
        assert!(memory_files("nonsense").is_empty());
    }

    #[test]
    fn a_status_field_is_not_confused_with_one_it_begins() {
        let status = Status("Seccomp_filters:\t1\nSeccomp:\t2\nUid:\t0\t0\n".into());
        assert_eq!(status.number("Seccomp"), Some(2));
        assert_eq!(status.number("Uid"), Some(0));
        assert_eq!(status.word("CapEff"), None);
    }
}
