//! `[mandelbox]`: what every mandelbox is made of.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use host_core::{
    AppName,
    runtime::{Capability, ContainerPort, Device, EnvValue, Limits, Mount, Network, Propagation, Tmpfs},
};
use serde::Deserialize;

use super::{
    de,
    value::{ImageTemplate, NumberRange, Pull, SeccompChoice},
};

/// What every mandelbox is made of.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MandelboxSettings {
    /// Where an app's image is found.
    pub image: ImageTemplate,
    /// The app of a request that names none.
    pub default_app: AppName,
    /// When an image is fetched.
    pub pull: Pull,
    /// Any local image whose name ends in the app's will do.
    pub match_local_images: bool,
    /// A `json_transport` request for a mandelbox that nobody allocated allocates it; local profiles only.
    pub allocate_on_request: bool,
    /// Replaces the image's `CMD`; empty keeps it.
    pub command: Vec<String>,
    /// The container's ports; each gets a host port.
    pub ports: Vec<ContainerPort>,
    /// Host ports to give out, within 1025 to 65535.
    pub port_range: NumberRange,
    /// The host's address that ports are published on.
    pub publish_ip: IpAddr,
    /// How long a port rests after use.
    #[serde(deserialize_with = "de::duration")]
    pub port_quarantine: Duration,
    /// Virtual consoles to give out, within 1 to 63.
    pub tty_range: NumberRange,
    /// Mandelboxes at once, 0 for `None`: as many as ports, TTYs and GPU slots allow.
    #[serde(deserialize_with = "de::nonzero")]
    pub capacity: Option<u32>,
    /// How it reaches the network.
    pub network: Network,
    /// Allocates a terminal as the first process's standard streams.
    pub terminal: bool,
    /// What the file `timeout` says: seconds the application waits for its client, −1 for ever.
    pub client_timeout_seconds: i64,
    /// A client has its answer only when the application has said that it can take it.
    pub wait_for_application: bool,
    /// Owner of the files given to it.
    pub uid: u32,
    /// Group of the files given to it.
    pub gid: u32,
    /// What its own variables are called.
    pub env: VariableNames,
    /// More variables; those that look like secrets are never printed.
    #[serde(deserialize_with = "de::environment")]
    pub environment: BTreeMap<String, EnvValue>,
    /// Directories and files of the host, beside the service's own.
    pub mounts: Vec<MountSettings>,
    /// Memory file systems.
    pub tmpfs: Vec<TmpfsSettings>,
    /// Device nodes of the host, beside input devices and GPU.
    pub devices: Vec<DeviceSettings>,
    /// All capabilities are dropped; these are added again.
    pub capabilities: BTreeSet<Capability>,
    /// Set-uid programs gain nothing.
    pub no_new_privileges: bool,
    /// System call filter.
    pub seccomp: SeccompChoice,
    /// An AppArmor profile that is loaded; `None` is the engine's default.
    #[serde(deserialize_with = "de::text")]
    pub apparmor: Option<String>,
    /// What its processes may use.
    pub limits: LimitSettings,
    /// Deadlines of the steps of its life.
    pub timeouts: MandelboxTimeouts,
    /// From `SIGTERM` to the kill when it is stopped.
    #[serde(deserialize_with = "de::duration")]
    pub stop_grace: Duration,
    /// The identical request gets the same answer within this time after the first.
    #[serde(deserialize_with = "de::duration")]
    pub answer_again: Duration,
}

/// Names of the variables that tell a mandelbox about itself; `None` is not given.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VariableNames {
    /// The AES key, 32 hex digits.
    #[serde(deserialize_with = "de::text")]
    pub aes_key: Option<String>,
    /// The mandelbox id.
    #[serde(deserialize_with = "de::text")]
    pub id: Option<String>,
    /// The number of its virtual console.
    #[serde(deserialize_with = "de::text")]
    pub tty: Option<String>,
    /// The index of its GPU.
    #[serde(deserialize_with = "de::text")]
    pub gpu_index: Option<String>,
    /// The profile's name.
    #[serde(deserialize_with = "de::text")]
    pub environment: Option<String>,
}

impl VariableNames {
    /// Each key with the name it gives, where it gives one.
    pub(crate) fn given(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("aes_key", &self.aes_key),
            ("id", &self.id),
            ("tty", &self.tty),
            ("gpu_index", &self.gpu_index),
            ("environment", &self.environment),
        ]
        .into_iter()
        .filter_map(|(key, name)| Some((key, name.as_deref()?)))
    }
}

/// A bind mount.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountSettings {
    /// On the host.
    pub source: PathBuf,
    /// Inside.
    pub target: PathBuf,
    /// No writing through it; false when left out.
    #[serde(default)]
    pub read_only: bool,
    /// Whether mounts made under it are seen on the other side; private when left out.
    #[serde(default)]
    pub propagation: Propagation,
    /// Left out where the host has no `source`, instead of failing; false when left out.
    #[serde(default)]
    pub optional: bool,
}

impl From<&MountSettings> for Mount {
    fn from(settings: &MountSettings) -> Self {
        Self {
            source: settings.source.clone(),
            target: settings.target.clone(),
            read_only: settings.read_only,
            propagation: settings.propagation,
        }
    }
}

/// A memory file system.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TmpfsSettings {
    /// Inside.
    pub target: PathBuf,
    /// Its limit.
    pub size_bytes: u64,
}

impl From<&TmpfsSettings> for Tmpfs {
    fn from(settings: &TmpfsSettings) -> Self {
        Self { target: settings.target.clone(), size_bytes: settings.size_bytes }
    }
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSettings {
    /// On the host.
    pub host: PathBuf,
    /// Inside; the same path when left out.
    #[serde(default)]
    pub container: Option<PathBuf>,
    /// Of `r`, `w`, `m`; all when left out.
    #[serde(default = "all_access")]
    pub permissions: String,
    /// Left out where the host has none, instead of failing; false when left out.
    #[serde(default)]
    pub optional: bool,
}

fn all_access() -> String {
    "rwm".to_owned()
}

impl From<&DeviceSettings> for Device {
    fn from(settings: &DeviceSettings) -> Self {
        Self {
            host: settings.host.clone(),
            container: settings.container.as_ref().unwrap_or(&settings.host).clone(),
            permissions: settings.permissions.clone(),
        }
    }
}

/// What a mandelbox's processes may use; 0 for `None`: unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitSettings {
    /// Memory, swap included.
    #[serde(deserialize_with = "de::nonzero")]
    pub memory_bytes: Option<u64>,
    /// Weight against other containers; the engines' usual is 1024.
    #[serde(deserialize_with = "de::nonzero")]
    pub cpu_shares: Option<u64>,
    /// Hard limit, in 10⁻⁹ CPUs.
    #[serde(deserialize_with = "de::nonzero")]
    pub nano_cpus: Option<u64>,
    /// Processes and threads.
    #[serde(deserialize_with = "de::nonzero")]
    pub pids: Option<u64>,
    /// Open files per process, soft and hard; `None` is the engine's own.
    #[serde(deserialize_with = "de::nonzero")]
    pub open_files: Option<u64>,
    /// Size of `/dev/shm`.
    pub shm_bytes: u64,
}

impl From<LimitSettings> for Limits {
    fn from(settings: LimitSettings) -> Self {
        Self {
            memory_bytes: settings.memory_bytes,
            cpu_shares: settings.cpu_shares,
            nano_cpus: settings.nano_cpus,
            pids: settings.pids,
            open_files: settings.open_files,
        }
    }
}

/// Deadlines of the steps of a mandelbox's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MandelboxTimeouts {
    /// Claiming its row.
    #[serde(deserialize_with = "de::duration")]
    pub claim: Duration,
    /// Finding its image, or fetching it.
    #[serde(deserialize_with = "de::duration")]
    pub image: Duration,
    /// Making its directories and files.
    #[serde(deserialize_with = "de::duration")]
    pub prepare: Duration,
    /// Creating the container.
    #[serde(deserialize_with = "de::duration")]
    pub create: Duration,
    /// Starting it.
    #[serde(deserialize_with = "de::duration")]
    pub start: Duration,
    /// Waiting for the client's request.
    #[serde(deserialize_with = "de::duration")]
    pub client: Duration,
    /// Waiting for the application to be ready for its client.
    #[serde(deserialize_with = "de::duration")]
    pub application: Duration,
    /// Stopping it, its grace included.
    #[serde(deserialize_with = "de::duration")]
    pub stop: Duration,
    /// Removing it.
    #[serde(deserialize_with = "de::duration")]
    pub remove: Duration,
}
