//! The host's side: its links and routes.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkMessage, State},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use crate::{
    name::{DOOMED, GROUP, HOST_MAC, ROUTE_PROTOCOL},
    netlink::Netlink,
    subnet::Subnet,
};

/// Ethernet's, where the host has no default route to learn it from.
const USUAL_MTU: u32 = 1500;

/// A route of the host's, of any table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    pub(crate) to: Subnet,
    pub(crate) kind: RouteType,
    pub(crate) protocol: RouteProtocol,
    pub(crate) interface: Option<u32>,
}

impl Route {
    /// Whether a service of ours has claimed this block.
    pub(crate) fn is_claim(&self) -> bool {
        self.kind == RouteType::BlackHole && self.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
    }

    fn is_default(&self) -> bool {
        self.to.prefix() == 0 && self.kind == RouteType::Unicast
    }
}

/// Every IPv4 route; the host's own addresses are among them.
pub(crate) fn routes(netlink: &mut Netlink) -> io::Result<Vec<Route>> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    let answers = netlink.dump(RouteNetlinkMessage::GetRoute(request))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Some(read(&route)),
            _ => None,
        })
        .collect())
}

fn read(route: &RouteMessage) -> Route {
    let mut address = Ipv4Addr::UNSPECIFIED;
    let mut interface = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(to)) => address = *to,
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    Route {
        to: Subnet::around(address, route.header.destination_prefix_length),
        kind: route.header.kind,
        protocol: route.header.protocol,
        interface,
    }
}

/// Addresses of the host itself, loopback included.
pub(crate) fn addresses(netlink: &mut Netlink) -> io::Result<Vec<Ipv4Addr>> {
    let local = |route: &Route| route.kind == RouteType::Local && route.to.prefix() == 32;
    Ok(routes(netlink)?.iter().filter(|route| local(route)).map(|route| route.to.first()).collect())
}

/// Claims `block` for this store, unless somebody has a route for just this block: `AlreadyExists`.
///
/// A packet to an address that no container has ends here instead of leaving by the default route.
pub(crate) fn claim(netlink: &mut Netlink, block: Subnet) -> io::Result<()> {
    netlink.ask(RouteNetlinkMessage::NewRoute(blackhole(block)), NLM_F_CREATE | NLM_F_EXCL)
}

/// Gives `block` back; done already is fine.
pub(crate) fn unclaim(netlink: &mut Netlink, block: Subnet) -> io::Result<()> {
    gone_is_fine(netlink.ask(RouteNetlinkMessage::DelRoute(blackhole(block)), 0))
}

/// Removes the route to a container; removed already is fine. Nothing reaches it any more, and with no way back to
/// it, what it sends is dropped as if its source were wrong.
pub(crate) fn cut_off(netlink: &mut Netlink, address: Ipv4Addr) -> io::Result<()> {
    let mut route = route_to(Subnet::around(address, 32));
    route.header.scope = RouteScope::Link;
    gone_is_fine(netlink.ask(RouteNetlinkMessage::DelRoute(route), 0))
}

fn blackhole(block: Subnet) -> RouteMessage {
    let mut route = route_to(block);
    route.header.kind = RouteType::BlackHole;
    route
}

/// A route of ours in the main table; the caller adds where it leads.
fn route_to(to: Subnet) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.destination_prefix_length = to.prefix();
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    route.header.scope = RouteScope::Universe;
    route.header.kind = RouteType::Unicast;
    if to.prefix() > 0 {
        route.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(to.first())));
    }
    route
}

/// Adds a route to an address that is on the other end of `interface`.
pub(crate) fn route_on_link(
    netlink: &mut Netlink,
    to: Ipv4Addr,
    interface: u32,
    source: Ipv4Addr,
) -> io::Result<()> {
    let mut route = route_to(Subnet::around(to, 32));
    route.header.scope = RouteScope::Link;
    route.attributes.push(RouteAttribute::Oif(interface));
    route.attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
    netlink.ask(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Sends everything else through `gateway`.
pub(crate) fn default_route(netlink: &mut Netlink, gateway: Ipv4Addr, interface: u32) -> io::Result<()> {
    let mut route = route_to(Subnet::around(Ipv4Addr::UNSPECIFIED, 0));
    route.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
    route.attributes.push(RouteAttribute::Oif(interface));
    netlink.ask(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL)
}

/// Gives an interface an address that has no others beside it.
pub(crate) fn add_address(netlink: &mut Netlink, interface: u32, address: Ipv4Addr) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.index = interface;
    message.attributes =
        vec![AddressAttribute::Local(IpAddr::V4(address)), AddressAttribute::Address(IpAddr::V4(address))];
    netlink.ask(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link
}

/// The interface's index.
pub(crate) fn index(netlink: &mut Netlink, name: &str) -> io::Result<u32> {
    match netlink.get(RouteNetlinkMessage::GetLink(named(name)))? {
        Some(RouteNetlinkMessage::NewLink(link)) => Ok(link.header.index),
        _ => Err(io::Error::other("the kernel did not say which interface it made")),
    }
}

/// Takes the interface into service.
pub(crate) fn up(netlink: &mut Netlink, interface: u32) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = interface;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    netlink.ask(RouteNetlinkMessage::SetLink(link), 0)
}

/// Whether the interface sends what it is given. Going up and having a carrier is not enough: until the kernel has
/// looked at the change, everything is dropped. Since Linux 6.9 being asked makes it look.
pub(crate) fn is_active(netlink: &mut Netlink, interface: u32) -> io::Result<bool> {
    let mut request = LinkMessage::default();
    request.header.index = interface;
    match netlink.get(RouteNetlinkMessage::GetLink(request))? {
        Some(RouteNetlinkMessage::NewLink(link)) => {
            Ok(link.attributes.contains(&LinkAttribute::OperState(State::Up)))
        }
        _ => Ok(false),
    }
}

/// Deletes an interface, and its other end with it; done already is fine.
pub(crate) fn delete_link(netlink: &mut Netlink, name: &str) -> io::Result<()> {
    gone_is_fine(netlink.ask(RouteNetlinkMessage::DelLink(named(name)), 0))
}

/// Deletes interfaces, all at once: it takes the kernel 30 ms for one as for many. What is not there is left out.
pub(crate) fn delete_links(netlink: &mut Netlink, names: &[String]) -> io::Result<()> {
    let mut found = false;
    for name in names {
        let mut link = named(name);
        link.attributes.push(LinkAttribute::Group(DOOMED));
        match netlink.ask(RouteNetlinkMessage::SetLink(link), 0) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => {}
            Err(error) => return Err(error),
            Ok(()) => found = true,
        }
    }
    if found { gone_is_fine(netlink.ask(RouteNetlinkMessage::DelLink(grouped(DOOMED)), 0)) } else { Ok(()) }
}

fn grouped(group: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::Group(group));
    link
}

fn gone_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if [Some(nix::libc::ENODEV), Some(nix::libc::ESRCH)].contains(&error.raw_os_error()) => {
            Ok(())
        }
        other => other,
    }
}

/// Names of the interfaces that start with `prefix`, and are host ends of containers with addresses of `block`.
pub(crate) fn links(netlink: &mut Netlink, prefix: &str, block: Subnet) -> io::Result<Vec<String>> {
    let answers = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) if is_host_end(&link, block) => {
                link.attributes.into_iter().find_map(|of| match of {
                    LinkAttribute::IfName(name) if name.starts_with(prefix) => Some(name),
                    _ => None,
                })
            }
            _ => None,
        })
        .collect())
}

/// By its group and its hardware address, which it has from its first moment on.
fn is_host_end(link: &LinkMessage, block: Subnet) -> bool {
    let (mut grouped, mut within) = (false, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Group(group) => grouped = [GROUP, DOOMED].contains(group),
            LinkAttribute::Address(mac) => {
                let address = mac.strip_prefix(&HOST_MAC).and_then(|rest| <[u8; 4]>::try_from(rest).ok());
                within = address.is_some_and(|address| block.contains(Ipv4Addr::from(address)));
            }
            _ => {}
        }
    }
    grouped && within
}

/// The largest packet on the interface of the default route, in bytes.
pub(crate) fn uplink_mtu(netlink: &mut Netlink) -> io::Result<u32> {
    let mtu = uplink(netlink)?.into_iter().find_map(|of| match of {
        LinkAttribute::Mtu(mtu) => Some(mtu),
        _ => None,
    });
    Ok(mtu.unwrap_or(USUAL_MTU))
}

/// The name of the interface of the default route.
pub(crate) fn uplink_name(netlink: &mut Netlink) -> io::Result<Option<String>> {
    Ok(uplink(netlink)?.into_iter().find_map(|of| match of {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    }))
}

fn uplink(netlink: &mut Netlink) -> io::Result<Vec<LinkAttribute>> {
    let index = routes(netlink)?.iter().find(|route| route.is_default()).and_then(|route| route.interface);
    let Some(index) = index else {
        return Ok(Vec::new());
    };
    let mut request = LinkMessage::default();
    request.header.index = index;
    match netlink.get(RouteNetlinkMessage::GetLink(request))? {
        Some(RouteNetlinkMessage::NewLink(link)) => Ok(link.attributes),
        _ => Ok(Vec::new()),
    }
}

/// Sets `/proc/sys/net/{key}` of this thread's namespace.
pub(crate) fn sysctl(key: &str, value: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/{key}"), value)
}

/// The same where the kernel may have been started without the protocol.
pub(crate) fn sysctl_if_there(key: &str, value: &str) -> io::Result<()> {
    match sysctl(key, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
