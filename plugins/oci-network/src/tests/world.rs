//! A scratch host with a neighbour outside.
//!
//! The test's threads live in a network namespace of their own; everything is held by file descriptors and
//! threads, so nothing stays when a test is killed.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use host_core::runtime::{PortMapping, Protocol};
use nix::sched::{CloneFlags, setns, unshare};
use tempfile::TempDir;

use crate::{Adopted, Config, Network, Networks, isolated, nft::Nft};

pub(super) const KEY: &str = "0badcafe";

/// The host's address towards the outside, and the neighbour's.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(super) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// Where clouds tell instances their secrets; the neighbour has it.
pub(super) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// What must happen happens by then.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What must not happen would have happened by then: three hops within one kernel.
pub(super) const NEVER: Duration = Duration::from_millis(400);

pub(super) struct World {
    pub(super) outside: OwnedFd,
    pub(super) state: TempDir,
}

/// Runs `test` on a host of its own.
pub(super) fn on_scratch_host<F>(test: impl FnOnce(World) -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        // Every thread of this runtime is started from here, so it is in the new namespace.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new().await;
            test(world).await;
        });
    };
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

impl World {
    async fn new() -> Self {
        let outside = isolated().await.unwrap();
        let fd = format!("/proc/{}/fd/{}", std::process::id(), outside.as_raw_fd());
        ip("link set lo up");
        ip(&format!("link add up0 type veth peer name eth9 netns {fd}"));
        // No link-local address that is still being tried out when a test looks.
        ip("link set up0 addrgenmode none");
        ip("link set up0 mtu 1400 up");
        ip(&format!("addr add {HOST}/24 dev up0"));
        ip(&format!("route add default via {OUTSIDE}"));
        within(&outside, || {
            ip("link set eth9 mtu 1400 up");
            ip(&format!("addr add {OUTSIDE}/24 dev eth9"));
            ip(&format!("addr add {METADATA}/32 dev eth9"));
        });
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        active(here(), "up0").await;
        active(&outside, "eth9").await;
        Self { outside, state: TempDir::new().unwrap() }
    }

    pub(super) async fn open(&self) -> Networks {
        self.open_with(Nft::default(), config(0), Vec::new()).await.unwrap()
    }

    pub(super) async fn open_with(
        &self,
        nft: Nft,
        config: Config,
        adopted: Vec<Adopted>,
    ) -> Result<Networks, host_core::PluginError> {
        Networks::open_with(nft, config, KEY, self.state.path(), adopted).await
    }
}

pub(super) fn config(ready: usize) -> Config {
    Config { ready, ..Config::default() }
}

/// Runs `work` on a thread in another namespace.
pub(super) fn within<T: Send>(namespace: impl AsFd + Sync, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let body = || {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        scope.spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// This thread's namespace.
pub(super) fn here() -> OwnedFd {
    File::open("/proc/thread-self/ns/net").unwrap().into()
}

pub(super) fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

pub(super) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

pub(super) fn port(host_ip: Ipv4Addr, host: u16, container: u16, protocol: Protocol) -> PortMapping {
    PortMapping { host_ip: host_ip.into(), host, container, protocol }
}

pub(super) fn tcp(host: u16, container: u16) -> PortMapping {
    port(Ipv4Addr::UNSPECIFIED, host, container, Protocol::Tcp)
}

pub(super) fn udp(host: u16, container: u16) -> PortMapping {
    port(Ipv4Addr::UNSPECIFIED, host, container, Protocol::Udp)
}

/// Serves TCP and UDP in `namespace`: answers with its name and whom it sees, as "name 192.0.2.1".
pub(super) fn serve(namespace: impl AsFd + Sync, address: Ipv4Addr, port: u16, name: &'static str) {
    let (listener, socket) = within(namespace, || {
        (TcpListener::bind((address, port)).unwrap(), UdpSocket::bind((address, port)).unwrap())
    });
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer_stream(stream, name));
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(answer(name, peer).as_bytes(), peer);
        }
    });
}

fn answer_stream(mut stream: TcpStream, name: &'static str) {
    let Ok(peer) = stream.peer_addr() else { return };
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && stream.write_all(answer(name, peer).as_bytes()).is_ok() {}
}

fn answer(name: &str, peer: SocketAddr) -> String {
    format!("{name} {}", peer.ip())
}

/// What answers over TCP from `namespace`.
pub(super) fn call(namespace: impl AsFd + Sync, to: Ipv4Addr, port: u16) -> io::Result<String> {
    within(namespace, || {
        let mut stream = TcpStream::connect_timeout(&SocketAddrV4::new(to, port).into(), NEVER)?;
        ask_stream(&mut stream)
    })
}

pub(super) fn ask_stream(stream: &mut TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(NEVER))?;
    stream.write_all(b"?")?;
    let mut buffer = [0; 64];
    let length = stream.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// What answers over UDP from `namespace`.
pub(super) fn send(namespace: impl AsFd + Sync, to: Ipv4Addr, port: u16) -> io::Result<String> {
    let socket = within(namespace, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    ask_datagram(&socket, to, port)
}

pub(super) fn ask_datagram(socket: &UdpSocket, to: Ipv4Addr, port: u16) -> io::Result<String> {
    socket.set_read_timeout(Some(NEVER))?;
    socket.send_to(b"?", (to, port))?;
    let mut buffer = [0; 64];
    let (length, _) = socket.recv_from(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Nothing comes through on this way, over TCP or UDP. A refusal would be an answer too.
pub(super) fn assert_silent(namespace: impl AsFd + Sync, to: Ipv4Addr, port: u16, way: &str) {
    let over_tcp = call(namespace.as_fd(), to, port).map_err(|error| error.kind());
    assert_eq!(over_tcp, Err(io::ErrorKind::TimedOut), "TCP {way}");
    let over_udp = send(namespace.as_fd(), to, port).map_err(|error| error.kind());
    assert_eq!(over_udp, Err(io::ErrorKind::WouldBlock), "UDP {way}");
}

/// Waits until the interface sends what it is given.
pub(super) async fn active(namespace: impl AsFd + Sync, interface: &str) {
    let is_active =
        || within(namespace.as_fd(), || ip(&format!("link show dev {interface}"))).contains("state UP");
    eventually(interface, is_active).await;
}

/// Waits until `done` holds.
pub(super) async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A container that serves on port 80 of its own address.
pub(super) async fn container(networks: &Networks, name: &'static str) -> Network {
    let network = networks.take().await.unwrap();
    serve(&network.namespace, Ipv4Addr::UNSPECIFIED, 80, name);
    network
}

/// Everything of this namespace that could be left behind.
pub(super) fn inventory() -> String {
    let forwarding = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    [run("nft", "list ruleset"), ip("-br link"), ip("addr"), ip("route show table all"), forwarding]
        .join("\n")
}

pub(super) fn has_file(directory: &Path) -> bool {
    directory.read_dir().unwrap().next().is_some()
}
