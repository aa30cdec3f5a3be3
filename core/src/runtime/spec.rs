//! What a container is made of, in no engine's own terms.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::PathBuf,
    str::FromStr,
};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::id::{ContainerName, ImageRef};

/// Everything a runtime needs to create one container.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// Unique on this host.
    pub name: ContainerName,
    /// An image that is present.
    pub image: ImageRef,
    /// Replaces the image's `CMD`; empty keeps it.
    pub command: Vec<String>,
    /// Added to the image's environment.
    pub env: BTreeMap<String, EnvValue>,
    /// How the host service finds its containers again.
    pub labels: BTreeMap<String, String>,
    /// Allocates a terminal as the first process's standard streams.
    pub terminal: bool,
    /// How it reaches the network.
    pub network: Network,
    /// Published ports; only with [`Network::Bridge`].
    pub ports: Vec<PortMapping>,
    /// Directories and files of the host.
    pub mounts: Vec<Mount>,
    /// Memory file systems.
    pub tmpfs: Vec<Tmpfs>,
    /// Size of `/dev/shm`.
    pub shm_bytes: u64,
    /// Device nodes of the host, with access allowed.
    pub devices: Vec<Device>,
    /// How its GPU is given to it, if it has one.
    pub gpu: Option<Attachment>,
    /// What its processes may do.
    pub security: Security,
    /// What its processes may use.
    pub limits: Limits,
}

/// A value of an environment variable.
#[derive(Debug, Clone)]
pub enum EnvValue {
    /// May be shown.
    Plain(String),
    /// Never printed.
    Secret(SecretString),
}

impl EnvValue {
    /// The value itself; only for the engine.
    pub fn expose(&self) -> &str {
        match self {
            Self::Plain(value) => value,
            Self::Secret(value) => value.expose_secret(),
        }
    }
}

impl From<&str> for EnvValue {
    fn from(value: &str) -> Self {
        Self::Plain(value.to_owned())
    }
}

/// How a container reaches the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// A network of its own behind address translation, with published ports.
    #[default]
    Bridge,
    /// The host's network itself; published ports do not apply.
    Host,
    /// Loopback only.
    None,
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The host's address it is bound to; `0.0.0.0` for all.
    pub host_ip: IpAddr,
    /// Port on the host.
    pub host: u16,
    /// Port inside.
    pub container: u16,
    /// Transport.
    pub protocol: Protocol,
}

/// A bind mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// On the host; must exist.
    pub source: PathBuf,
    /// Inside.
    pub target: PathBuf,
    /// No writing through it.
    pub read_only: bool,
    /// Whether mounts made under it are seen on the other side.
    pub propagation: Propagation,
}

/// Mount propagation of a bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    /// Neither way.
    #[default]
    Private,
    /// The host's later mounts are seen inside.
    Slave,
    /// Both ways.
    Shared,
}

/// A memory file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Inside.
    pub target: PathBuf,
    /// Its limit.
    pub size_bytes: u64,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// On the host.
    pub host: PathBuf,
    /// Inside.
    pub container: PathBuf,
    /// Of `r`, `w`, `m`.
    pub permissions: String,
}

impl Device {
    /// The same path on both sides, with all access.
    pub fn same(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { host: path.clone(), container: path, permissions: "rwm".to_owned() }
    }
}

/// How a device is given to a container: data that a runtime applies. A GPU plugin fills in every form it can;
/// a runtime uses the best it supports, in the order `cdi`, `requests`, `devices`, and always `env`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Attachment {
    /// Qualified CDI names, `vendor/class=name`.
    pub cdi: Vec<String>,
    /// Docker's device requests.
    pub requests: Vec<DeviceRequest>,
    /// Plain device nodes.
    pub devices: Vec<Device>,
    /// Variables that tell the image's libraries which device is theirs.
    pub env: BTreeMap<String, String>,
}

/// A Docker device request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRequest {
    /// For example `nvidia`.
    pub driver: String,
    /// For example GPU UUIDs.
    pub ids: Vec<String>,
    /// Alternatives of capabilities that must all be had, for example `[["gpu"]]`.
    pub capabilities: Vec<Vec<String>>,
}

/// A Linux capability by its name without `CAP_`, for example `SYS_NICE`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Capability(String);

impl Capability {
    /// `SYS_NICE`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Linux 5.9's `include/uapi/linux/capability.h`, without `CAP_`.
const CAPABILITIES: &[&str] = &[
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "SYSLOG",
    "WAKE_ALARM",
];

/// Not a capability's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no Linux capability; write its name without CAP_, for example SYS_NICE")]
pub struct UnknownCapability(String);

impl TryFrom<String> for Capability {
    type Error = UnknownCapability;

    fn try_from(name: String) -> Result<Self, UnknownCapability> {
        let known = CAPABILITIES.contains(&name.as_str());
        if known { Ok(Self(name)) } else { Err(UnknownCapability(name)) }
    }
}

impl FromStr for Capability {
    type Err = UnknownCapability;

    fn from_str(name: &str) -> Result<Self, UnknownCapability> {
        Self::try_from(name.to_owned())
    }
}

impl From<Capability> for String {
    fn from(capability: Capability) -> String {
        capability.0
    }
}

/// What a container's processes may do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Security {
    /// All capabilities are dropped; these are added again.
    pub capabilities: BTreeSet<Capability>,
    /// Set-uid programs gain nothing.
    pub no_new_privileges: bool,
    /// System call filter.
    pub seccomp: Seccomp,
    /// An AppArmor profile that is loaded; `None` is the engine's default.
    pub apparmor: Option<String>,
}

/// System call filter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// The engine's own default profile.
    #[default]
    Default,
    /// No filter.
    Unconfined,
    /// The JSON text of a profile in Docker's format.
    Profile(String),
}

/// What a container's processes may use; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Memory, swap included.
    pub memory_bytes: Option<u64>,
    /// Weight against other containers; the engines' usual is 1024.
    pub cpu_shares: Option<u64>,
    /// Hard limit, in 10⁻⁹ CPUs.
    pub nano_cpus: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Open files per process, soft and hard.
    pub open_files: Option<u64>,
}

/// A port in a container's terms: `32262/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerPort {
    /// Port inside.
    pub port: u16,
    /// Transport.
    pub protocol: Protocol,
}

impl TryFrom<String> for ContainerPort {
    type Error = InvalidPort;

    fn try_from(text: String) -> Result<Self, InvalidPort> {
        let (port, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(InvalidPort(text)),
        };
        match port.parse() {
            Ok(port) if port != 0 => Ok(Self { port, protocol }),
            _ => Err(InvalidPort(text)),
        }
    }
}

impl FromStr for ContainerPort {
    type Err = InvalidPort;

    fn from_str(text: &str) -> Result<Self, InvalidPort> {
        Self::try_from(text.to_owned())
    }
}

impl From<ContainerPort> for String {
    fn from(port: ContainerPort) -> String {
        port.to_string()
    }
}

impl fmt::Display for ContainerPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol)
    }
}

/// Not a container's port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no port; write for example 32262/tcp or 32263/udp")]
pub struct InvalidPort(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_the_engines_write_them() {
        let udp: ContainerPort = "32263/udp".parse().unwrap();
        assert_eq!((udp.port, udp.protocol), (32263, Protocol::Udp));
        assert_eq!("80".parse::<ContainerPort>().unwrap().to_string(), "80/tcp");
        for bad in ["", "0/tcp", "70000/tcp", "80/sctp", "tcp", "80/"] {
            assert!(bad.parse::<ContainerPort>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn capabilities_are_checked_by_name() {
        assert!("SYS_NICE".parse::<Capability>().is_ok());
        assert!("CAP_SYS_NICE".parse::<Capability>().is_err());
        assert!("sys_nice".parse::<Capability>().is_err());
    }

    #[test]
    fn a_secret_variable_is_never_printed() {
        let value = EnvValue::Secret("hunter2".into());
        assert!(!format!("{value:?}").contains("hunter2"));
    }
}
