//! Forgetting the kernel's memory of UDP flows.
//!
//! Address translation is decided by a flow's first packet. A client that keeps sending datagrams keeps its flow,
//! and would go on reaching a container that is gone, or nothing at all, after its port was published anew.
//!
//! To find the flows to a port the kernel walks its whole table, of all namespaces: 10 ms on a machine with more
//! than 4 GB, however few flows there are. So a task does it after the change is answered, for all ports that
//! came up meanwhile, and rests afterwards.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple},
};
use tokio::{sync::mpsc::UnboundedReceiver, time::timeout_at};

use crate::{error, host, netlink::Netlink};

/// The task rests this many times as long as it worked: it takes a tenth of a processor at most, and a client
/// waits for a tenth of a second at most.
const REST: u32 = 9;

/// The task: forgets the flows to the UDP ports that are sent, until the senders are gone.
pub(crate) async fn forget_all(mut changed: UnboundedReceiver<HashSet<u16>>) {
    let mut pending = HashSet::new();
    while let Some(ports) = changed.recv().await {
        pending.extend(ports);
        let mut open = true;
        while open && !pending.is_empty() {
            let started = Instant::now();
            while let Ok(ports) = changed.try_recv() {
                pending.extend(ports);
            }
            let ports = std::mem::take(&mut pending);
            if let Err(error) = error::blocking("forgetting UDP flows", move || forget(&ports)).await {
                tracing::warn!(error = %host_core::chain(&error), "old UDP flows may go on for a while");
            }
            let rested = tokio::time::Instant::now() + started.elapsed() * REST;
            while let Ok(more) = timeout_at(rested, changed.recv()).await {
                let Some(ports) = more else {
                    open = false;
                    break;
                };
                pending.extend(ports);
            }
        }
    }
    if !pending.is_empty() {
        let _ = error::blocking("forgetting UDP flows", move || forget(&pending)).await;
    }
}

/// Deletes the flows to these UDP ports of this host.
fn forget(ports: &HashSet<u16>) -> io::Result<()> {
    let local: HashSet<_> = host::addresses(&mut Netlink::route()?)?.into_iter().collect();
    let mut netlink = Netlink::netfilter()?;
    let flows = netlink.dump(message(ConntrackMessage::Get(Vec::new())))?;
    for original in flows.into_iter().filter_map(original) {
        let is_ours = read(&original)
            .is_some_and(|(to, port)| ports.contains(&port) && (to.is_loopback() || local.contains(&to)));
        if is_ours {
            delete(&mut netlink, original)?;
        }
    }
    Ok(())
}

/// Ended in the meantime is fine.
fn delete(netlink: &mut Netlink, original: Vec<Tuple>) -> io::Result<()> {
    let flow = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(original)]);
    match netlink.ask(message(flow), 0) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn message(inner: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0), inner)
}

/// Where the flow's first packet was sent.
fn original(flow: NetfilterMessage) -> Option<Vec<Tuple>> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = flow.inner else {
        return None;
    };
    attributes.into_iter().find_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(tuple) => Some(tuple),
        _ => None,
    })
}

/// The destination, if it is UDP over IPv4.
fn read(tuple: &[Tuple]) -> Option<(Ipv4Addr, u16)> {
    let (mut address, mut port, mut udp) = (None, None, false);
    for part in tuple {
        match part {
            Tuple::Ip(parts) => address = parts.iter().find_map(destination).or(address),
            Tuple::Proto(parts) => {
                udp |= parts.contains(&ProtoTuple::Protocol(Protocol::Udp));
                port = parts.iter().find_map(destination_port).or(port);
            }
            _ => {}
        }
    }
    udp.then_some((address?, port?))
}

fn destination(part: &IPTuple) -> Option<Ipv4Addr> {
    match part {
        IPTuple::DestinationAddress(IpAddr::V4(address)) => Some(*address),
        _ => None,
    }
}

fn destination_port(part: &ProtoTuple) -> Option<u16> {
    match part {
        ProtoTuple::DestinationPort(port) => Some(*port),
        _ => None,
    }
}
