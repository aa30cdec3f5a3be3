//! Privileges, kernel, control groups, memory, devices.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use host_config::{DeviceSettings, Settings};
use indicatif::HumanBytes;
use rustix::process::{Resource, geteuid, getrlimit};

use super::Check;

/// A machine to look at.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Stands for `/`.
    pub root: PathBuf,
    /// Who looks.
    pub uid: u32,
    /// How many files a process may open; `None` is without limit.
    pub open_files: Option<u64>,
}

impl Machine {
    /// This one, as this process sees it.
    pub fn this() -> Self {
        Self { root: "/".into(), uid: geteuid().as_raw(), open_files: getrlimit(Resource::Nofile).current }
    }

    /// Where `path` is on the machine looked at.
    pub(super) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    pub(super) fn read(&self, path: &str) -> io::Result<String> {
        fs::read_to_string(self.path(path))
    }

    pub(super) fn has(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }
}

pub(super) fn checks(machine: &Machine, settings: &Settings) -> Vec<Check> {
    let mut checks = vec![
        root(machine),
        kernel(machine),
        control_groups(machine),
        memory(machine, settings.mandelbox.limits.memory_bytes),
        open_files(machine, settings.http.max_connections),
    ];
    checks.extend(settings.mandelbox.devices.iter().map(|wanted| device(machine, wanted)));
    checks.push(input_devices(machine));
    checks
}

fn root(machine: &Machine) -> Check {
    match machine.uid {
        0 => Check::ok("root", "runs as root"),
        uid => Check::fail(
            "root",
            format!("runs as user {uid}"),
            "the service manages containers, devices and directories of root: use sudo",
        ),
    }
}

/// `clone3` into a control group, pidfds and time name spaces: what the engines of today rely on.
const OLDEST_KERNEL: (u32, u32) = (5, 7);

fn kernel(machine: &Machine) -> Check {
    let release = machine.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse().ok());
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        return Check::warn("kernel", format!("unknown release {release:?}"), "is /proc mounted?");
    };
    let found = format!("Linux {release}");
    if (major, minor) >= OLDEST_KERNEL {
        return Check::ok("kernel", found);
    }
    let (major, minor) = OLDEST_KERNEL;
    Check::warn("kernel", found, format!("upgrade to Linux {major}.{minor} or later"))
}

const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

fn control_groups(machine: &Machine) -> Check {
    let unified = machine.read("/sys/fs/cgroup/cgroup.controllers");
    let (version, controllers) = match unified {
        Ok(controllers) => ("v2", controllers.split_whitespace().map(str::to_owned).collect()),
        Err(_) => {
            let hybrid = machine.has("/sys/fs/cgroup/unified/cgroup.controllers");
            (if hybrid { "hybrid (v1 with an empty v2 tree)" } else { "v1" }, v1_controllers(machine))
        }
    };
    let missing: Vec<_> =
        CONTROLLERS.into_iter().filter(|wanted| !controllers.iter().any(|has| has == wanted)).collect();
    if controllers.is_empty() {
        return Check::fail("cgroups", "none", "mount cgroup2 on /sys/fs/cgroup");
    }
    if missing.is_empty() {
        return Check::ok("cgroups", version);
    }
    let found = format!("{version}, without {}", missing.join(", "));
    Check::warn("cgroups", found, "enable these controllers, or mandelboxes have no such limits")
}

/// Those that are mounted: a directory each, or several names joined by commas.
fn v1_controllers(machine: &Machine) -> Vec<String> {
    let mounted = fs::read_dir(machine.path("/sys/fs/cgroup")).into_iter().flatten().flatten();
    let names = mounted.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.flat_map(|name| name.split(',').map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn memory(machine: &Machine, limit: Option<u64>) -> Check {
    let meminfo = machine.read("/proc/meminfo").unwrap_or_default();
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let Some(available) = available.map(|kb| kb * 1024) else {
        return Check::warn("memory", "unknown", "is /proc mounted?");
    };
    let found = format!("{} available", HumanBytes(available));
    match limit {
        Some(limit) if limit > available => Check::warn(
            "memory",
            format!("{found}, and one mandelbox may use {}", HumanBytes(limit)),
            "add memory, or lower mandelbox.limits.memory_bytes",
        ),
        Some(limit) => {
            Check::ok("memory", format!("{found}; mandelboxes at their limit: {}", available / limit))
        }
        None => Check::warn("memory", format!("{found}, without limit"), "set mandelbox.limits.memory_bytes"),
    }
}

/// Beside clients' connections: engine, control plane, watches, logs.
const OWN_FILES: u64 = 512;

fn open_files(machine: &Machine, connections: u32) -> Check {
    let needed = u64::from(connections) + OWN_FILES;
    match machine.open_files {
        Some(limit) if limit < needed => Check::warn(
            "open files",
            format!("at most {limit}; http.max_connections wants {needed}"),
            format!("raise it: ulimit -n {needed}, or LimitNOFILE={needed} in the unit"),
        ),
        Some(limit) => Check::ok("open files", format!("at most {limit}")),
        None => Check::ok("open files", "without limit"),
    }
}

fn device(machine: &Machine, wanted: &DeviceSettings) -> Check {
    let name = format!("device {}", wanted.host.display());
    if machine.has(&wanted.host) {
        return Check::ok(name, "present");
    }
    let module = wanted.host.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let remedy = format!("load its kernel module (modprobe {module}), or leave it out of mandelbox.devices");
    match wanted.optional {
        true => Check::warn(name, "absent: mandelboxes do without", remedy),
        false => Check::fail(name, "absent", remedy),
    }
}

fn input_devices(machine: &Machine) -> Check {
    if machine.has("/dev/uinput") {
        return Check::ok("device /dev/uinput", "present");
    }
    let remedy = "load its kernel module: modprobe uinput";
    Check::warn("device /dev/uinput", "absent: no virtual keyboards and pointers", remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    /// A machine with these files.
    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Machine) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let machine = Machine { root: root.path().to_owned(), uid: 0, open_files: Some(1024) };
        (root, machine)
    }

    #[test]
    fn the_version_of_control_groups_is_told() {
        let v2 = machine(&[("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory hugetlb pids\n")]);
        assert_eq!(control_groups(&v2.1), Check::ok("cgroups", "v2"));
        let v1 = machine(&[
            ("sys/fs/cgroup/cpu,cpuacct/tasks", ""),
            ("sys/fs/cgroup/memory/tasks", ""),
            ("sys/fs/cgroup/pids/tasks", ""),
        ]);
        assert_eq!(control_groups(&v1.1), Check::ok("cgroups", "v1"));
        fs::create_dir_all(v1.1.path("/sys/fs/cgroup/unified")).unwrap();
        fs::write(v1.1.path("/sys/fs/cgroup/unified/cgroup.controllers"), "").unwrap();
        assert!(control_groups(&v1.1).found.starts_with("hybrid"));
        fs::remove_dir_all(v1.1.path("/sys/fs/cgroup/pids")).unwrap();
        assert!(control_groups(&v1.1).found.ends_with("without pids"));
        assert_eq!(control_groups(&machine(&[]).1).verdict, Verdict::Fail);
    }

    #[test]
    fn kernels_are_compared_by_number() {
        for (release, verdict) in [
            ("6.1.0-18-amd64\n", Verdict::Ok),
            ("5.10.0\n", Verdict::Ok),
            ("5.4.0-1-aws\n", Verdict::Warn),
            ("10.0-rc1\n", Verdict::Ok),
            ("\n", Verdict::Warn),
        ] {
            let machine = machine(&[("proc/sys/kernel/osrelease", release)]);
            assert_eq!(kernel(&machine.1).verdict, verdict, "{release:?}");
        }
    }

    #[test]
    fn memory_is_counted_in_mandelboxes() {
        let machine = machine(&[("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:    8388608 kB\n")]);
        let memory = |gib: u64| memory(&machine.1, Some(gib << 30));
        assert_eq!(memory(3), Check::ok("memory", "8.00 GiB available; mandelboxes at their limit: 2"));
        assert_eq!(memory(9).verdict, Verdict::Warn);
    }

    #[test]
    fn a_device_that_must_be_there_fails() {
        let machine = machine(&[("dev/fuse", "")]).1;
        let wanted = |host: &str, optional| DeviceSettings {
            host: host.into(),
            container: None,
            permissions: "rwm".into(),
            optional,
        };
        let verdict = |host: &str, optional| device(&machine, &wanted(host, optional)).verdict;
        assert_eq!(verdict("/dev/kvm", true), Verdict::Warn);
        assert_eq!(verdict("/dev/kvm", false), Verdict::Fail);
    }

    #[test]
    fn few_open_files_are_told() {
        let (_root, machine) = machine(&[]);
        assert_eq!(open_files(&machine, 100).verdict, Verdict::Ok);
        assert!(open_files(&machine, 1024).remedy.unwrap().contains("ulimit -n 1536"));
    }
}
