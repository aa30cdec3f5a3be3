//! Control groups as this host has them: version 2, version 1, or both.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use host_core::{ErrorKind, PluginError};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::bundle::Cgroups;

/// Where the hierarchies are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One hierarchy for everything.
    V2(PathBuf),
    /// One for each controller, by its name; `unified` is the version 2 beside them, which has no controllers.
    V1 { controllers: BTreeMap<String, PathBuf>, unified: Option<PathBuf> },
}

/// Between two looks at a group that is to become empty.
const PAUSE: Duration = Duration::from_millis(1);
/// Killed processes that have not gone by then are stuck in the kernel.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a group may be removed by others before a process is in it.
const TRIES: usize = 4;

impl Layout {
    /// Looks at this process's mounts.
    ///
    /// # Errors
    /// There are no control groups.
    pub(crate) fn detect() -> Result<Self, PluginError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self::of(&mounts).ok_or_else(|| {
            let text = "this host has no control groups: mount cgroup2 on /sys/fs/cgroup";
            PluginError::new(ErrorKind::Unavailable, text)
        })
    }

    /// From the text of a `mountinfo`.
    fn of(mounts: &str) -> Option<Self> {
        let (mut controllers, mut unified) = (BTreeMap::new(), None);
        for line in mounts.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let Some(mounted_at) = before.split(' ').nth(4) else { continue };
            let mut after = after.split(' ');
            match (after.next(), after.nth(1)) {
                (Some("cgroup2"), _) => unified = unified.or(Some(PathBuf::from(mounted_at))),
                (Some("cgroup"), Some(options)) => {
                    // A hierarchy that only has a name, systemd's, limits nothing; some runtimes make groups there too.
                    let names = options
                        .split(',')
                        .filter(|option| CONTROLLERS.contains(option) || option.starts_with("name="));
                    controllers.extend(names.map(|name| (name.to_owned(), PathBuf::from(mounted_at))));
                }
                _ => {}
            }
        }
        // A hierarchy that somebody has mounted elsewhere, for network classes say, makes no host one of version 1.
        if controllers.is_empty() || unified.as_deref() == Some(Path::new("/sys/fs/cgroup")) {
            return unified.map(Self::V2);
        }
        Some(Self::V1 { controllers, unified })
    }

    /// Version 2 beside version 1.
    pub(crate) fn hybrid(&self) -> Option<&Path> {
        match self {
            Self::V1 { unified, .. } => unified.as_deref(),
            Self::V2(_) => None,
        }
    }

    /// For another runtime that takes the version 2 beside version 1 for all there is, and is not shown it.
    pub(crate) fn without_unified(self) -> Self {
        match self {
            Self::V1 { controllers, .. } => Self::V1 { controllers, unified: None },
            v2 => v2,
        }
    }

    /// Whether limits of memory may count swap too.
    pub(crate) fn counts_swap(&self) -> bool {
        match self {
            Self::V2(root) => has_swap_limits(root),
            Self::V1 { controllers, .. } => controllers
                .get("memory")
                .is_some_and(|memory| memory.join("memory.memsw.limit_in_bytes").exists()),
        }
    }

    /// The controllers that limits need and this host does not have.
    pub(crate) fn lacking(&self) -> Vec<&'static str> {
        let mut needed = vec!["cpu", "memory", "pids"];
        match self {
            Self::V2(root) => {
                let known = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
                needed.retain(|name| known.split_whitespace().all(|known| known != *name));
            }
            Self::V1 { controllers, .. } => {
                // Version 2 has a program in the kernel instead.
                needed.push("devices");
                needed.retain(|name| !controllers.contains_key(*name));
            }
        }
        needed
    }

    /// As a container's specification has to know it.
    pub(crate) fn seen_inside(&self) -> Cgroups {
        match self {
            Self::V2(_) => Cgroups::V2,
            Self::V1 { controllers, .. } => Cgroups::V1(controllers.values().cloned().collect()),
        }
    }

    /// Lets the kernel's wait before it moves a process to another group pass now: 5 to 20 ms since Linux 6.0, for all
    /// processors to have come by, but not again for moves in the moment after. This process is moved to where it is.
    /// Blocks that long.
    pub(crate) fn hasten_moves(&self) {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        if let Some(own) = self.own(&groups) {
            // What it is good for has happened even if there is such a thing as being refused.
            let _ = fs::write(own.join("cgroup.procs"), "0");
        }
    }

    /// Where this process is in one of the hierarchies, by the text of its `cgroup`.
    fn own(&self, groups: &str) -> Option<PathBuf> {
        let (name, root) = match self {
            Self::V2(root) => ("", root),
            Self::V1 { controllers, .. } => {
                controllers.first_key_value().map(|(name, root)| (name.as_str(), root))?
            }
        };
        // A line is its number, its controllers, and the path.
        let mut parts = groups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        let (_, path) = parts.find(|(controllers, _)| controllers.split(',').any(|own| own == name))?;
        let path = Path::new(path.strip_prefix('/')?);
        // Outside of what is seen from here.
        (!path.starts_with("..")).then(|| root.join(path))
    }

    /// The group at `path` in those hierarchies only by which a service manager knows whose a process is.
    pub(crate) fn tracked(&self, path: &Path) -> Group {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let roots: Vec<&PathBuf> = match self {
            Self::V2(root) => vec![root],
            Self::V1 { controllers, unified } => {
                controllers.get("name=systemd").into_iter().chain(unified).collect()
            }
        };
        let directories = roots.into_iter().map(|root| root.join(relative)).collect();
        Group { directories, memory: PathBuf::new() }
    }

    /// The group at `path`, from the root of every hierarchy.
    pub(crate) fn group(&self, path: &Path) -> Group {
        let relative = path.strip_prefix("/").unwrap_or(path);
        match self {
            Self::V2(root) => Group { directories: vec![root.join(relative)], memory: root.join(relative) },
            Self::V1 { controllers, unified } => {
                let mut directories: Vec<_> = controllers.values().chain(unified).collect();
                directories.sort();
                directories.dedup();
                Group {
                    directories: directories.into_iter().map(|root| root.join(relative)).collect(),
                    memory: controllers.get("memory").map(|root| root.join(relative)).unwrap_or_default(),
                }
            }
        }
    }
}

impl Display for Layout {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V2(_) => "version 2",
            Self::V1 { unified: None, .. } => "version 1",
            Self::V1 { unified: Some(_), .. } => "version 1, and version 2 beside it",
        })
    }
}

/// Only groups below the root have the files, where memory is limited at all. Where none is yet, the kernel counts swap if
/// it has any and was not told otherwise.
fn has_swap_limits(root: &Path) -> bool {
    let groups = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let limited = groups.into_iter().find(|group| group.join("memory.max").exists());
    limited.map_or_else(may_have_swap, |group| group.join("memory.swap.max").exists())
}

fn may_have_swap() -> bool {
    let told = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    Path::new("/proc/swaps").exists() && !told.split_whitespace().any(|word| word == "swapaccount=0")
}

/// Those of version 1.
const CONTROLLERS: [&str; 12] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];

/// One control group, in every hierarchy that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    directories: Vec<PathBuf>,
    memory: PathBuf,
}

impl Group {
    /// How many processes in it the kernel has killed for memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let read = |file| fs::read_to_string(self.memory.join(file)).unwrap_or_default();
        ["memory.events", "memory.oom_control"].map(read).iter().find_map(|text| oom_kill(text)).unwrap_or(0)
    }

    /// What changes when the kernel kills for memory: a file to watch, and whether it is version 2's.
    pub(crate) fn oom_file(&self) -> Option<(PathBuf, bool)> {
        let v2 = self.memory.join("memory.events");
        if v2.exists() {
            return Some((v2, true));
        }
        let v1 = self.memory.join("memory.oom_control");
        v1.exists().then_some((v1, false))
    }

    /// Where version 1 takes orders for notifications.
    pub(crate) fn event_control(&self) -> PathBuf {
        self.memory.join("cgroup.event_control")
    }

    /// Makes it and takes a process in. Blocks, see [`Layout::hasten_moves`].
    pub(crate) fn take_in(&self, process: u32) -> io::Result<()> {
        let process = process.to_string();
        let taken = self.directories.iter().map(|directory| {
            // Another service, whose parent is the same, may remove that as empty just now.
            for _ in 1..TRIES {
                if fs::create_dir_all(directory)
                    .and_then(|()| fs::write(directory.join("cgroup.procs"), &process))
                    .is_ok()
                {
                    return Ok(());
                }
            }
            fs::create_dir_all(directory)?;
            fs::write(directory.join("cgroup.procs"), &process)
        });
        // All of them, whatever becomes of one.
        taken.fold(Ok(()), io::Result::and)
    }

    fn processes(&self) -> Vec<Pid> {
        let read = |directory: &PathBuf| fs::read_to_string(directory.join("cgroup.procs"));
        let lists = self.directories.iter().flat_map(read);
        lists
            .flat_map(|list| list.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
            .filter(|pid| *pid > 0)
            .map(Pid::from_raw)
            .collect()
    }

    /// Kills everything in it, waits until it is empty, and removes it. Blocks.
    ///
    /// # Errors
    /// Something in it cannot be killed.
    pub(crate) fn destroy(&self) -> io::Result<()> {
        self.destroy_reaping(|| ())
    }

    /// The same, where some in it are children of this process: `reap` has to wait for those that have ended, who are in
    /// the group until then.
    ///
    /// # Errors
    /// As [`Group::destroy`].
    pub(crate) fn destroy_reaping(&self, reap: impl Fn()) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            reap();
            let left = self.processes();
            if left.is_empty() && self.remove() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("processes of the group cannot be killed: {left:?}")));
            }
            // Version 2 beside version 1 may know fewer of them.
            let killed_at_once =
                self.directories.iter().all(|at| fs::write(at.join("cgroup.kill"), "1").is_ok());
            if !killed_at_once {
                for pid in left {
                    // One that has gone meanwhile is what is wanted.
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
            thread::sleep(PAUSE);
        }
    }

    /// Removes it unless there is something in it.
    pub(crate) fn remove_if_empty(&self) {
        for directory in &self.directories {
            // Another container's group may be in it.
            let _ = fs::remove_dir(directory);
        }
    }

    /// Whether nothing of it is left.
    fn remove(&self) -> bool {
        self.directories.iter().all(|directory| remove_tree(directory).is_ok())
    }
}

/// Groups inside it too: a container may have made some.
fn remove_tree(directory: &Path) -> io::Result<()> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(()) => return Ok(()),
        Err(_) => {}
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

fn oom_kill(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
";

    #[test]
    fn every_layout_is_recognised() {
        let Some(Layout::V1 { controllers, unified }) = Layout::of(HYBRID) else {
            panic!("it is no version 1");
        };
        let names: Vec<_> = controllers.keys().map(String::as_str).collect();
        assert_eq!(names, ["cpu", "cpuacct", "memory", "name=systemd"]);
        assert_eq!(unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));

        let old: Vec<_> = HYBRID.lines().filter(|line| !line.contains("cgroup2")).collect();
        let Some(Layout::V1 { unified: None, .. }) = Layout::of(&old.join("\n")) else {
            panic!("it is not version 1 alone");
        };
        let v2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(Layout::of(v2), Some(Layout::V2("/sys/fs/cgroup".into())));
        let stray = format!("{v2}31 1 0:27 / /run/net_cls rw - cgroup cgroup rw,net_cls\n");
        assert_eq!(Layout::of(&stray), Some(Layout::V2("/sys/fs/cgroup".into())));
        assert_eq!(Layout::of("24 1 0:2 / /proc rw - proc proc rw\n"), None);
    }

    #[test]
    fn swap_counts_where_groups_have_a_limit_for_it() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::V2(root.path().to_owned());
        assert_eq!(layout.counts_swap(), may_have_swap());
        let group = root.path().join("a.slice");
        fs::create_dir_all(&group).unwrap();
        fs::create_dir_all(root.path().join("unlimited")).unwrap();
        fs::write(group.join("memory.max"), "max").unwrap();
        assert!(!layout.counts_swap());
        fs::write(group.join("memory.swap.max"), "max").unwrap();
        assert!(layout.counts_swap());
    }

    #[test]
    fn what_no_limit_can_do_without_is_missed() {
        assert_eq!(Layout::of(HYBRID).unwrap().lacking(), ["pids", "devices"]);
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::V2(root.path().to_owned());
        assert_eq!(layout.lacking(), ["cpu", "memory", "pids"]);
        fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io pids\n").unwrap();
        assert_eq!(layout.lacking(), ["memory"]);
    }

    #[test]
    fn this_process_is_found_in_one_hierarchy() {
        let groups = "9:name=systemd:/a\n4:cpu,cpuacct:/b/c\n3:memory:/d\n0::/e\n";
        let hybrid = Layout::of(HYBRID).unwrap();
        assert_eq!(hybrid.own(groups), Some("/sys/fs/cgroup/cpu,cpuacct/b/c".into()));
        assert_eq!(Layout::V2("/v2".into()).own(groups), Some("/v2/e".into()));
        assert_eq!(Layout::V2("/v2".into()).own("0::/../outside\n"), None);
        assert_eq!(hybrid.own(""), None);
    }

    #[test]
    fn a_service_manager_looks_at_few_hierarchies() {
        let group = Layout::of(HYBRID).unwrap().tracked(Path::new("/host-service/x"));
        let expected =
            ["systemd", "unified"].map(|name| PathBuf::from(format!("/sys/fs/cgroup/{name}/host-service/x")));
        assert_eq!(group.directories, expected);
    }

    #[test]
    fn a_group_is_in_each_hierarchy_once() {
        let group = Layout::of(HYBRID).unwrap().group(Path::new("/host-service/x"));
        let expected = ["cpu,cpuacct", "memory", "systemd", "unified"]
            .map(|name| PathBuf::from(format!("/sys/fs/cgroup/{name}/host-service/x")));
        assert_eq!(group.directories, expected);
        assert_eq!(group.memory, expected[1]);
    }

    #[test]
    fn kills_for_memory_are_counted_in_either_version() {
        assert_eq!(oom_kill("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(oom_kill("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), Some(1));
        assert_eq!(oom_kill("oom_kill_disable 0\nunder_oom 0\n"), None);
    }

    #[test]
    fn a_process_that_ignores_requests_is_killed_and_the_group_removed() {
        let layout = Layout::detect().unwrap();
        let path = PathBuf::from(format!("/host-service-test-{}", std::process::id()));
        let group = layout.group(&path);
        for directory in &group.directories {
            fs::create_dir_all(directory.join("inner")).unwrap();
        }
        // A shell that ignores SIGTERM, in one of the hierarchies.
        let mut child =
            std::process::Command::new("sh").args(["-c", "trap '' TERM; exec sleep 1000"]).spawn().unwrap();
        let procs = group.memory.join("cgroup.procs");
        fs::write(procs, child.id().to_string()).unwrap();
        group.destroy().unwrap();
        assert!(!child.wait().unwrap().success());
        for directory in &group.directories {
            assert!(!directory.exists(), "{} is still there", directory.display());
        }
        group.destroy().unwrap();
    }
}
