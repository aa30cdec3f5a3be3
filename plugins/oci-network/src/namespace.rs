//! Making network namespaces. A thread made for it enters the new one, leaves it and ends; nothing is mounted,
//! so a namespace vanishes with its last process and file descriptor.

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use host_core::PluginError;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage},
};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::{sync::oneshot, time::timeout};

use crate::{
    error, host,
    name::{GROUP, HOST_MAC},
    netlink::Netlink,
    subnet::Subnet,
};

/// The interface inside.
const INSIDE: &str = "eth0";

/// The first bytes of the container's end's hardware address; its IPv4 address follows. Set at both ends, so that no
/// device manager on the host changes them later under a container's neighbour table.
const CONTAINER_MAC: [u8; 2] = [0x02, 0x63];

/// Both ends are active by then, or something is wrong; it takes no time, or on kernels before 6.9 a work queue's.
const ACTIVE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A container's network, ready to be entered.
#[derive(Debug)]
pub struct Network {
    /// The container's address; give it back by [`Networks::release`](crate::Networks::release).
    pub address: Ipv4Addr,
    /// The host's end, where its default route leads.
    pub gateway: Ipv4Addr,
    /// The namespace itself. The network is gone when this is closed and no process is in it.
    pub namespace: OwnedFd,
}

/// What one network is to be like.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The host's end.
    pub(crate) interface: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) mtu: u32,
}

/// A namespace with nothing but its loopback interface, up.
///
/// # Errors
/// `Denied` without privileges.
pub async fn isolated() -> Result<OwnedFd, PluginError> {
    on_own_thread("making a network namespace", error::DEADLINE, || Ok(empty()?.0)).await
}

/// Makes a network by `plan`. `kept` is dropped on failure, and comes back with the network otherwise; it lives
/// as long as the work goes on, also when nobody waits for it any more.
pub(crate) async fn make<K: Send + 'static>(
    plan: Plan,
    deadline: Duration,
    kept: K,
) -> Result<(Network, K), PluginError> {
    on_own_thread("making a container's network", deadline, move || {
        let (namespace, mut inside) = empty()?;
        join(&plan, &namespace, &mut inside)?;
        Ok((Network { address: plan.address, gateway: plan.gateway, namespace }, kept))
    })
    .await
}

/// Runs `work` on a thread of its own, which ends with it. After the deadline nobody waits for it any more.
async fn on_own_thread<T: Send + 'static>(
    doing: &'static str,
    deadline: Duration,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, PluginError> {
    let (done, wait) = oneshot::channel();
    let body = move || drop(done.send(work()));
    thread::Builder::new()
        .name("network".to_owned())
        .spawn(body)
        .map_err(|error| error::kernel("starting a thread", error))?;
    match timeout(deadline, wait).await {
        Ok(Ok(result)) => result.map_err(|error| error::kernel(doing, error)),
        Ok(Err(_)) => Err(error::lost(doing)),
        Err(_) => Err(error::late(doing)),
    }
}

/// Makes a namespace, prepares it, and goes back; only on a thread that ends soon.
fn empty() -> io::Result<(OwnedFd, Netlink)> {
    let home = this_thread()?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let prepared = prepare();
    setns(home, CloneFlags::CLONE_NEWNET)?;
    prepared
}

fn this_thread() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

fn prepare() -> io::Result<(OwnedFd, Netlink)> {
    let mut inside = Netlink::route()?;
    // Loopback keeps its ::1, which programs expect; no other interface gets any IPv6.
    host::sysctl_if_there("ipv6/conf/default/disable_ipv6", "1")?;
    host::sysctl("ipv4/ip_unprivileged_port_start", "0")?;
    host::sysctl("ipv4/ping_group_range", "0 2147483647")?;
    let loopback = host::index(&mut inside, "lo")?;
    host::up(&mut inside, loopback)?;
    Ok((this_thread()?, inside))
}

/// Joins the namespace to this thread's, the host's.
fn join(plan: &Plan, namespace: &OwnedFd, inside: &mut Netlink) -> io::Result<()> {
    let mut host = Netlink::route()?;
    let create = |host: &mut Netlink| {
        host.ask(RouteNetlinkMessage::NewLink(pair(plan, namespace)), NLM_F_CREATE | NLM_F_EXCL)
    };
    match create(&mut host) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // The address is free, so this is of a container whose namespace the kernel has not cleared yet.
            let own = Subnet::around(plan.address, 32);
            if !host::links(&mut host, &plan.interface, own)?.contains(&plan.interface) {
                let message = format!("the interface {} is another store's or program's", plan.interface);
                return Err(io::Error::other(message));
            }
            host::delete_link(&mut host, &plan.interface)?;
            create(&mut host)?;
        }
        other => other?,
    }
    let ends = both_ends(plan, &mut host, inside);
    if ends.is_err() {
        let _ = host::delete_link(&mut host, &plan.interface);
    }
    ends
}

fn both_ends(plan: &Plan, host: &mut Netlink, inside: &mut Netlink) -> io::Result<()> {
    let index = host_end(plan, host)?;
    let index_inside = container_end(plan, inside)?;
    activate(host, index)?;
    activate(inside, index_inside)
}

/// Otherwise the first packet may be lost, and a client waits a second before it tries again.
fn activate(netlink: &mut Netlink, interface: u32) -> io::Result<()> {
    let deadline = Instant::now() + ACTIVE;
    while !host::is_active(netlink, interface)? {
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "an interface does not become active"));
        }
        thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// The host's end stays down until its settings are made.
fn host_end(plan: &Plan, host: &mut Netlink) -> io::Result<u32> {
    let interface = &plan.interface;
    host::sysctl_if_there(&format!("ipv6/conf/{interface}/disable_ipv6"), "1")?;
    // 127.0.0.1:port reaches a container only if packets from loopback may leave here.
    host::sysctl(&format!("ipv4/conf/{interface}/route_localnet"), "1")?;
    let index = host::index(host, interface)?;
    host::up(host, index)?;
    host::add_address(host, index, plan.gateway)?;
    host::route_on_link(host, plan.address, index, plan.gateway)?;
    Ok(index)
}

fn container_end(plan: &Plan, inside: &mut Netlink) -> io::Result<u32> {
    let index = host::index(inside, INSIDE)?;
    host::up(inside, index)?;
    host::add_address(inside, index, plan.address)?;
    host::route_on_link(inside, plan.gateway, index, plan.address)?;
    host::default_route(inside, plan.gateway, index)?;
    Ok(index)
}

fn pair(plan: &Plan, namespace: &OwnedFd) -> LinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(INSIDE.to_owned()),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
        LinkAttribute::Address(mac(CONTAINER_MAC, plan.address)),
        LinkAttribute::Mtu(plan.mtu),
    ];
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(plan.interface.clone()),
        LinkAttribute::Group(GROUP),
        LinkAttribute::Address(mac(HOST_MAC, plan.address)),
        LinkAttribute::Mtu(plan.mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    link
}

fn mac(start: [u8; 2], address: Ipv4Addr) -> Vec<u8> {
    [&start[..], &address.octets()].concat()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use host_core::ErrorKind;

    use super::*;

    #[tokio::test]
    async fn a_stuck_thread_is_not_waited_for() {
        let (release, stuck) = mpsc::channel::<()>();
        let work = move || Ok(stuck.recv().is_ok());
        let waited = on_own_thread("being stuck", Duration::from_millis(20), work).await;
        assert_eq!(waited.unwrap_err().kind(), ErrorKind::Timeout);
        drop(release);
    }
}
