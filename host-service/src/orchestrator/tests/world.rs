//! A host that is real in all but its engine, its control plane and its clock.

use std::time::Duration;

use host_config::Sources;
use host_core::{
    gpu::GpuDevice,
    planner::DrainCause,
    pubsub::{Allocation, Heartbeat, MandelboxStatus},
    runtime::ContainerSpec,
};
use pubsub_memory::MemoryPubSub;
use runtime_sim::{Script, Sim};
use tempfile::TempDir;
use tokio::time::timeout;

use super::super::*;
use crate::{
    files::Owner,
    host::{Host, Parts},
    lobby::{ClientRequest, LobbyLimits, Outcome, StartupData},
    watchers,
};

/// Simulated time is free; this only ends a test that waits for what never comes.
pub(super) const LONG: Duration = Duration::from_secs(2 * 3600);

pub(super) struct World {
    pub(super) host: Host,
    pub(super) shared: Arc<Shared>,
    pub(super) script: Script,
    pub(super) pubsub: Arc<MemoryPubSub>,
    orchestrator: JoinSet<DrainCause>,
    _watchers: JoinSet<()>,
    _scratch: TempDir,
}

impl World {
    pub(super) async fn new(settings: &[&str]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let sim = Arc::new(Sim::new(runtime_sim::Config::default()));
        let (script, pubsub) = (sim.script(), Arc::new(MemoryPubSub::new()));
        let shared = Arc::new(shared(&scratch, settings, sim, pubsub.clone()));
        pubsub.register(&shared.facts, &Heartbeat::default()).await.unwrap();
        let (condition, _) = watch::channel(Condition::default());
        let (drains_in, drains) = mpsc::unbounded_channel();
        let (desired_in, desired) = watch::channel(None);
        let (sightings_in, sightings) = mpsc::channel(16);
        let host = Host::new(Parts {
            settings: shared.settings.clone(),
            profile: shared.profile,
            facts: shared.facts.clone(),
            runtime: shared.runtime.clone(),
            pubsub: shared.pubsub.clone(),
            pools: shared.pools.clone(),
            lobby: shared.lobby.clone(),
            board: shared.board.clone(),
            drains: drains_in,
            condition: condition.subscribe(),
            started: std::time::Instant::now(),
        });
        let mut watchers = JoinSet::new();
        let root = shared.root.clone();
        watchers.spawn(async move { root.tell_arrivals().await });
        watchers.spawn(watchers::watch_pubsub(shared.clone(), desired_in, condition.clone()));
        watchers.spawn(watchers::watch_runtime(shared.clone(), sightings_in, condition.clone()));
        let mut orchestrator = JoinSet::new();
        let inputs = Inputs { desired, sightings, drains };
        orchestrator.spawn(Orchestrator::new(shared.clone(), inputs, condition).run());
        Self { host, shared, script, pubsub, orchestrator, _watchers: watchers, _scratch: scratch }
    }

    pub(super) async fn allocate(&self, id: &str) {
        let text = |text: &str| text.parse().unwrap();
        let allocation =
            Allocation { id: text(id), user: "u".parse().unwrap(), session: "s".parse().unwrap(), app: None };
        self.host.allocate(&allocation).await.unwrap();
    }

    /// Asks as the client of `id` does.
    pub(super) async fn ask(&self, id: &str) -> Outcome {
        let data = StartupData {
            json: "{}".into(),
            config_encryption_token: None,
            is_new_config_encryption_token: false,
            cookies: None,
            bookmarks: None,
            app: None,
        };
        let request = ClientRequest { id: id.parse().unwrap(), subject: None, digest: [0; 32], data };
        self.shared.lobby.join(request)?.await
    }

    pub(super) async fn spin_up(&self, id: &str) -> Outcome {
        self.allocate(id).await;
        timeout(LONG, self.ask(id)).await.unwrap()
    }

    pub(super) fn mandelbox(&self, id: &str) -> Option<Arc<Mandelbox>> {
        self.shared.board.get(&id.parse().unwrap())
    }

    pub(super) fn container(&self, id: &str) -> host_core::ContainerName {
        self.mandelbox(id).unwrap().container.clone()
    }

    pub(super) fn status(&self, id: &str) -> Option<MandelboxStatus> {
        self.pubsub.mandelbox(&id.parse().unwrap()).map(|(_, row)| row.status)
    }

    pub(super) async fn gone(&self, id: &str) {
        if let Some(mandelbox) = self.mandelbox(id) {
            timeout(LONG, mandelbox.gone())
                .await
                .unwrap_or_else(|_| panic!("{id} stays: {:?}", mandelbox.state()));
        }
    }

    /// Waits until a condition holds that simulated time can bring about.
    pub(super) async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let wait = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(LONG, wait).await.unwrap_or_else(|_| panic!("{what} never came"));
    }

    /// Waits until nothing is left anywhere.
    pub(super) async fn clean(&self) {
        self.until("end of all mandelboxes", || self.shared.board.is_empty()).await;
        self.until("end of all containers", || self.script.containers().is_empty()).await;
        let pools = &self.shared.pools;
        assert_eq!((pools.ports.held(), pools.ttys.held(), pools.gpus.held()), (0, 0, 0), "leases are held");
        assert_eq!(self.shared.root.present().unwrap(), [], "directories are left");
        assert_eq!(self.shared.records.all().unwrap(), (vec![], vec![]), "records are left");
        let name = &self.shared.facts.name;
        self.until("end of all rows", || self.pubsub.desired(name).mandelboxes.is_empty()).await;
    }

    pub(super) async fn drained(&mut self) -> DrainCause {
        timeout(LONG, self.orchestrator.join_next()).await.unwrap().unwrap().unwrap()
    }
}

fn shared(scratch: &TempDir, settings: &[&str], sim: Arc<Sim>, pubsub: Arc<MemoryPubSub>) -> Shared {
    let mut set: Vec<String> = ["root", "state", "logs"]
        .map(|path| format!("paths.{path}={}", scratch.path().join(path).display()))
        .into();
    set.push("instance.name=simulated".into());
    set.extend(settings.iter().map(ToString::to_string));
    let sources = Sources {
        profile: Some("localdev".into()),
        system_dir: scratch.path().into(),
        set,
        ..Sources::default()
    };
    let loaded = host_config::load(&sources).unwrap();
    let settings = Arc::new(loaded.settings.clone());
    let owner = Owner { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() };
    let now = || tokio::time::Instant::now().into_std();
    let limits = &settings.mandelbox;
    let pools = Pools::new(30_000..30_400, limits.port_quarantine, limits.tty_range.numbers(), 3, now);
    pools.gpus.update((0..25).map(gpu).collect(), &[]);
    Shared {
        profile: loaded.profile,
        facts: Arc::new(host_core::pubsub::InstanceFacts {
            ..crate::identity::from_settings(&loaded).unwrap()
        }),
        runtime: sim,
        pubsub,
        pools,
        lobby: Lobby::new(LobbyLimits {
            max_waiting: 256,
            wait: limits.timeouts.client,
            answer_again: limits.answer_again,
        }),
        board: Arc::default(),
        root: Root::open(&settings.paths.root, owner).unwrap(),
        records: Arc::new(Records::open(&settings.paths.state).unwrap()),
        metrics: Arc::default(),
        seccomp: host_core::runtime::Seccomp::Default,
        hurry: CancellationToken::new(),
        settled: Notify::new(),
        run: "simulation".to_owned(),
        settings,
    }
}

/// A container that this service did not make.
pub(super) fn stranger() -> ContainerSpec {
    ContainerSpec {
        name: "stranger".parse().unwrap(),
        image: "any/image:latest".parse().unwrap(),
        command: vec![],
        env: [].into(),
        labels: [(LABEL_MANDELBOX.to_owned(), "m".to_owned())].into(),
        terminal: false,
        network: host_core::runtime::Network::Bridge,
        ports: vec![],
        mounts: vec![],
        tmpfs: vec![],
        shm_bytes: 0,
        devices: vec![],
        gpu: None,
        security: Default::default(),
        limits: Default::default(),
    }
}

fn gpu(index: u32) -> GpuDevice {
    let uuid = format!("GPU-{index}");
    GpuDevice {
        index,
        uuid,
        name: "simulated".into(),
        memory_bytes: 1,
        node: None,
        attachment: Default::default(),
    }
}
