//! What containers have left of themselves in an engine.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use bollard::Docker;
use bollard::query_parameters::{ListContainersOptionsBuilder, ListVolumesOptions};

/// Everything that an engine without containers does not have, as a person would name it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers(Vec<String>);

impl Leftovers {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) async fn find(docker: &Docker, world: u32, group: &str) -> Result<Self> {
        let mut found = in_engine(docker).await?;
        found.extend(processes(world));
        found.extend(mounts(world));
        found.extend(interfaces(world));
        found.extend(control_groups(group));
        Ok(Self(found))
    }
}

impl Display for Leftovers {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.is_empty() { f.write_str("nothing") } else { f.write_str(&self.0.join(", ")) }
    }
}

async fn in_engine(docker: &Docker) -> Result<Vec<String>> {
    let all = ListContainersOptionsBuilder::default().all(true).build();
    let containers = docker.list_containers(Some(all)).await?;
    let containers = containers.into_iter().map(|container| {
        let name = container.names.unwrap_or_default().join(" ");
        format!("container {name} ({})", container.status.unwrap_or_default())
    });
    let volumes = docker.list_volumes(None::<ListVolumesOptions>).await?.volumes.unwrap_or_default();
    let volumes = volumes.into_iter().map(|volume| format!("volume {}", volume.name));
    let networks = docker.list_networks(None).await?.into_iter().filter_map(|network| network.name);
    let networks = networks.filter(|name| !["bridge", "host", "none"].contains(&name.as_str()));
    Ok(containers.chain(volumes).chain(networks.map(|name| format!("network {name}"))).collect())
}

/// Everything in the engine's PID namespace but what makes up the engine.
fn processes(world: u32) -> Vec<String> {
    let names = entries(format!("/proc/{world}/root/proc")).into_iter().filter_map(|path| {
        let is_process = path.file_name()?.to_str()?.bytes().all(|byte| byte.is_ascii_digit());
        is_process.then(|| fs::read_to_string(path.join("comm")).ok())?
    });
    let others = names.filter(|name| !["bash", "dockerd", "containerd"].contains(&name.trim_end()));
    others.map(|name| format!("process {}", name.trim_end())).collect()
}

fn mounts(world: u32) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{world}/mountinfo")).unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    // The engine keeps the namespace of containers on the host network, once there has been one.
    let left = points.filter(|point| {
        ["/overlay2/", "/containers/", "/netns/"].iter().any(|part| point.contains(part))
            && !point.ends_with("/netns/default")
    });
    left.map(|point| format!("mount {point}")).collect()
}

fn interfaces(world: u32) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{world}/net/dev")).unwrap_or_default();
    let names = table.lines().filter_map(|line| line.split_once(':').map(|(name, _)| name.trim()));
    names.filter(|name| name.starts_with("veth")).map(|name| format!("interface {name}")).collect()
}

/// Control groups inside the engine's own, under version 1, version 2 or both.
fn control_groups(group: &str) -> Vec<String> {
    let mut roots = entries("/sys/fs/cgroup".into());
    roots.push("/sys/fs/cgroup".into());
    let inside = roots.iter().flat_map(|root| entries(root.join(group).display().to_string()));
    inside.filter(|path| path.is_dir()).map(|path| format!("control group {}", path.display())).collect()
}

fn entries(directory: String) -> Vec<PathBuf> {
    let entries = fs::read_dir(Path::new(&directory)).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
