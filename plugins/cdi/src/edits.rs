//! What a specification asks a runtime to change in a container, as the CDI specification writes it.
//!
//! Unknown members are refused, as the reference implementation does: an edit that is not understood would leave a
//! container with half a device.

use std::path::PathBuf;

use serde::Deserialize;

/// Changes to one container. Nothing here is in force until a runtime applies it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Edits {
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// Nodes to make inside, with access allowed.
    pub device_nodes: Vec<DeviceNode>,
    /// Directories and files of the host.
    pub mounts: Vec<Mount>,
    /// Programs of the host, run as root around the container's life.
    pub hooks: Vec<Hook>,
    /// Groups that the container's first process is added to.
    #[serde(rename = "additionalGids")]
    pub additional_gids: Vec<u32>,
    /// A class of Intel's Resource Director Technology.
    pub intel_rdt: Option<IntelRdt>,
    /// Interfaces of the host that move into the container's network.
    pub net_devices: Vec<NetDevice>,
}

impl Edits {
    /// Whether applying this changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeviceNode {
    /// Inside.
    pub path: PathBuf,
    /// On the host; the same as inside when left out.
    pub host_path: Option<PathBuf>,
    /// `b`, `c`, `u` or `p`; left out, the host's node tells it and the numbers.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Major number.
    pub major: Option<i64>,
    /// Minor number.
    pub minor: Option<i64>,
    /// Permission bits of the node.
    pub file_mode: Option<u32>,
    /// Of `r`, `w`, `m`; all of them when left out.
    pub permissions: Option<String>,
    /// Its owner.
    pub uid: Option<u32>,
    /// Its group.
    pub gid: Option<u32>,
}

impl DeviceNode {
    /// Where the node is on the host.
    pub fn on_host(&self) -> &PathBuf {
        self.host_path.as_ref().unwrap_or(&self.path)
    }
}

/// A mount, nearly always a bind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mount {
    /// What is mounted.
    pub host_path: PathBuf,
    /// Inside.
    pub container_path: PathBuf,
    /// As the OCI runtime specification has them.
    pub options: Vec<String>,
    /// A file system's type; a bind when left out.
    #[serde(rename = "type")]
    pub kind: Option<String>,
}

/// When a hook runs; the OCI runtime specification says what each means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HookPoint {
    /// Deprecated there; old specifications still use it.
    Prestart,
    /// In the host's namespaces, before the root is changed.
    CreateRuntime,
    /// In the container's namespaces, before the root is changed.
    CreateContainer,
    /// Inside, before the first program.
    StartContainer,
    /// On the host, once the first program runs.
    Poststart,
    /// On the host, after the container is gone.
    Poststop,
}

/// A program of the host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    /// When.
    #[serde(rename = "hookName")]
    pub point: HookPoint,
    /// Absolute.
    pub path: PathBuf,
    /// With the program's own name first.
    #[serde(default)]
    pub args: Vec<String>,
    /// `NAME=value` each.
    #[serde(default)]
    pub env: Vec<String>,
    /// In seconds.
    #[serde(default)]
    pub timeout: Option<i64>,
}

/// A class of Intel's Resource Director Technology.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IntelRdt {
    /// The class's name.
    #[serde(rename = "closID")]
    pub clos_id: Option<String>,
    /// Cache allocation.
    pub l3_cache_schema: Option<String>,
    /// Memory bandwidth.
    pub mem_bw_schema: Option<String>,
    /// Lines of the class's schemata file.
    pub schemata: Vec<String>,
    /// Monitoring of all kinds.
    pub enable_monitoring: bool,
    /// Cache monitoring, until version 1.0.
    #[serde(rename = "enableCMT")]
    pub enable_cmt: bool,
    /// Bandwidth monitoring, until version 1.0.
    #[serde(rename = "enableMBM")]
    pub enable_mbm: bool,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetDevice {
    /// Its name on the host.
    pub host_interface_name: String,
    /// Its name inside.
    pub name: String,
}
