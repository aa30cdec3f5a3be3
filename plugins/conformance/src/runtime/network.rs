//! Ports and networks.

use std::net::{IpAddr, Ipv4Addr, TcpListener as StdListener, UdpSocket as StdSocket};

use host_core::{
    ErrorKind,
    runtime::{ContainerState, Feature, Network, Protocol},
};
use tokio::net::UdpSocket;

use super::{
    Fixture,
    lifecycle::ensure_fails,
    needs,
    trial::{DATAGRAM_PORT, Trial, answered, free_port, http, lacking, published},
};
use crate::{ensure, report::Verdict};

pub(super) async fn published_ports_are_reachable(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, &[Feature::Isolation])?;
    let datagrams = published(DATAGRAM_PORT, Protocol::Udp)?;
    let trial = Trial::of(fixture)?.serving()?.with(|spec| {
        spec.ports.push(datagrams);
        spec.env.insert("FRACTAL_MANDELBOX_ID".to_owned(), "reachable".into());
    });
    trial.start().await?;
    let facts = trial.facts().await?;
    ensure!(facts["id"] == "reachable", "it answers as {}", facts["id"]);
    let answer = answered(|| datagram(datagrams.host)).await;
    ensure!(answer == "reachable", "it answers datagrams with {answer:?}");
    Ok(())
}

/// Whatever is answered to one byte.
async fn datagram(port: u16) -> std::io::Result<String> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect((Ipv4Addr::LOCALHOST, port)).await?;
    socket.send(b"?").await?;
    let mut answer = [0; 256];
    let length = socket.recv(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

pub(super) async fn a_taken_port_is_told_and_can_be_tried_again(fixture: &dyn Fixture) -> Verdict {
    let holder = Trial::of(fixture)?.serving()?;
    holder.start().await?;
    let second = Trial::of(fixture)?.with(|spec| {
        spec.network = Network::Bridge;
        spec.ports = holder.spec.ports.clone();
    });
    second.create().await?;
    let started = second.runtime.start(&second.name()).await;
    ensure_fails!(started, ErrorKind::AddressInUse, "starting with another container's port");
    let state = holder.seen().await?.state;
    ensure!(state == ContainerState::Running, "the holder of the port is {state:?}");

    holder.remove().await?;
    second.runtime.start(&second.name()).await?;
    let state = second.seen().await?.state;
    ensure!(state == ContainerState::Running, "started at last, it is {state:?}");
    Ok(())
}

pub(super) async fn ports_are_free_as_soon_as_their_container_is_removed(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, &[Feature::Isolation])?;
    let datagrams = published(DATAGRAM_PORT, Protocol::Udp)?;
    let trial = Trial::of(fixture)?.serving()?.with(|spec| spec.ports.push(datagrams));
    trial.start().await?;
    for port in &trial.spec.ports {
        ensure!(!is_free((port.host_ip, port.host), port.protocol), "nobody holds {port:?}");
    }
    trial.remove().await?;
    for port in &trial.spec.ports {
        ensure!(is_free((port.host_ip, port.host), port.protocol), "somebody still holds {port:?}");
    }
    Ok(())
}

fn is_free(address: (IpAddr, u16), protocol: Protocol) -> bool {
    match protocol {
        Protocol::Tcp => StdListener::bind(address).is_ok(),
        Protocol::Udp => StdSocket::bind(address).is_ok(),
    }
}

pub(super) async fn ports_without_a_network_are_refused(fixture: &dyn Fixture) -> Verdict {
    for network in [Network::None, Network::Host] {
        let trial = Trial::of(fixture)?.serving()?.with(|spec| spec.network = network);
        let created = trial.runtime.create(&trial.spec).await;
        ensure_fails!(created, ErrorKind::Invalid, "publishing ports with {network:?}");
    }
    Ok(())
}

pub(super) async fn the_host_network_is_the_hosts(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, &[Feature::Isolation, Feature::HostNetwork])?;
    let ports = [free_port(Protocol::Tcp)?, free_port(Protocol::Udp)?, free_port(Protocol::Tcp)?];
    let listed = ports.map(|port| port.to_string()).join(",");
    let trial = Trial::of(fixture)?.with(|spec| {
        spec.network = Network::Host;
        spec.env.insert("MANDELBOX_PORTS".to_owned(), listed.as_str().into());
    });
    trial.start().await?;
    let answer = answered(|| http(ports[0], "GET", "/facts.json")).await;
    let facts: serde_json::Value = serde_json::from_str(&answer).map_err(lacking)?;
    ensure!(facts["pid"] == 1, "something else answers: {facts}");
    Ok(())
}
