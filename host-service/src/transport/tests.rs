//! Time: everything here runs on a paused clock, over streams in memory.

use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinSet,
    time::{advance, sleep},
};
use tokio_rustls::TlsConnector;

use super::*;
use crate::lobby::LobbyLimits;
use client::{Client, request, trusting};

#[path = "../../tests/transport/client.rs"]
mod client;

const LIMITS: Limits = Limits {
    max_connections: 10,
    handshake_timeout: Duration::from_secs(5),
    header_timeout: Duration::from_secs(5),
    body_timeout: Duration::from_secs(10),
    idle_timeout: Duration::from_secs(60),
    body_limit_bytes: 1000,
    quota: Quota { connections: None, connection_rate: None, overall_rate: None, request_rate: None },
};
const WAIT: Duration = Duration::from_secs(60);
/// To the tick of the clock.
const TICK: Duration = Duration::from_millis(2);

struct World {
    connections: Arc<Connections>,
    connector: TlsConnector,
    served: JoinSet<io::Result<()>>,
    _scratch: TempDir,
}

impl World {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("tls");
        let certificate = Certificate::Generated { directory: directory.clone(), addresses: Vec::new() };
        let tls = Arc::new(tls::config(&certificate).unwrap().0);
        let limits = LobbyLimits { max_waiting: 10, wait: WAIT, answer_again: WAIT };
        let handler = Handler {
            lobby: Lobby::new(limits),
            verifier: Verifier::Off,
            bodies: Bodies::new(LIMITS.body_limit_bytes, LIMITS.body_timeout),
            on_request: None,
            tasks: TaskTracker::new(),
        };
        let connections = Connections {
            tls,
            router: router(handler),
            limits: LIMITS,
            quotas: Quotas::new(LIMITS.quota),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
        };
        Self {
            connections: Arc::new(connections),
            connector: trusting(&directory.join("cert.pem")),
            served: JoinSet::new(),
            _scratch: scratch,
        }
    }

    /// The client's end of a connection that is being served.
    fn dial(&mut self) -> DuplexStream {
        let (near, far) = duplex(1 << 20);
        let connections = self.connections.clone();
        self.served.spawn(async move {
            let deadline = Instant::now() + LIMITS.handshake_timeout;
            let visitor = connections.quotas.admit([127, 0, 0, 1].into()).unwrap();
            connections.serve(far, &visitor, deadline).await
        });
        near
    }

    async fn connect(&mut self) -> Client<DuplexStream> {
        let near = self.dial();
        Client::connect(&self.connector, near).await.unwrap()
    }
}

fn about(elapsed: Duration, expected: Duration) {
    assert!((expected..expected + TICK).contains(&elapsed), "{elapsed:?} instead of {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stalls_is_given_up() {
    let mut world = World::new();
    let mut stream = world.dial();
    stream.write_all(&[22, 3, 1]).await.unwrap();
    let began = Instant::now();
    let ended = world.served.join_next().await.unwrap().unwrap();
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    about(began.elapsed(), LIMITS.handshake_timeout);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_not_waited_for() {
    let mut world = World::new();
    let mut client = world.connect().await;
    let began = Instant::now();
    assert_eq!(client.rest().await, "");
    about(began.elapsed(), LIMITS.header_timeout);
}

#[tokio::test(start_paused = true)]
async fn a_header_that_trickles_is_told_408() {
    let mut world = World::new();
    let mut client = world.connect().await;
    sleep(Duration::from_secs(2)).await;
    let began = Instant::now();
    let (mut from, mut to) = tokio::io::split(&mut client.0);
    let trickle = async {
        for byte in request("PUT", "/json_transport", "", b"") {
            to.write_all(&[byte]).await.unwrap();
            to.flush().await.unwrap();
            sleep(Duration::from_secs(1)).await;
        }
    };
    let said = tokio::select! {
        said = client::hear(&mut from) => said,
        () = trickle => panic!("the server waited for all of it"),
    };
    assert_eq!(said.refused(), (408, "too_slow"));
    about(began.elapsed(), LIMITS.header_timeout);
}

#[tokio::test(start_paused = true)]
async fn a_connection_may_idle_longer_than_a_header_may_take() {
    let mut world = World::new();
    let mut client = world.connect().await;
    for _ in 0..3 {
        assert_eq!(client.ask("GET", "/", "", b"").await.refused(), (404, "unknown_path"));
        sleep(LIMITS.idle_timeout - 10 * TICK).await;
    }
    client.send("PUT /json_trans").await;
    let began = Instant::now();
    assert_eq!(client.hear().await.refused(), (408, "too_slow"));
    about(began.elapsed(), LIMITS.header_timeout);

    let mut client = world.connect().await;
    client.ask("GET", "/", "", b"").await;
    let began = Instant::now();
    assert_eq!(client.rest().await, "");
    about(began.elapsed(), LIMITS.idle_timeout);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stops_is_told_408() {
    let mut world = World::new();
    let mut client = world.connect().await;
    client.send("PUT /json_transport HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"man").await;
    let began = Instant::now();
    assert_eq!(client.hear().await.refused(), (408, "too_slow"));
    about(began.elapsed(), LIMITS.body_timeout);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_mandelbox_is_not_idling() {
    let mut world = World::new();
    let mut client = world.connect().await;
    let began = Instant::now();
    assert_eq!(client.put(&json!({"mandelbox_id": "m"})).await.refused(), (408, "not_allocated"));
    about(began.elapsed(), WAIT);
    assert_eq!(client.ask("GET", "/", "", b"").await.status, 404, "the connection is as good as before");
}

#[tokio::test(start_paused = true)]
async fn at_the_end_idle_connections_close_and_requests_have_their_answer() {
    let mut world = World::new();
    let (mut fresh, mut idle, mut busy) =
        (world.connect().await, world.connect().await, world.connect().await);
    idle.ask("GET", "/", "", b"").await;
    busy.send(request("PUT", "/json_transport", "", br#"{"mandelbox_id":"m"}"#)).await;
    advance(Duration::from_secs(1)).await;
    let began = Instant::now();
    world.connections.stop.cancel();
    assert_eq!((fresh.rest().await, idle.rest().await), (String::new(), String::new()));
    about(began.elapsed(), Duration::ZERO);
    let said = busy.hear().await;
    assert_eq!(said.refused(), (408, "not_allocated"));
    assert!(said.head.contains("connection: close"), "{said:?}");
    assert_eq!(busy.rest().await, "");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_given_up() {
    let mut world = World::new();
    let (near, far) = duplex(600); // hardly more than one answer
    let connections = world.connections.clone();
    world.served.spawn(async move {
        let visitor = connections.quotas.admit([127, 0, 0, 1].into()).unwrap();
        connections.serve(far, &visitor, Instant::now() + LIMITS.handshake_timeout).await
    });
    let mut client = Client::connect(&world.connector, near).await.unwrap();
    let began = Instant::now();
    let flood = async {
        loop {
            if client.0.write_all(&request("GET", "/", "", b"")).await.is_err() {
                break;
            }
        }
    };
    let ended = async { timeout(2 * LIMITS.idle_timeout, world.served.join_next()).await.expect("the end") };
    let ((), ended) = tokio::join!(flood, ended);
    assert!(ended.is_some());
    assert!(began.elapsed() <= LIMITS.idle_timeout + Duration::from_secs(10), "{:?}", began.elapsed());
    let _ = client.0.read_u8().await;
}
