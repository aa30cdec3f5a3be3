//! Adding and deleting elements of the table's maps, over netlink.
//!
//! The `nft` program would do: it takes 3 ms to start and read the ruleset, and after a deletion it waits at its
//! end for the kernel to free what was deleted, 10 to 30 ms. A socket that stays open waits for nothing.

use std::{io, net::IpAddr};

use host_core::runtime::{PortMapping, Protocol};
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterProtoFamily,
    nftables::{
        DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList,
        SetElementMessage, TableAttribute, TableMessage,
    },
    none::ControlMessage,
};

use crate::{netlink::Netlink, ports::Published, rules};

/// nf_tables among netfilter's subsystems, `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;

/// An attribute's length has 16 bits; an element takes less than 64 bytes.
const PER_MESSAGE: usize = 512;

/// Deletes and adds in one transaction: all or nothing.
pub(crate) fn change(
    netlink: &mut Netlink,
    table: &str,
    delete: &[Published],
    add: &[Published],
) -> io::Result<()> {
    let control = |message| NetfilterMessage::new(header(NetfilterProtoFamily::Unspec, SUBSYSTEM), message);
    let mut messages = vec![(control(ControlMessage::BatchBegin), 0)];
    for (map, some) in by_map(delete) {
        let message = elements(table, map, &some, |one| vec![key(&one.port)]);
        messages.push((wrap(NfTablesMessage::DeleteSetElement(message)), NLM_F_ACK));
    }
    for (map, some) in by_map(add) {
        let message = elements(table, map, &some, |one| vec![key(&one.port), target(one)]);
        messages.push((wrap(NfTablesMessage::NewSetElement(message)), NLM_F_ACK | NLM_F_CREATE));
    }
    messages.push((control(ControlMessage::BatchEnd), 0));
    netlink.transact(messages)
}

/// Whether the table is there at all.
pub(crate) fn is_there(netlink: &mut Netlink, table: &str) -> io::Result<bool> {
    let named = TableMessage { attributes: vec![TableAttribute::Name(table.to_owned())] };
    match netlink.ask(wrap(NfTablesMessage::GetTable(named)), 0) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true),
    }
}

fn header(family: NetfilterProtoFamily, resource: u16) -> NetfilterHeader {
    NetfilterHeader::new(family, 0, resource)
}

fn wrap(message: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(header(NetfilterProtoFamily::Inet, 0), message)
}

/// As many as fit into a message, by the map they are in.
fn by_map(published: &[Published]) -> Vec<(&'static str, Vec<Published>)> {
    [rules::ON_ONE, rules::ON_ALL]
        .into_iter()
        .flat_map(|map| {
            let here: Vec<_> = published.iter().filter(|one| rules::map(&one.port) == map).copied().collect();
            here.chunks(PER_MESSAGE).map(|some| (map, some.to_vec())).collect::<Vec<_>>()
        })
        .collect()
}

fn elements(
    table: &str,
    map: &str,
    published: &[Published],
    element: impl Fn(&Published) -> Vec<SetElementAttribute>,
) -> SetElementMessage {
    let elements = published.iter().map(|one| ListAttribute::Element(element(one))).collect();
    SetElementMessage {
        attributes: vec![
            SetElementList::Table(table.to_owned()),
            SetElementList::Set(map.to_owned()),
            SetElementList::Elements(elements),
        ],
    }
}

/// Fields of a key or a value lie in network order at the start of 4 bytes each.
fn key(port: &PortMapping) -> SetElementAttribute {
    let mut bytes = Vec::with_capacity(12);
    if let (IpAddr::V4(address), false) = (port.host_ip, port.host_ip.is_unspecified()) {
        bytes.extend(address.octets());
    }
    let protocol = match port.protocol {
        Protocol::Tcp => nix::libc::IPPROTO_TCP,
        Protocol::Udp => nix::libc::IPPROTO_UDP,
    };
    bytes.extend([u8::try_from(protocol).unwrap_or_default(), 0, 0, 0]);
    bytes.extend(padded(port.host));
    SetElementAttribute::Key(DataAttribute::Value(bytes))
}

fn target(one: &Published) -> SetElementAttribute {
    let mut bytes = one.address.octets().to_vec();
    bytes.extend(padded(one.port.container));
    SetElementAttribute::Data(DataAttribute::Value(bytes))
}

fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}
