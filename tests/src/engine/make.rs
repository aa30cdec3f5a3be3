//! The makes of engines, and how each is started in a place.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::world::{Place, World, search_path};

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// Docker.
    Docker,
    /// Podman, whose socket also speaks as Docker does.
    Podman,
    /// The same of a user's.
    RootlessPodman,
}

/// Who that user is; the world's own tables have him.
const USER: u32 = 4242;

impl Make {
    /// The runtime plugin that is for it.
    #[must_use]
    pub fn plugin(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman | Self::RootlessPodman => "podman",
        }
    }

    /// What it needs besides what a world needs.
    pub(super) fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Docker => &["containerd", "dockerd", "iptables", "runc"],
            Self::Podman => &["podman", "conmon", "iptables", "runc"],
            Self::RootlessPodman => &["podman", "conmon", "newuidmap", "runc", "slirp4netns"],
        }
    }

    /// Where the test finds its socket. A user cannot come to the world's directory.
    pub(super) fn socket(self, world: &World) -> PathBuf {
        match self {
            Self::Docker => world.path("docker.sock"),
            Self::Podman => world.path("podman.sock"),
            Self::RootlessPodman => world.seen_outside(Path::new(&format!("/run/user/{USER}/podman.sock"))),
        }
    }

    /// Its own processes.
    pub(super) fn processes(self) -> &'static [&'static str] {
        match self {
            Self::Docker => &["bash", "dockerd", "containerd"],
            // Others hold the user's namespaces.
            Self::Podman | Self::RootlessPodman => &["bash", "podman", "podman pause", "catatonit"],
        }
    }

    /// Networks that it has by itself.
    pub(super) fn networks(self) -> &'static [&'static str] {
        match self {
            Self::Docker => &["bridge", "host", "none"],
            // Docker's name for the same.
            Self::Podman | Self::RootlessPodman => &["podman", "bridge"],
        }
    }

    /// Whether a mount is a container's. Docker keeps the namespace of containers on the host network, once there has
    /// been one.
    pub(super) fn is_left(self, point: &str) -> bool {
        let parts: &[&str] = match self {
            Self::Docker => &["/overlay2/", "/containers/", "/netns/"],
            Self::Podman | Self::RootlessPodman => &["/overlay/", "/overlay-containers/", "/netns/"],
        };
        parts.iter().any(|part| point.contains(part)) && !point.ends_with("/netns/default")
    }

    /// The control group in which containers have theirs.
    pub(super) fn group(self, world: &str) -> String {
        match self {
            Self::Docker => world.to_owned(),
            Self::Podman | Self::RootlessPodman => format!("{world}/libpod_parent"),
        }
    }

    /// Whether a control group in there is a container's.
    pub(super) fn is_containers(self, group: &str) -> bool {
        self == Self::Docker || !group.ends_with("/conmon")
    }

    /// The command that starts it, after what it reads has been written.
    pub(super) fn daemon(self, place: &Place, arguments: &[&str]) -> Result<Vec<String>> {
        let group = place.directory().file_name().context("a place without a name")?.to_string_lossy();
        let own = match self {
            Self::Docker => dockerd(place, &group)?,
            Self::Podman => podman(place, &group)?,
            Self::RootlessPodman => {
                let mut command = podman(place, &group)?;
                command.extend(["rootless".to_owned(), USER.to_string()]);
                command
            }
        };
        Ok(own.into_iter().chain(arguments.iter().map(|argument| (*argument).to_owned())).collect())
    }
}

fn dockerd(place: &Place, group: &str) -> Result<Vec<String>> {
    let at = |name: &str| place.path(name).display().to_string();
    fs::write(at("daemon.json"), "{}")?;
    let programs = place.path("bin");
    let hook = programs.join("nvidia-container-runtime-hook");
    fs::create_dir(&programs)?;
    fs::write(&hook, include_str!("nvidia-hook.sh"))?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    Ok(vec![
        // It acts on requests for NVIDIA's GPUs if it finds NVIDIA's program when it starts.
        "env".to_owned(),
        format!("PATH={}:{}", programs.display(), search_path().to_string_lossy()),
        "dockerd".to_owned(),
        format!("--config-file={}", at("daemon.json")),
        format!("--data-root={}", at("disk/data")),
        format!("--exec-root={}", at("disk/exec")),
        format!("--pidfile={}", at("disk/dockerd.pid")),
        format!("--host=unix://{}", at("docker.sock")),
        "--exec-opt=native.cgroupdriver=cgroupfs".to_owned(),
        format!("--cgroup-parent=/{group}"),
    ])
}

/// What these machines need: without `CAP_SYS_RESOURCE` the usual limits of processes cannot be set.
const CONTAINERS: &str = r#"
[containers]
default_ulimits = [
    "nofile=4096:4096",
    "nproc=8192:8192",
]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"#;

fn podman(place: &Place, group: &str) -> Result<Vec<String>> {
    let at = |name: &str| place.path(name).display().to_string();
    fs::write(at("containers.conf"), CONTAINERS)?;
    fs::write(at("podman.sh"), include_str!("podman.sh"))?;
    Ok(["bash".to_owned(), at("podman.sh"), place.directory().display().to_string(), group.to_owned()].into())
}
