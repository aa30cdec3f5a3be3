//! The section `[runtime.oci]`.

use std::path::PathBuf;

use serde::Deserialize;

/// The section's keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where images and containers are kept: a file system that overlayfs takes, with room for both.
    pub root: PathBuf,
    /// Where containers' small files are, best in memory; by default in `paths.state`.
    pub state: Option<PathBuf>,
    /// How many supervisors wait for a container.
    pub ready: usize,
    /// An OCI runtime to use instead of the one inside: `crun`, `runc`, `runsc`, …, by path or found in `PATH`.
    pub binary: Option<PathBuf>,
    /// The control group that the containers' own lie in, from the root of each hierarchy.
    pub cgroup_parent: PathBuf,
    /// How much of a container's output is kept: the newest, in two files of at most this size each.
    pub log_bytes: u64,
    /// `[runtime.oci.images]`
    pub images: oci_images::Config,
    /// `[runtime.oci.network]`
    pub network: oci_network::Config,
    /// Directories of CDI device descriptions; in a later one a device replaces its namesake of an earlier one.
    pub cdi: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/host-service/oci".into(),
            state: None,
            ready: 4,
            binary: None,
            cgroup_parent: "/host-service".into(),
            log_bytes: 10 << 20,
            images: oci_images::Config::default(),
            network: oci_network::Config::default(),
            cdi: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
        }
    }
}
