//! Directories: writable for the service, not for everybody, with room, and without what a crashed service left.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use host_config::Settings;
use indicatif::HumanBytes;
use rustix::fs::{Access, AtFlags, CWD, accessat, statvfs};

use super::{Check, machine::Machine, nearest_existing};

pub(super) fn checks(machine: &Machine, settings: &Settings) -> Vec<Check> {
    let paths = &settings.paths;
    vec![
        directory(machine, "paths.root", &paths.root),
        directory(machine, "paths.state", &paths.state),
        directory(machine, "paths.logs", &paths.logs),
        disk(machine, &paths.root),
    ]
}

fn directory(machine: &Machine, setting: &str, path: &Path) -> Check {
    let place = machine.path(path);
    let existing = nearest_existing(&place);
    let found = path.display();
    if !existing.is_dir() {
        return Check::fail(
            setting,
            format!("{found} is no directory"),
            format!("set {setting} to another path"),
        );
    }
    if accessat(CWD, existing, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).is_err() {
        let remedy = format!("run as root, or set {setting} to a directory of yours");
        return Check::fail(setting, format!("{found} cannot be written"), remedy);
    }
    if existing != place {
        return Check::ok(setting, format!("{found} will be made"));
    }
    let mode = fs::metadata(existing).map(|metadata| metadata.permissions().mode()).unwrap_or_default();
    if mode & 0o002 != 0 {
        let found = format!("{found} is writable for everybody (mode {:o})", mode & 0o7777);
        return Check::fail(setting, found, format!("chmod o-w {}", path.display()));
    }
    Check::ok(setting, format!("{found} is writable"))
}

/// Less, and the first larger image or log fills it.
const SCARCE_BYTES: u64 = 5 << 30;
/// Less, and the service's own records may fail.
const TOO_LITTLE_BYTES: u64 = 256 << 20;

fn disk(machine: &Machine, path: &Path) -> Check {
    let place = machine.path(path);
    let Ok(figures) = statvfs(nearest_existing(&place)) else {
        return Check::warn(
            "disk",
            format!("{} tells no figures", path.display()),
            "is it a local file system?",
        );
    };
    room(path, figures.f_bavail.saturating_mul(figures.f_frsize))
}

fn room(path: &Path, free: u64) -> Check {
    let found = format!("{} free for {}", HumanBytes(free), path.display());
    match free {
        ..TOO_LITTLE_BYTES => Check::fail("disk", found, "make room"),
        TOO_LITTLE_BYTES..SCARCE_BYTES => Check::warn("disk", found, "make room for images and logs"),
        _ => Check::ok("disk", found),
    }
}

/// What lies in the directories of a service that does not run.
pub(super) fn leftovers(machine: &Machine, settings: &Settings) -> Vec<String> {
    let names = |directory: &Path| -> Vec<String> {
        let entries = fs::read_dir(machine.path(directory)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let mut left = names(&settings.paths.root);
    let records = names(&settings.paths.state.join("mandelboxes"));
    left.extend(records.iter().filter_map(|name| name.strip_suffix(".json")).map(str::to_owned));
    left.sort();
    left.dedup();
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn machine() -> (tempfile::TempDir, Machine) {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine { root: root.path().to_owned(), uid: 0, open_files: None };
        (root, machine)
    }

    #[test]
    fn a_directory_is_made_or_writable_and_never_everybodys() {
        let (_root, machine) = machine();
        let verdict = |path: &str| directory(&machine, "paths.root", Path::new(path)).verdict;
        assert_eq!(verdict("/fractal"), Verdict::Ok);
        let path = machine.path("/fractal");
        fs::create_dir(&path).unwrap();
        assert_eq!(verdict("/fractal"), Verdict::Ok);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let check = directory(&machine, "paths.root", Path::new("/fractal"));
        assert_eq!(check.remedy.as_deref(), Some("chmod o-w /fractal"));
        fs::write(machine.path("/file"), "").unwrap();
        assert_eq!(verdict("/file/below"), Verdict::Fail);
    }

    #[test]
    fn little_room_is_told_before_there_is_none() {
        for (free, verdict) in [(0, Verdict::Fail), (1 << 30, Verdict::Warn), (1 << 40, Verdict::Ok)] {
            assert_eq!(room(Path::new("/fractal"), free).verdict, verdict);
        }
    }
}
