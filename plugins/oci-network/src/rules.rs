//! The table, in nftables' own language: what an administrator sees in `nft list table` is what is written here.

use std::{fmt::Write, net::Ipv4Addr};

use host_core::runtime::PortMapping;

use crate::{
    name::{GROUP, Key},
    ports::Published,
    subnet::Subnet,
};

/// Published on one address of the host, and on all of them.
pub(crate) const ON_ONE: &str = "published";
pub(crate) const ON_ALL: &str = "published-everywhere";

/// The chain that is there only if this service turned forwarding on.
pub(crate) const NO_ROUTER: &str = "no-router";

/// The source ports of what containers send out, as the host's address has them: the kernel's usual range for
/// outgoing connections, which no port that is published should lie in. With a published port as its source a flow of
/// one container would catch the answers, and whatever else the peer sends to that port, of the container that has it.
const OUTGOING: &str = "32768-60999";

/// Where clouds tell instances their secrets beside 169.254.0.0/16: Azure, which answers DNS there too, and Alibaba.
const AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
const ALIBABA: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);

/// The chain that is there only if the host took ICMP redirects before forwarding was turned on; for other stores.
pub(crate) const TOOK_REDIRECTS: &str = "took-redirects";

/// Everything that is the same for every transaction of a service.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) key: Key,
    pub(crate) block: Subnet,
    /// The service turned forwarding on: nothing but containers' traffic may be forwarded.
    pub(crate) no_router: bool,
    /// And the host took redirects before.
    pub(crate) took_redirects: bool,
    /// Name servers on link-local addresses, as clouds have them: containers may ask them for names and nothing else.
    pub(crate) name_servers: Vec<Ipv4Addr>,
}

impl Rules {
    /// Replaces the table, if there is one, by one with these ports, in one transaction.
    pub(crate) fn replace(&self, published: &[Published]) -> String {
        let table = self.key.table();
        let mut text = format!("table inet {table}\ndelete table inet {table}\n");
        self.table(&mut text);
        for one in published {
            let _ = writeln!(text, "add element inet {table} {} {{ {} }}", map(&one.port), element(one));
        }
        text
    }

    /// Removes the table; removed already is fine.
    pub(crate) fn remove(&self) -> String {
        let table = self.key.table();
        format!("table inet {table}\ndelete table inet {table}\n")
    }

    fn table(&self, text: &mut String) {
        let (table, block) = (self.key.table(), self.block);
        let no_router = if self.no_router { format!("chain {NO_ROUTER} {{ drop; }}") } else { String::new() };
        let took_redirects =
            if self.took_redirects { format!("chain {TOOK_REDIRECTS} {{ }}") } else { String::new() };
        let last = if self.no_router { format!("jump {NO_ROUTER}") } else { String::new() };
        let mut servers = AZURE.to_string();
        for server in &self.name_servers {
            let _ = write!(servers, ", {server}");
        }
        let _ = write!(
            text,
            "table inet {table} {{
  map {ON_ONE} {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map {ON_ALL} {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  {no_router}
  {took_redirects}
  chain from-containers {{
    type filter hook prerouting priority raw; policy accept;
    iifgroup != {GROUP} accept
    meta nfproto ipv6 drop
    ip daddr 127.0.0.0/8 drop
    fib saddr . iif oif missing drop
  }}
  chain to-host {{
    type filter hook prerouting priority mangle; policy accept;
    iifgroup {GROUP} fib daddr type local ct state new drop
  }}
  chain to-published {{
    fib daddr type != local return
    dnat ip to ip daddr . meta l4proto . th dport map @{ON_ONE}
    meta nfproto ipv4 dnat ip to meta l4proto . th dport map @{ON_ALL}
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    jump to-published
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    jump to-published
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifgroup != {GROUP} ip saddr {block} meta l4proto {{ tcp, udp }} masquerade to :{OUTGOING}
    oifgroup != {GROUP} ip saddr {block} masquerade
    oifgroup {GROUP} ip saddr 127.0.0.0/8 masquerade
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifgroup {GROUP} oifgroup {GROUP} drop
    iifgroup {GROUP} ip daddr {{ {servers} }} meta l4proto {{ tcp, udp }} th dport 53 accept
    iifgroup {GROUP} ip daddr {{ 169.254.0.0/16, {AZURE}, {ALIBABA} }} drop
    iifgroup {GROUP} accept
    oifgroup {GROUP} ct state established,related accept
    oifgroup {GROUP} ct status dnat accept
    oifgroup {GROUP} drop
    {last}
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifgroup {GROUP} ct state established,related accept
    iifgroup {GROUP} drop
  }}
}}
"
        );
    }
}

/// The map that holds the port.
pub(crate) fn map(port: &PortMapping) -> &'static str {
    if port.host_ip.is_unspecified() { ON_ALL } else { ON_ONE }
}

fn element(one: &Published) -> String {
    let Published { address, port } = one;
    let on = if port.host_ip.is_unspecified() { String::new() } else { format!("{} . ", port.host_ip) };
    format!("{on}{} . {} : {address} . {}", port.protocol, port.host, port.container)
}
