//! A real server with everything that it needs, and somebody who opens seats.

use std::{fs, future::Future, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use host_core::secret::AesKey;
use host_service::{
    lobby::{Answer, Lobby, LobbyLimits, Outcome, Seat, StartupData},
    transport::{Auth, Certificate, KeySource, Limits, OnRequest, Options, Quota, Server},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::{
    client::{Client, Said, trusting},
    issuer::{AUDIENCE, ISSUER, Issuer},
};

/// Nothing here takes this long; it only ends a test that waits for what never comes.
pub(crate) const LONG: Duration = Duration::from_secs(30);
/// How long a client waits for an allocation here.
pub(crate) const WAIT: Duration = Duration::from_millis(300);

pub(crate) const LIMITS: Limits = Limits {
    max_connections: 1100,
    handshake_timeout: Duration::from_secs(10),
    header_timeout: Duration::from_secs(10),
    body_timeout: Duration::from_secs(10),
    idle_timeout: Duration::from_secs(60),
    body_limit_bytes: 1 << 20,
    quota: Quota { connections: None, connection_rate: None, overall_rate: None, request_rate: None },
};

/// How soon a new certificate is seen.
pub(crate) const CHECK: Duration = Duration::from_millis(20);

/// What a test may have otherwise.
pub(crate) struct Setup {
    pub limits: Limits,
    pub lobby: LobbyLimits,
    pub auth: Auth,
    pub on_request: Option<OnRequest>,
    pub drain: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: LIMITS,
            lobby: LobbyLimits { max_waiting: 1100, wait: WAIT, answer_again: Duration::from_secs(60) },
            auth: Auth::Off,
            on_request: None,
            drain: LONG,
        }
    }
}

pub(crate) struct World {
    pub address: SocketAddr,
    pub lobby: Arc<Lobby>,
    pub stop: CancellationToken,
    connector: TlsConnector,
    /// Ends with the world.
    server: JoinSet<()>,
    _scratch: TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Setup::default()).await
    }

    pub(crate) async fn with(setup: Setup) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let lobby = Lobby::new(setup.lobby);
        let options = options(scratch.path(), setup.auth, setup.limits);
        let server = Server::build(options, lobby.clone(), setup.on_request).await.unwrap();
        let (address, stop) = (server.local_addr().unwrap(), CancellationToken::new());
        let connector = trusting(&scratch.path().join("cert.pem"));
        let server = JoinSet::from_iter([server.run(stop.clone(), setup.drain)]);
        Self { address, lobby, stop, connector, server, _scratch: scratch }
    }

    pub(crate) async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub(crate) async fn connect(&self) -> Client<TcpStream> {
        let stream = self.dial().await;
        stream.set_nodelay(true).unwrap();
        self.handshake(stream).await.unwrap()
    }

    pub(crate) async fn handshake(&self, stream: TcpStream) -> io::Result<Client<TcpStream>> {
        within(Client::connect(&self.connector, stream)).await
    }

    /// On a connection of its own.
    pub(crate) async fn put(&self, body: &Value) -> Said {
        within(async { self.connect().await.put(body).await }).await
    }

    /// The life of a mandelbox until it has answered its client.
    pub(crate) async fn mandelbox(&self, id: &str, user: &str) -> (Seat, StartupData) {
        let mut seat = self.lobby.open(&id.parse().unwrap(), &user.parse().unwrap());
        let data = within(seat.startup_data()).await;
        seat.answer(answer());
        (seat, data)
    }

    /// Until `count` requests wait for their allocation.
    pub(crate) async fn waiting(&self, count: usize) {
        until(|| self.lobby.waiting() == count).await;
    }

    /// Until the server has ended by itself.
    pub(crate) async fn ended(&mut self) {
        within(self.server.join_next()).await.unwrap().unwrap();
    }
}

/// A host that takes the tokens of those `keys`.
pub(crate) fn trust(keys: KeySource) -> Auth {
    Auth::Jwt { issuer: ISSUER.into(), audience: AUDIENCE.into(), keys }
}

/// A host that takes `issuer`'s tokens, by a file in `directory`.
pub(crate) fn trusted(issuer: &Issuer, directory: &Path) -> Auth {
    let jwks_file = directory.join("jwks.json");
    fs::write(&jwks_file, issuer.keys().to_string()).unwrap();
    trust(KeySource::File(jwks_file))
}

pub(crate) fn options(directory: &Path, auth: Auth, limits: Limits) -> Options {
    let certificate = Certificate::Generated { directory: directory.to_owned(), addresses: Vec::new() };
    Options { listen: "127.0.0.1:0".parse().unwrap(), certificate, certificate_check: CHECK, auth, limits }
}

pub(crate) fn answer() -> Outcome {
    let ports = [("32262/tcp", 10_001), ("32263/udp", 10_002), ("32273/tcp", 10_003)];
    let ports = ports.map(|(port, host)| (port.parse().unwrap(), host)).to_vec();
    Ok(Arc::new(Answer { ports, aes_key: AesKey::from_bytes([0xab; 16]) }))
}

/// What the client is told then.
pub(crate) fn told() -> Value {
    let key = "ab".repeat(16);
    json!({"result": {"port_32262": 10_001, "port_32263": 10_002, "port_32273": 10_003, "aes_key": key}})
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(LONG, future).await.expect("it took too long")
}

pub(crate) async fn until(condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
