//! What is published: pure bookkeeping, and the sockets that keep others off the same ports.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd, OwnedFd},
};

use host_core::{
    ErrorKind, PluginError,
    runtime::{PortMapping, Protocol},
};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, shutdown,
    socket, sockopt,
};

/// One port of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) address: Ipv4Addr,
    pub(crate) port: PortMapping,
}

/// A port on the host, with its protocol.
pub(crate) type HostPort = (Protocol, u16);

pub(crate) fn host_port(port: &PortMapping) -> HostPort {
    (port.protocol, port.host)
}

/// Checks what can be checked of a request alone.
pub(crate) fn check(ports: &[PortMapping]) -> Result<(), PluginError> {
    for (n, port) in ports.iter().enumerate() {
        if port.host_ip.is_ipv6() {
            let message =
                format!("port {} is bound to {}, but containers have IPv4 only", port.host, port.host_ip);
            return Err(PluginError::new(ErrorKind::Unsupported, message));
        }
        if port.host == 0 || port.container == 0 {
            return Err(PluginError::new(ErrorKind::Invalid, "port 0 cannot be published; choose a port"));
        }
        if ports[..n].iter().any(|earlier| meet(earlier, port)) {
            let message = format!("{} port {} is published twice", port.protocol, port.host);
            return Err(PluginError::new(ErrorKind::Invalid, message));
        }
    }
    Ok(())
}

/// Whether a packet could be for both.
fn meet(a: &PortMapping, b: &PortMapping) -> bool {
    let everywhere = |port: &PortMapping| port.host_ip.is_unspecified();
    host_port(a) == host_port(b) && (a.host_ip == b.host_ip || everywhere(a) || everywhere(b))
}

/// Everything that is published now.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    by_address: BTreeMap<Ipv4Addr, Vec<Held>>,
}

/// A port with the socket that keeps it; `None` where somebody else has it already, see [`Ports::adopt`].
#[derive(Debug)]
struct Held {
    port: PortMapping,
    _socket: Option<OwnedFd>,
}

/// Ports of a request, bound and not yet published; dropping it frees them.
#[derive(Debug)]
pub(crate) struct Bound {
    address: Ipv4Addr,
    held: Vec<Held>,
}

impl Bound {
    pub(crate) fn published(&self) -> impl Iterator<Item = Published> + '_ {
        self.held.iter().map(|held| Published { address: self.address, port: held.port })
    }
}

impl Ports {
    /// Binds those of `ports` that `address` has not published yet.
    ///
    /// # Errors
    /// `AddressInUse` when anybody else has one of them.
    pub(crate) fn bind(&self, address: Ipv4Addr, ports: &[PortMapping]) -> Result<Bound, PluginError> {
        let mut held = Vec::with_capacity(ports.len());
        for port in ports {
            let own =
                self.by_address.get(&address).is_some_and(|own| own.iter().any(|own| own.port == *port));
            if own {
                continue;
            }
            if let Some(owner) = self.owner(port) {
                return Err(in_use(port, &format!("the container at {owner} has it")));
            }
            let socket = hold(port).map_err(|error| refused(port, error))?;
            held.push(Held { port: *port, _socket: Some(socket) });
        }
        Ok(Bound { address, held })
    }

    /// They are published now.
    pub(crate) fn commit(&mut self, bound: Bound) {
        if !bound.held.is_empty() {
            self.by_address.entry(bound.address).or_default().extend(bound.held);
        }
    }

    /// Takes over what a container has published since an earlier service, even if its ports cannot be held.
    pub(crate) fn adopt(&mut self, address: Ipv4Addr, ports: &[PortMapping]) {
        for port in ports {
            let socket = hold(port).inspect_err(|error| {
                tracing::warn!(%error, port = port.host, protocol = %port.protocol, %address,
                    "a running container's port cannot be held against other programs");
            });
            self.by_address.entry(address).or_default().push(Held { port: *port, _socket: socket.ok() });
        }
    }

    /// They are withdrawn now.
    pub(crate) fn forget(&mut self, address: Ipv4Addr) {
        self.by_address.remove(&address);
    }

    /// What `address` has published.
    pub(crate) fn of(&self, address: Ipv4Addr) -> Vec<Published> {
        let held = self.by_address.get(&address).map(Vec::as_slice).unwrap_or_default();
        held.iter().map(|held| Published { address, port: held.port }).collect()
    }

    /// Everything.
    pub(crate) fn all(&self) -> Vec<Published> {
        self.by_address.keys().flat_map(|address| self.of(*address)).collect()
    }

    fn owner(&self, port: &PortMapping) -> Option<Ipv4Addr> {
        let mut all = self.by_address.iter();
        all.find(|(_, held)| held.iter().any(|held| meet(&held.port, port))).map(|(address, _)| *address)
    }
}

/// A socket that is bound and never used. Without it another program could listen on the port and wonder why
/// nobody calls, or the kernel give the port to an outgoing connection.
fn hold(port: &PortMapping) -> io::Result<OwnedFd> {
    let IpAddr::V4(address) = port.host_ip else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let address = SockaddrIn::from(SocketAddrV4::new(address, port.host));
    let kind = match port.protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
    match port.protocol {
        Protocol::Tcp => hold_stream(&socket, &address)?,
        Protocol::Udp => {
            // What comes before the port is published is not worth memory.
            setsockopt(&socket, sockopt::RcvBuf, &0)?;
            bind(socket.as_raw_fd(), &address)?;
        }
    }
    Ok(socket)
}

/// Binds although connections of an earlier listener may be in TIME_WAIT, which needs the reuse flag, and keeps
/// everybody else from binding, which needs it gone and the kernel's shortcut for it reset by having listened.
fn hold_stream(socket: &OwnedFd, address: &SockaddrIn) -> io::Result<()> {
    setsockopt(socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), address)?;
    listen(socket, Backlog::new(0)?)?;
    shutdown(socket.as_raw_fd(), Shutdown::Both)?;
    setsockopt(socket, sockopt::ReuseAddr, &false)?;
    Ok(())
}

fn refused(port: &PortMapping, error: io::Error) -> PluginError {
    match error.kind() {
        io::ErrorKind::AddrInUse => in_use(port, "another program has it"),
        io::ErrorKind::AddrNotAvailable => {
            let message =
                format!("{} is no address of this host; publish on 0.0.0.0 or one it has", port.host_ip);
            PluginError::new(ErrorKind::Invalid, message)
        }
        _ => crate::error::kernel(format_args!("binding {} port {}", port.protocol, port.host), error),
    }
}

fn in_use(port: &PortMapping, by: &str) -> PluginError {
    let message = format!("{} port {} of {} is taken: {by}", port.protocol, port.host, port.host_ip);
    PluginError::new(ErrorKind::AddressInUse, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: &str, host: u16, container: u16, protocol: Protocol) -> PortMapping {
        PortMapping { host_ip: host_ip.parse().unwrap(), host, container, protocol }
    }

    #[test]
    fn a_request_is_checked_alone() {
        let fails = |ports: &[PortMapping]| check(ports).unwrap_err().kind();
        let tcp = |ip, host| port(ip, host, 80, Protocol::Tcp);
        assert_eq!(fails(&[tcp("::", 80)]), ErrorKind::Unsupported);
        assert_eq!(fails(&[tcp("0.0.0.0", 0)]), ErrorKind::Invalid);
        assert_eq!(fails(&[tcp("0.0.0.0", 80), tcp("127.0.0.1", 80)]), ErrorKind::Invalid);
        check(&[tcp("127.0.0.2", 80), tcp("127.0.0.1", 80), port("127.0.0.1", 80, 80, Protocol::Udp)])
            .unwrap();
    }

    #[test]
    fn a_held_port_is_nobody_elses() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut ports = Ports::default();
        let (one, other) = (Ipv4Addr::new(10, 64, 0, 2), Ipv4Addr::new(10, 64, 0, 3));
        let wanted = [port("127.0.0.1", taken, 80, Protocol::Tcp)];
        let bound = ports.bind(one, &wanted).unwrap();
        assert!(std::net::TcpListener::bind(("127.0.0.1", taken)).is_err());
        ports.commit(bound);
        assert_eq!(ports.bind(one, &wanted).unwrap().published().count(), 0, "published once already");
        let everywhere = [port("0.0.0.0", taken, 80, Protocol::Tcp)];
        assert_eq!(ports.bind(other, &everywhere).unwrap_err().kind(), ErrorKind::AddressInUse);
        ports.forget(one);
        assert!(std::net::TcpListener::bind(("127.0.0.1", taken)).is_ok());
    }
}
