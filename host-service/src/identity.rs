//! Who this host is.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use host_config::{Loaded, Metadata};
use host_core::{InstanceName, pubsub::InstanceFacts};

use crate::build_info::COMMIT;

/// Whose mandelboxes are where nobody is asked who they are.
pub const LOCAL_USER: &str = "localdev_user_id";

/// The facts that the configured source gives. `capacity` is how many mandelboxes this host can run.
///
/// # Errors
/// The source cannot tell who this host is.
pub fn facts(loaded: &Loaded, capacity: u32) -> anyhow::Result<InstanceFacts> {
    match loaded.settings.instance.metadata {
        Metadata::Static => from_settings(loaded, capacity),
        _ => anyhow::bail!(
            "this build has no such source of instance metadata; set instance.metadata = \"static\""
        ),
    }
}

/// Absent facts get values that say what they are: this is how a laptop runs.
fn from_settings(loaded: &Loaded, capacity: u32) -> anyhow::Result<InstanceFacts> {
    let instance = &loaded.settings.instance;
    let name = name(instance.name.as_ref())?;
    let or_local = |value: &Option<String>| value.clone().unwrap_or_else(|| "local".to_owned());
    let ip = instance.ip.unwrap_or_else(|| address(loaded.settings.mandelbox.publish_ip));
    Ok(InstanceFacts {
        cloud_id: instance.id.clone().unwrap_or_else(|| name.to_string()),
        image_id: or_local(&instance.image_id),
        region: or_local(&instance.region),
        instance_type: or_local(&instance.instance_type),
        ip: ip.to_string(),
        commit: instance.commit.clone().unwrap_or_else(|| COMMIT.to_owned()),
        capacity,
        name,
    })
}

/// The name set, or the machine's.
///
/// # Errors
/// The machine's name cannot be used.
pub fn name(set: Option<&InstanceName>) -> anyhow::Result<InstanceName> {
    match set {
        Some(name) => Ok(name.clone()),
        None => Ok(rustix::system::uname().nodename().to_str()?.parse()?),
    }
}

/// The address that mandelboxes are published on, or the one that packets to the outside would leave from.
fn address(published: IpAddr) -> IpAddr {
    if !published.is_unspecified() {
        return published;
    }
    // Connecting a UDP socket sends nothing; it only asks the routing table (RFC 5737's address for documentation).
    let routed = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    routed.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}
