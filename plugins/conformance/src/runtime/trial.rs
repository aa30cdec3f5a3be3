//! One container of the test mandelbox.

use std::{
    collections::BTreeMap,
    fmt::Display,
    fs,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU16, AtomicU64, Ordering},
    time::Duration,
};

use host_core::{
    ContainerName,
    runtime::{
        Container, ContainerId, ContainerRef, ContainerSpec, ContainerState, Exit, Limits, Mount, Network,
        PortMapping, Propagation, Protocol, Runtime, Security,
    },
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::Fixture;
use crate::{
    ensure,
    report::{Unmet, Verdict},
};

/// Every container of a trial has this label, with its name as the value.
pub(super) const LABEL: &str = "host-service.conformance";
/// Where the test mandelbox finds its files.
pub(super) const MAPPINGS: &str = "/fractal/resourceMappings";
/// What it creates there when it can take its client.
const ANNOUNCEMENT: &str = "done_sleeping_until_X_clients";
/// The port on which it tells what it sees.
const FACTS_PORT: u16 = 32262;
/// The port on which it answers datagrams.
pub(super) const DATAGRAM_PORT: u16 = 32263;
/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(10);
/// Longer than a local answer takes; a lost one is asked for again.
const ANSWER: Duration = Duration::from_secs(5);

/// A container's specification, the directory of its files, and the runtime that it is for.
pub(super) struct Trial<'a> {
    pub(super) runtime: &'a dyn Runtime,
    pub(super) spec: ContainerSpec,
    files: TempDir,
}

impl<'a> Trial<'a> {
    /// The least that the test mandelbox runs with: no network, no capabilities, no limits.
    pub(super) fn of(fixture: &'a dyn Fixture) -> Result<Self, Unmet> {
        let files = tempfile::tempdir().map_err(lacking)?;
        fs::write(files.path().join(".ready"), "").map_err(lacking)?;
        let name = new_name()?;
        let spec = ContainerSpec {
            labels: BTreeMap::from([(LABEL.to_owned(), name.to_string())]),
            name,
            image: fixture.image(),
            command: Vec::new(),
            env: BTreeMap::new(),
            terminal: false,
            network: Network::None,
            ports: Vec::new(),
            mounts: vec![bind(files.path(), MAPPINGS, false)],
            tmpfs: Vec::new(),
            shm_bytes: 16 << 20,
            devices: Vec::new(),
            gpu: None,
            security: Security::default(),
            limits: Limits::default(),
        };
        Ok(Self { runtime: fixture.runtime(), spec, files })
    }

    /// Changes the specification.
    pub(super) fn with(mut self, change: impl FnOnce(&mut ContainerSpec)) -> Self {
        change(&mut self.spec);
        self
    }

    /// Words for the test mandelbox: how it behaves.
    pub(super) fn told(self, words: &[&str]) -> Self {
        self.with(|spec| spec.command = words.iter().map(|word| (*word).to_owned()).collect())
    }

    /// Publishes what [`Trial::facts`] and [`Trial::post`] need.
    pub(super) fn serving(self) -> Result<Self, Unmet> {
        let facts = published(FACTS_PORT, Protocol::Tcp)?;
        Ok(self.with(|spec| {
            spec.network = Network::Bridge;
            spec.ports.push(facts);
        }))
    }

    /// The directory of its files, on the host.
    pub(super) fn files(&self) -> &Path {
        self.files.path()
    }

    /// By name.
    pub(super) fn name(&self) -> ContainerRef {
        self.spec.name.clone().into()
    }

    pub(super) async fn create(&self) -> Result<ContainerId, Unmet> {
        Ok(self.runtime.create(&self.spec).await?)
    }

    pub(super) async fn start(&self) -> Result<ContainerId, Unmet> {
        let id = self.create().await?;
        self.runtime.start(&id.clone().into()).await?;
        Ok(id)
    }

    /// Returns once the application says that it can take its client; it heeds signals by then.
    pub(super) async fn run(&self) -> Result<ContainerId, Unmet> {
        let id = self.start().await?;
        self.announced().await;
        Ok(id)
    }

    pub(super) async fn announced(&self) {
        let announcement = self.files().join(ANNOUNCEMENT);
        while !announcement.exists() {
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub(super) async fn remove(&self) -> Verdict {
        Ok(self.runtime.remove(&self.name()).await?)
    }

    /// What [`Runtime::inspect`] says, which must be something.
    pub(super) async fn seen(&self) -> Result<Container, Unmet> {
        let seen = self.runtime.inspect(&self.name()).await?;
        seen.ok_or_else(|| Unmet::Broken(format!("{} is not there", self.spec.name)))
    }

    /// Its end, once it has ended.
    pub(super) async fn exit(&self) -> Result<Exit, Unmet> {
        loop {
            if let ContainerState::Exited(exit) = self.seen().await?.state {
                return Ok(exit);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Its end must be this.
    pub(super) async fn ends_with(&self, code: i32) -> Verdict {
        let exit = self.exit().await?;
        ensure!(exit.code == Some(code), "it ended with {exit:?} instead of {code}");
        Ok(())
    }

    /// The host's side of a published port of the container.
    pub(super) fn host_port(&self, container: u16) -> Result<u16, Unmet> {
        let port = self.spec.ports.iter().find(|port| port.container == container);
        let port = port.map(|port| port.host);
        port.ok_or_else(|| Unmet::Broken(format!("the trial publishes no port {container}")))
    }

    /// What the test mandelbox sees from inside, as soon as it tells.
    pub(super) async fn facts(&self) -> Result<Value, Unmet> {
        let port = self.host_port(FACTS_PORT)?;
        let answer = answered(|| http(port, "GET", "/facts.json")).await;
        serde_json::from_str(&answer)
            .map_err(|error| Unmet::Broken(format!("its facts are no JSON ({error}): {answer}")))
    }

    /// Makes the test mandelbox do something; its answer.
    pub(super) async fn post(&self, path: &str) -> Result<String, Unmet> {
        let port = self.host_port(FACTS_PORT)?;
        Ok(answered(|| http(port, "POST", path)).await)
    }
}

/// A bind that is seen by nobody else.
pub(super) fn bind(source: &Path, target: &str, read_only: bool) -> Mount {
    Mount {
        source: source.to_owned(),
        target: PathBuf::from(target),
        read_only,
        propagation: Propagation::Private,
    }
}

/// A port of a container on a free port of loopback.
pub(super) fn published(container: u16, protocol: Protocol) -> Result<PortMapping, Unmet> {
    Ok(PortMapping { host_ip: Ipv4Addr::LOCALHOST.into(), host: free_port(protocol)?, container, protocol })
}

/// How many ports are given, and from which on.
const PORTS: u16 = 2700;
const FIRST_PORT: u16 = 30_000;

/// A port that can be bound now, each given once: below the ports that the kernel gives to clients, where a connection
/// of somebody else's would take it, and above those that hosts under test lease.
pub(super) fn free_port(protocol: Protocol) -> Result<u16, Unmet> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that run side by side begin far from each other.
    let begin = std::process::id().wrapping_mul(97) % u32::from(PORTS);
    for _ in 0..PORTS {
        let place = (begin + u32::from(NEXT.fetch_add(1, Ordering::Relaxed))) % u32::from(PORTS);
        let port = FIRST_PORT + u16::try_from(place).unwrap_or_default();
        let address = (Ipv4Addr::LOCALHOST, port);
        let bound = match protocol {
            Protocol::Tcp => TcpListener::bind(address).is_ok(),
            Protocol::Udp => UdpSocket::bind(address).is_ok(),
        };
        if bound {
            return Ok(port);
        }
    }
    Err(Unmet::Lacking(format!("no port from {FIRST_PORT} on is free")))
}

/// A name that nothing else on this host has.
pub(super) fn new_name() -> Result<ContainerName, Unmet> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("conformance-{}-{count}", std::process::id());
    name.parse().map_err(|error| Unmet::Broken(format!("{error}")))
}

/// The host does not have what the trial needs.
pub(super) fn lacking(error: impl Display) -> Unmet {
    Unmet::Lacking(error.to_string())
}

/// Asks until there is an answer: a port may be open before anybody listens behind it.
pub(super) async fn answered<F>(ask: impl Fn() -> F) -> String
where
    F: Future<Output = std::io::Result<String>>,
{
    loop {
        if let Ok(Ok(answer)) = tokio::time::timeout(ANSWER, ask()).await {
            return answer;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The body of a successful answer.
pub(super) async fn http(port: u16, method: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => Err(std::io::Error::other(format!("not answered: {answer}"))),
    }
}
