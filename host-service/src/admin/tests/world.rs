//! A host without an orchestrator, served on a socket of its own.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use host_config::{Profile, Sources};
use host_core::{
    AppName, MandelboxId,
    lease::Pools,
    pubsub::{Heartbeat, InstanceFacts, MandelboxRow, MandelboxStatus, PubSub},
    runtime::{ContainerSpec, Limits, Mount, Network, Security},
};
use pubsub_memory::MemoryPubSub;
use runtime_sim::Sim;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{AdminServer, views::ErrorView},
    client::{Client, ClientError},
    host::{Condition, DrainOrder, Host, Parts},
    lobby::{Lobby, LobbyLimits},
    mandelbox::{Board, Mandelbox},
};

/// Ends a test that waits for what never comes.
pub(super) const LONG: Duration = Duration::from_secs(30);

pub(super) struct World {
    pub(super) host: Host,
    pub(super) board: Arc<Board>,
    pub(super) runtime: Arc<Sim>,
    pub(super) pubsub: Arc<MemoryPubSub>,
    pub(super) drains: mpsc::UnboundedReceiver<DrainOrder>,
    pub(super) condition: watch::Sender<Condition>,
    pub(super) client: Client,
    pub(super) socket: PathBuf,
    pub(super) stop: CancellationToken,
    pub(super) server: JoinSet<()>,
    pub(super) scratch: TempDir,
}

impl World {
    pub(super) async fn new(profile: Profile) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let socket = scratch.path().join("run/admin.sock");
        let set = [format!("admin.socket={}", socket.display()), "runtime.plugin=sim".to_owned()].to_vec();
        let sources = Sources { system_dir: scratch.path().join("etc"), set, ..Sources::default() };
        let settings = Arc::new(host_config::load(&sources).unwrap().settings);
        let runtime = Arc::new(Sim::new(runtime_sim::Config::default()));
        let pubsub = Arc::new(MemoryPubSub::new());
        let (board, (condition, seen)) = (Arc::new(Board::default()), watch::channel(Condition::default()));
        let (drain_orders, drains) = mpsc::unbounded_channel();
        let host = Host::new(Parts {
            settings: settings.clone(),
            profile,
            facts: Arc::new(facts()),
            runtime: runtime.clone(),
            pubsub: pubsub.clone(),
            pools: Pools::new(20_000..20_009, Duration::ZERO, 10..12, 3, Instant::now),
            lobby: Lobby::new(LobbyLimits { max_waiting: 1, wait: LONG, answer_again: LONG }),
            board: board.clone(),
            drains: drain_orders,
            condition: seen,
            started: Instant::now(),
        });
        pubsub.register(&facts(), &Heartbeat::default()).await.unwrap();
        let stop = CancellationToken::new();
        let mut server = JoinSet::new();
        server.spawn(AdminServer::bind(&settings.admin).unwrap().run(host.clone(), stop.clone()));
        Self {
            client: Client::new(&socket),
            host,
            board,
            runtime,
            pubsub,
            drains,
            condition,
            socket,
            stop,
            server,
            scratch,
        }
    }

    pub(super) fn add(&self, id: &str) -> Arc<Mandelbox> {
        let row = MandelboxRow {
            id: id.parse().unwrap(),
            user: "somebody".parse().unwrap(),
            session: "session".parse().unwrap(),
            app: None,
            status: MandelboxStatus::Allocated,
            created_ms: 0,
        };
        let mandelbox = Mandelbox::new(row, app());
        self.board.add(mandelbox.clone());
        mandelbox
    }

    /// As the control plane's event brings it.
    pub(super) async fn allocated(&self) -> MandelboxRow {
        let mut states = self.pubsub.watch(&facts().name).await.unwrap();
        while let Some(state) = states.next().await {
            if let Some(row) = state.unwrap().mandelboxes.into_iter().next() {
                return row;
            }
        }
        panic!("the control plane ended");
    }

    /// Status line and body of the answer to a request written by hand.
    pub(super) async fn raw(&self, request: &str) -> (String, ErrorView) {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), serde_json::from_str(body).unwrap())
    }

    pub(super) async fn end(mut self) {
        self.stop.cancel();
        tokio::time::timeout(LONG, self.server.join_next()).await.unwrap().unwrap().unwrap();
        assert!(!self.socket.exists(), "the socket stays");
    }
}

pub(super) fn facts() -> InstanceFacts {
    InstanceFacts {
        name: "host".parse().unwrap(),
        cloud_id: "i-0".into(),
        image_id: "ami-0".into(),
        region: "local".into(),
        instance_type: "laptop".into(),
        ip: "127.0.0.1".into(),
        commit: "0".into(),
    }
}

pub(super) fn app() -> AppName {
    "browsers/chrome".parse().unwrap()
}

pub(super) fn id(text: &str) -> MandelboxId {
    text.parse().unwrap()
}

pub(super) fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result {
        Err(ClientError::Refused(view)) => view.code,
        other => panic!("not refused: {other:?}"),
    }
}

pub(super) fn container(mandelbox: &Mandelbox, mappings: Mount) -> ContainerSpec {
    ContainerSpec {
        name: mandelbox.container.clone(),
        image: "browsers/chrome:current-build".parse().unwrap(),
        command: Vec::new(),
        env: BTreeMap::new(),
        labels: BTreeMap::new(),
        terminal: false,
        network: Network::None,
        ports: Vec::new(),
        mounts: vec![mappings],
        tmpfs: Vec::new(),
        shm_bytes: 0,
        devices: Vec::new(),
        gpu: None,
        security: Security::default(),
        limits: Limits::default(),
    }
}
