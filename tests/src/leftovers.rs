//! What containers have left of themselves, as the kernel tells it.

use std::{
    fmt::{self, Display, Formatter},
    fs,
    path::{Path, PathBuf},
};

/// Everything that would not be there without containers, as a person would name it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers(pub(crate) Vec<String>);

impl Leftovers {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Display for Leftovers {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.is_empty() { f.write_str("nothing") } else { f.write_str(&self.0.join(", ")) }
    }
}

/// Every process in the world's PID namespace, by its name, but those that are expected.
pub(crate) fn processes(world: u32, expected: &[&str]) -> Vec<String> {
    let names = entries(format!("/proc/{world}/root/proc")).into_iter().filter_map(|path| {
        let is_process = path.file_name()?.to_str()?.bytes().all(|byte| byte.is_ascii_digit());
        is_process.then(|| fs::read_to_string(path.join("comm")).ok())?
    });
    let others = names.filter(|name| !expected.contains(&name.trim_end()));
    others.map(|name| format!("process {}", name.trim_end())).collect()
}

/// Where something is mounted in the world.
pub(crate) fn mounts(world: u32) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{world}/mountinfo")).unwrap_or_default();
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| format!("mount {point}")).collect()
}

/// The world's network interfaces.
pub(crate) fn interfaces(world: u32) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{world}/net/dev")).unwrap_or_default();
    let names = table.lines().filter_map(|line| line.split_once(':').map(|(name, _)| name.trim()));
    names.map(|name| format!("interface {name}")).collect()
}

/// Control groups inside the world's own, under version 1, version 2 or both.
pub(crate) fn control_groups(group: &str) -> Vec<String> {
    groups_at(group)
        .iter()
        .flat_map(|path| entries(path.display().to_string()))
        .filter(|path| path.is_dir() && !has_supervisors(path))
        .map(|path| format!("control group {}", path.display()))
        .collect()
}

/// It belongs to a service that runs.
fn has_supervisors(group: &Path) -> bool {
    let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    group.to_string_lossy().contains("/supervisors-") && !processes.is_empty()
}

/// Where a control group is, in every hierarchy.
pub(crate) fn groups_at(group: &str) -> Vec<PathBuf> {
    let mut roots = entries("/sys/fs/cgroup");
    roots.push("/sys/fs/cgroup".into());
    let mut groups: Vec<_> =
        roots.into_iter().map(|root| root.join(group)).filter(|path| path.is_dir()).collect();
    // Some hierarchies have two names, one of them a link.
    groups.sort();
    groups
}

/// What is in a directory, if there is one.
pub(crate) fn entries(directory: impl AsRef<Path>) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
