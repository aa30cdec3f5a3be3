//! The section `[runtime.oci.network]`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::subnet::Subnet;

/// How containers' networks are made; section `[runtime.oci.network]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The block containers' addresses come from. Default: a /20 of 10.64.0.0/10 that nothing on this host uses.
    pub subnet: Option<Subnet>,
    /// Networks kept ready, so that a container need not wait for its own; 0 makes each when it is needed.
    pub ready: usize,
    /// Name servers for containers, IPv4. Empty: those of the host that a container can reach.
    pub dns: Vec<IpAddr>,
    /// Largest packet in bytes. Default: that of the interface of the host's default route, or 1500.
    pub mtu: Option<u32>,
}

impl Default for Config {
    fn default() -> Self {
        Self { subnet: None, ready: 4, dns: Vec::new(), mtu: None }
    }
}
