//! The service from start to end: build (may do I/O, spawns nothing), run, drain.
//!
//! Tasks, all owned here: the two of `watchers`, the two of `monitor`, one that watches files, one for interruptions,
//! one per server, one for signals; the orchestrator runs in `run` itself and owns one task per mandelbox. The order of the
//! end: the orchestrator returns when nothing is left, then servers finish what they have begun, the instance's row
//! goes, the directories go, and the records are flushed last.

use std::{
    panic::AssertUnwindSafe,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures::{FutureExt, future::BoxFuture};
use host_config::{Loaded, SeccompChoice, Settings};
use host_core::{
    Retry,
    gpu::Gpu,
    planner::DrainCause,
    pubsub::Registered,
    registry::{Plugins, Registry, Role},
    runtime::{Runtime, Seccomp},
    telemetry::Telemetry,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    deadline::within,
    death::{self, Life},
    environment,
    host::{Condition, DrainOrder, Host, Parts},
    identity, interruption,
    lobby::{Lobby, LobbyLimits},
    mandelbox::Board,
    metrics::Metrics,
    monitor,
    orchestrator::{Inputs, Orchestrator, Shared},
    plugins,
    telemetry::Dispatch,
    watchers,
};

mod ground;
mod pools;
mod power;
mod servers;
mod signals;

use ground::{Ground, clear_leftovers};
use pools::pools;

pub(crate) use pools::capacity;
use power::switch_off;
use servers::Servers;
use signals::{Signals, obey};

/// Sightings that may wait for the orchestrator; the engine's stream waits when there are more.
const SIGHTINGS: usize = 1024;
/// All servers together, their tasks' ends included.
const SERVERS_END: Duration = Duration::from_secs(5);
/// What a runtime keeps for itself is little.
const RUNTIME_END: Duration = Duration::from_secs(10);

/// Between the panic of a task and its next start.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// How to run.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// Remove what an earlier service left, instead of refusing to start over it.
    pub purge_leftovers: bool,
}

/// What has to be told of the end, however it comes; and what the others stand on, which goes last.
#[derive(Default)]
struct Standing {
    /// It holds parts of the host for itself.
    runtime: OnceLock<Arc<dyn Runtime>>,
    /// The control plane may believe that this host is active.
    registered: Mutex<Option<Arc<Shared>>>,
    /// The runtime may have a part of it.
    ground: OnceLock<Ground>,
    /// Who ordered the drain that is over.
    drained: OnceLock<DrainCause>,
}

impl Standing {
    fn registered(&self) -> MutexGuard<'_, Option<Arc<Shared>>> {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the service until it is drained.
///
/// # Errors
/// It could not start, or could not end cleanly. Telemetry was told.
pub async fn run(loaded: Loaded, options: RunOptions) -> anyhow::Result<()> {
    raise_file_limit();
    let forgotten = environment::forget_configuration();
    keep_memory_private();
    let registry = plugins::registry(&loaded);
    let telemetry = telemetry(&registry, &loaded).await?;
    telemetry.install(&loaded.settings.telemetry.filter).context("telemetry.filter")?;
    if let Err(error) = forgotten {
        tracing::warn!(error = %host_core::chain(&error), "the process's environment still shows what is configured there");
    }
    let (flush, state) = (loaded.settings.telemetry.flush, loaded.settings.paths.state.clone());
    let power_off = loaded.settings.drain.power_off.clone();
    let standing = Standing::default();
    let served =
        AssertUnwindSafe(serve(&registry, loaded, options, &telemetry, &standing)).catch_unwind().await;
    let result =
        served.unwrap_or_else(|_| Err(anyhow::anyhow!("the service panicked; its records tell where")));
    if let Err(error) = &result {
        let registered = standing.registered().take();
        if let Some(shared) = registered {
            farewell(&shared).await;
        }
        tracing::error!(error = format!("{error:#}"), "the service ends by an error");
    }
    if let Some(runtime) = standing.runtime.get() {
        close(runtime.as_ref()).await;
    }
    // Who wants the host gone wants it gone also where something could not be taken down.
    let off = standing.drained.get() == Some(&DrainCause::ControlPlane) && !power_off.is_empty();
    if off {
        tracing::warn!(command = ?power_off, "the control plane has drained this host; switching the machine off");
    }
    telemetry.flush(flush).await;
    if standing.ground.get().is_some() {
        Life::end(&state);
    }
    drop(standing);
    if off { switch_off(&power_off).await.and(result) } else { result }
}

/// As many open files as this process may have: connections, logs and watches are each one.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // It may stay as it is: what is served then is less, and each refusal says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// No core file of this process, and no look into its memory by others of its user: keys and tokens are there.
fn keep_memory_private() {
    // Where the kernel refuses, all else goes on as well.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

async fn serve(
    registry: &Registry,
    loaded: Loaded,
    options: RunOptions,
    telemetry: &Dispatch,
    standing: &Standing,
) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let ground = Ground::open(&loaded.settings)?;
    let ground = standing.ground.get_or_init(|| ground);
    death::tell_earlier(&loaded.settings.paths.state);
    let service = tokio::select! {
        service = Service::build(registry, loaded, options, telemetry, ground, standing) => service?,
        () = signals.next() => anyhow::bail!("stopped by a signal before the start was complete"),
    };
    match service {
        Some(service) => service.run(signals, standing).await,
        None => Ok(()),
    }
}

/// Everything that is needed, ready to run.
struct Service {
    host: Host,
    shared: Arc<Shared>,
    gpu: Arc<dyn Gpu>,
    servers: Servers,
    condition: watch::Sender<Condition>,
    drains: mpsc::UnboundedReceiver<DrainOrder>,
}

impl Service {
    /// `None` when the control plane does not want this host.
    async fn build(
        registry: &Registry,
        loaded: Loaded,
        options: RunOptions,
        telemetry: &Dispatch,
        ground: &Ground,
        standing: &Standing,
    ) -> anyhow::Result<Option<Self>> {
        let started = Instant::now();
        let settings = Arc::new(loaded.settings.clone());
        let Ground { root, records, .. } = ground;
        let facts = Arc::new(identity::find(&loaded).await?);
        let (runtime, gpu, pubsub) = tokio::try_join!(
            runtime(registry, &loaded, standing),
            plugin(&registry.gpus, "gpu", &settings.gpu.plugin, &loaded),
            plugin(&registry.pubsubs, "pubsub", &settings.pubsub.plugin, &loaded),
        )?;
        clear_leftovers(runtime.as_ref(), ground, &facts.name, &settings, options).await?;
        let pools = pools(&settings);
        let limit = settings.gpu.timeout;
        monitor::look_at_gpus(&pools, gpu.as_ref(), limit).await.context("the GPUs")?;
        let gpus = monitor::figures_of_gpus(&pools, gpu.as_ref(), limit).await.context("the GPUs")?;
        telemetry.identify(facts.clone());
        Life::begin(&settings.paths.state, &facts).context("paths.state")?;
        let condition = Condition { gpus, ..Condition::default() };
        let (condition, _) = watch::channel(condition);
        let (drain_orders, drains) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            profile: loaded.profile,
            facts,
            runtime,
            pubsub,
            pools,
            lobby: lobby(&settings),
            board: Arc::new(Board::default()),
            root: root.clone(),
            records: records.clone(),
            metrics: Arc::new(Metrics::with_telemetry(telemetry.clone())),
            seccomp: seccomp(&settings.mandelbox.seccomp)?,
            hurry: CancellationToken::new(),
            settled: Notify::new(),
            run: format!("{:016x}", rand::random::<u64>()),
            settings,
        });
        let host = host(&shared, drain_orders, condition.subscribe(), started);
        let servers = Servers::bind(&host, &shared).await?;
        let listening = servers.listening()?;
        condition.send_modify(|condition| condition.listening = Some(listening));
        if !register(&shared, &condition, standing).await? {
            return Ok(None);
        }
        Ok(Some(Self { host, shared, gpu, servers, condition, drains }))
    }

    async fn run(self, signals: Signals, standing: &Standing) -> anyhow::Result<()> {
        let Self { host, shared, gpu, servers, condition, drains } = self;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (desired_in, desired) = watch::channel(None);
        let (sightings_in, sightings) = mpsc::channel(SIGHTINGS);
        let background = |name, task: BackgroundTask| {
            tasks.spawn(stop.clone().run_until_cancelled_owned(supervise(name, task)));
        };
        let (of, condition_in) = (shared.clone(), condition.clone());
        background(
            "pubsub watcher",
            Box::new(move || {
                Box::pin(watchers::watch_pubsub(of.clone(), desired_in.clone(), condition_in.clone()))
            }),
        );
        let (of, condition_in) = (shared.clone(), condition.clone());
        background(
            "runtime watcher",
            Box::new(move || {
                Box::pin(watchers::watch_runtime(of.clone(), sightings_in.clone(), condition_in.clone()))
            }),
        );
        let (of, condition_out) = (shared.clone(), condition.subscribe());
        background("reports", Box::new(move || Box::pin(monitor::report(of.clone(), condition_out.clone()))));
        let (of, condition_in) = (shared.clone(), condition.clone());
        background(
            "figures",
            Box::new(move || Box::pin(monitor::collect(of.clone(), gpu.clone(), condition_in.clone()))),
        );
        let root = shared.root.clone();
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move { root.tell_arrivals().await }));
        let killed = CancellationToken::new();
        tasks.spawn(stop.clone().run_until_cancelled_owned(obey(signals, host.clone(), killed.clone())));
        let of = host.clone();
        background(
            "interruptions",
            Box::new(move || {
                let of = of.clone();
                Box::pin(async move { interruption::watch(of.settings(), |order| of.drain(order)).await })
            }),
        );
        servers.run(&host, &tasks, &stop);
        tracing::info!(
            instance = %shared.facts.name,
            profile = %shared.profile,
            capacity = capacity(&shared.settings, &shared.pools),
            took_ms = host.uptime().as_secs_f64() * 1e3,
            "Entering event loop…"
        );
        let orchestrator =
            Orchestrator::new(shared.clone(), Inputs { desired, sightings, drains }, condition);
        let cause = tokio::select! {
            cause = orchestrator.run() => cause,
            () = killed.cancelled() => anyhow::bail!("killed by a third signal; what is left is for --purge-leftovers"),
        };
        standing.drained.get_or_init(|| cause);
        unregister(&shared, cause).await;
        stop.cancel();
        tasks.close();
        if tokio::time::timeout(SERVERS_END, tasks.wait()).await.is_err() {
            tracing::warn!("a server did not end in time");
        }
        finish(&shared, cause)
    }
}

/// Makes a task that is to run as long as the service.
type BackgroundTask = Box<dyn FnMut() -> BoxFuture<'static, ()> + Send>;

/// Runs a task, and again when it panics: a plugin's fault must not leave the host deaf.
async fn supervise(name: &'static str, mut task: BackgroundTask) {
    while AssertUnwindSafe(task()).catch_unwind().await.is_err() {
        tracing::error!(task = name, "a task of the service panicked; starting it again");
        tokio::time::sleep(RESTART_PAUSE).await;
    }
}

async fn plugin<P: ?Sized + 'static>(
    plugins: &Plugins<P>,
    kind: &str,
    name: &str,
    loaded: &Loaded,
) -> anyhow::Result<Arc<P>> {
    let built = plugins::build(plugins, kind, name, loaded, Role::Service).await;
    built.with_context(|| format!("{kind} plugin {name} cannot be used"))
}

async fn telemetry(registry: &Registry, loaded: &Loaded) -> anyhow::Result<Dispatch> {
    let mut plugins: Vec<Arc<dyn Telemetry>> = Vec::new();
    for name in &loaded.settings.telemetry.plugins {
        plugins.push(plugin(&registry.telemetries, "telemetry", name, loaded).await?);
    }
    Ok(Dispatch::new(plugins, loaded.profile.name()))
}

async fn runtime(
    registry: &Registry,
    loaded: &Loaded,
    standing: &Standing,
) -> anyhow::Result<Arc<dyn Runtime>> {
    let runtime = plugin(&registry.runtimes, "runtime", &loaded.settings.runtime.plugin, loaded).await?;
    standing.runtime.get_or_init(|| runtime.clone());
    let limit = loaded.settings.mandelbox.timeouts.start;
    let info = within(limit, "asking the container engine", runtime.health()).await.with_context(|| {
        format!("runtime plugin {} has no engine to work with", loaded.settings.runtime.plugin)
    })?;
    tracing::info!(
        engine = info.name,
        version = info.version,
        api = info.api_version,
        "container engine reached"
    );
    Ok(runtime)
}

fn lobby(settings: &Settings) -> Arc<Lobby> {
    Lobby::new(LobbyLimits {
        max_waiting: settings.http.max_waiting as usize,
        wait: settings.mandelbox.timeouts.client,
        answer_again: settings.mandelbox.answer_again,
    })
}

fn seccomp(choice: &SeccompChoice) -> anyhow::Result<Seccomp> {
    Ok(match choice {
        SeccompChoice::Default => Seccomp::Default,
        SeccompChoice::Unconfined => Seccomp::Unconfined,
        SeccompChoice::File(path) => Seccomp::Profile(read(path).context("mandelbox.seccomp")?),
    })
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
}

fn host(
    shared: &Arc<Shared>,
    drains: mpsc::UnboundedSender<DrainOrder>,
    condition: watch::Receiver<Condition>,
    started: Instant,
) -> Host {
    Host::new(Parts {
        settings: shared.settings.clone(),
        profile: shared.profile,
        facts: shared.facts.clone(),
        runtime: shared.runtime.clone(),
        pubsub: shared.pubsub.clone(),
        pools: shared.pools.clone(),
        lobby: shared.lobby.clone(),
        board: shared.board.clone(),
        drains,
        condition,
        started,
    })
}

/// `false` when the control plane does not want this host: it shuts down quietly.
async fn register(
    shared: &Arc<Shared>,
    condition: &watch::Sender<Condition>,
    standing: &Standing,
) -> anyhow::Result<bool> {
    let heartbeat = monitor::heartbeat(&condition.borrow(), capacity(&shared.settings, &shared.pools));
    let registration = shared.pubsub.register(&shared.facts, &heartbeat);
    // One that is broken off may have taken effect; after one that is refused, the row is not this host's to remove.
    *standing.registered() = Some(shared.clone());
    let answer = within(shared.settings.pubsub.timeout, "registering this instance", registration).await;
    if answer.as_ref().is_err_and(|error| error.retry() == Retry::Never) {
        *standing.registered() = None;
    }
    match answer? {
        Registered::Active => Ok(true),
        Registered::Unwanted(status) => {
            tracing::info!(%status, "the control plane does not want this host; shutting down");
            Ok(false)
        }
    }
}

/// After an end that was not in order: the control plane must send nobody here any more.
async fn farewell(shared: &Shared) {
    let name = &shared.facts.name;
    let told = async {
        if shared.board.is_empty() {
            shared.pubsub.unregister(name).await
        } else {
            shared.pubsub.mark_draining(name).await
        }
    };
    if let Err(error) = within(shared.settings.pubsub.timeout, "telling that this host ends", told).await {
        tracing::warn!(error = %host_core::chain(&error), "the control plane may still believe in this host");
    }
}

async fn close(runtime: &dyn Runtime) {
    if let Err(error) = within(RUNTIME_END, "closing the runtime", runtime.close()).await {
        tracing::warn!(error = %host_core::chain(&error), "the runtime left something on this host");
    }
}

async fn unregister(shared: &Shared, cause: DrainCause) {
    let removal = shared.pubsub.unregister(&shared.facts.name);
    if let Err(error) = within(shared.settings.pubsub.timeout, "removing the instance's row", removal).await {
        tracing::warn!(error = %host_core::chain(&error), ?cause, "the instance's row stays");
    }
}

fn finish(shared: &Shared, cause: DrainCause) -> anyhow::Result<()> {
    let (left, _) = shared.records.all()?;
    anyhow::ensure!(
        left.is_empty(),
        "{} mandelboxes could not be taken down; see --purge-leftovers",
        left.len()
    );
    tracing::info!(?cause, "nothing is left; the service ends");
    Ok(())
}
