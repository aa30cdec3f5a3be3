//! Who this host is: from its settings, or from EC2.
//!
//! It is asked once, before anything else is begun, and what was found stays for the life of the process: a metadata
//! service that fails later harms nobody. What is set in `[instance]` comes before what a source says.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use anyhow::Context as _;
use host_config::{InstanceSettings, Loaded, Metadata};
use host_core::{InstanceName, pubsub::InstanceFacts};

use crate::build_info::COMMIT;

mod ec2;
mod imds;
mod tags;

pub use ec2::Ec2Error;
pub(crate) use imds::Imds;
pub use imds::ImdsError;
pub use tags::TagError;

/// Whose mandelboxes are where nobody is asked who they are.
pub const LOCAL_USER: &str = "localdev_user_id";

/// The facts that the configured source gives.
///
/// # Errors
/// The source cannot tell who this host is.
pub async fn find(loaded: &Loaded) -> anyhow::Result<InstanceFacts> {
    let instance = &loaded.settings.instance;
    match instance.metadata {
        Metadata::Static => from_settings(loaded),
        Metadata::Ec2 => {
            let facts = ec2::facts(instance).await?;
            tracing::info!(
                instance = %facts.name, id = facts.cloud_id, image = facts.image_id, kind = facts.instance_type,
                region = facts.region, ip = facts.ip, "this host is an instance of EC2"
            );
            Ok(facts)
        }
        _ => anyhow::bail!("this build has no such source; set instance.metadata = \"static\""),
    }
}

/// Absent facts get values that say what they are: this is how a laptop runs.
pub(crate) fn from_settings(loaded: &Loaded) -> anyhow::Result<InstanceFacts> {
    let instance = &loaded.settings.instance;
    let name = match &instance.name {
        Some(name) => name.clone(),
        None => rustix::system::uname().nodename().to_str()?.parse().context("this machine's name")?,
    };
    let or_local = |value: &Option<String>| value.clone().unwrap_or_else(|| "local".to_owned());
    let ip = instance.ip.unwrap_or_else(|| address(loaded.settings.mandelbox.publish_ip));
    Ok(InstanceFacts {
        cloud_id: instance.id.clone().unwrap_or_else(|| name.to_string()),
        image_id: or_local(&instance.image_id),
        region: or_local(&instance.region),
        instance_type: or_local(&instance.instance_type),
        ip: ip.to_string(),
        commit: commit(instance),
        name,
    })
}

/// The name that is set, or what a machine without a cloud has; for those who only look.
pub(crate) fn likely_name(set: Option<&InstanceName>) -> Option<InstanceName> {
    let machine = || rustix::system::uname().nodename().to_str().ok()?.parse().ok();
    set.cloned().or_else(machine)
}

fn commit(instance: &InstanceSettings) -> String {
    instance.commit.clone().unwrap_or_else(|| COMMIT.to_owned())
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
