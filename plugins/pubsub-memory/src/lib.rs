//! Desired state in memory: the control plane of a development host, and the one that tests script.
//!
//! [`MemoryPubSub`] is both sides. Hosts, any number of them, see the [`PubSub`] trait. The other side, what a
//! scheduler or an operator would do in a database, are its own methods: rows come, change and go, watches are cut,
//! calls are refused, lose their answer or hang.
//!
//! Invariants:
//! - One lock holds the tables and the watchers' channels, so every watcher sees states in the order in which they
//!   came to be, and ends at the last one. Nothing waits and nothing blocks under that lock.
//! - A call takes effect as a whole or not at all, also when its future is dropped.
//! - Time comes from tokio's clock, so tests that pause it decide what is stale.
//! - With a file, one thread (`pubsub-file`) owns the writing; it ends when the value is dropped.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use host_core::{
    ErrorKind, InstanceName, MandelboxId, PluginError,
    pubsub::{
        Allocation, Claim, DesiredState, Heartbeat, InstanceFacts, MandelboxRow, MandelboxStatus, PubSub,
        Registered, Result, StaleAfter,
    },
    registry::{Context, Plugin},
};
use tokio::{sync::watch, time::Instant};

mod config;
mod control;
mod faults;
mod feeds;
mod file;
mod tables;

pub use config::Config;
pub use faults::{Fault, Operation};
pub use tables::InstanceRow;

use faults::Faults;
use feeds::{Feed, Feeds};
use file::StateFile;
use tables::Tables;

/// `[pubsub] plugin = "memory"`.
pub fn plugin() -> Plugin<dyn PubSub> {
    Plugin::new("memory", |config, context| async move {
        let pubsub = tokio::task::spawn_blocking(move || build(&config, &context)).await;
        let pubsub = pubsub.map_err(|error| {
            PluginError::new(ErrorKind::Internal, "reading the state file was broken off").with_source(error)
        })??;
        Ok(Arc::new(pubsub) as Arc<dyn PubSub>)
    })
}

fn build(config: &Config, context: &Context) -> Result<MemoryPubSub> {
    match &config.file {
        Some(file) => MemoryPubSub::open(&context.state_dir.join(file)),
        None => Ok(MemoryPubSub::new()),
    }
}

/// A control plane in memory.
#[derive(Debug)]
pub struct MemoryPubSub {
    shared: Mutex<Shared>,
    clock: Clock,
    faults: Faults,
    file: Option<StateFile>,
}

#[derive(Debug, Default)]
struct Shared {
    tables: Tables,
    feeds: Feeds,
}

/// The wall clock at the start, carried on by tokio's.
#[derive(Debug)]
struct Clock {
    start: Instant,
    start_ms: i64,
}

impl Clock {
    fn start() -> Self {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { start: Instant::now(), start_ms: i64::try_from(unix.as_millis()).unwrap_or(i64::MAX) }
    }

    fn now_ms(&self) -> i64 {
        let elapsed_ms = i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.start_ms.saturating_add(elapsed_ms)
    }
}

impl Default for MemoryPubSub {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryPubSub {
    /// Empty, and kept nowhere.
    pub fn new() -> Self {
        Self::with(Tables::default(), None)
    }

    /// With the mandelboxes that `file` keeps, and keeping them there from now on. Blocks while it reads.
    ///
    /// Hosts' rows are not kept. The lock on the file proves that the process in which they were active, or
    /// draining, has ended; so each host comes back as `PRE_CONNECTION` and may register again, with any facts: in
    /// development the restarted host is a rebuilt one. Its mandelboxes' rows are as they were.
    ///
    /// # Errors
    /// `Conflict` when another process has the file, `Invalid` when it cannot be understood, each with the remedy.
    pub fn open(file: &Path) -> Result<Self> {
        let (file, mandelboxes) = StateFile::open(file)?;
        Ok(Self::with(Tables::restored(mandelboxes), Some(file)))
    }

    fn with(tables: Tables, file: Option<StateFile>) -> Self {
        Self {
            shared: Mutex::new(Shared { tables, feeds: Feeds::default() }),
            clock: Clock::start(),
            faults: Faults::default(),
            file,
        }
    }

    /// A panic under this lock leaves whole rows: each change is one step.
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes rows of `instance` and tells its watchers and the file.
    fn change<T>(&self, instance: &InstanceName, change: impl FnOnce(&mut Tables) -> T) -> T {
        let mut shared = self.lock();
        let Shared { tables, feeds } = &mut *shared;
        let before = tables.revision();
        let answer = change(tables);
        feeds.publish(instance, || tables.desired(instance));
        if let Some(file) = &self.file
            && tables.revision() != before
        {
            file.keep(tables.mandelboxes().clone());
        }
        answer
    }

    fn subscribe(&self, instance: &InstanceName) -> watch::Receiver<Feed> {
        let mut shared = self.lock();
        let now = shared.tables.desired(instance);
        shared.feeds.subscribe(instance, now)
    }

    /// A call of a host that cannot fail by itself.
    async fn call<T>(
        &self,
        operation: Operation,
        instance: &InstanceName,
        effect: impl FnOnce(&mut Tables) -> T,
    ) -> Result<T> {
        let effect = || Ok(self.change(instance, effect));
        self.faults.call(operation, effect).await
    }
}

#[async_trait]
impl PubSub for MemoryPubSub {
    async fn watch(&self, instance: &InstanceName) -> Result<BoxStream<'static, Result<DesiredState>>> {
        let watch = || Ok(feeds::stream(self.subscribe(instance)));
        self.faults.call(Operation::Watch, watch).await
    }

    async fn register(&self, facts: &InstanceFacts, heartbeat: &Heartbeat) -> Result<Registered> {
        let register = |tables: &mut Tables| tables.register(facts, heartbeat);
        self.call(Operation::Register, &facts.name, register).await?
    }

    async fn claim(&self, instance: &InstanceName, row: &MandelboxRow) -> Result<Claim> {
        let claim = |tables: &mut Tables| tables.claim(instance, row);
        self.call(Operation::Claim, instance, claim).await
    }

    async fn set_status(
        &self,
        instance: &InstanceName,
        mandelbox: &MandelboxId,
        status: MandelboxStatus,
    ) -> Result<()> {
        let advance = |tables: &mut Tables| tables.advance(instance, mandelbox, status);
        self.call(Operation::SetStatus, instance, advance).await
    }

    async fn heartbeat(&self, instance: &InstanceName, heartbeat: &Heartbeat) -> Result<()> {
        let beat = |tables: &mut Tables| tables.heartbeat(instance, heartbeat);
        self.call(Operation::Heartbeat, instance, beat).await
    }

    async fn mark_draining(&self, instance: &InstanceName) -> Result<()> {
        let mark = |tables: &mut Tables| tables.mark_draining(instance);
        self.call(Operation::MarkDraining, instance, mark).await
    }

    async fn remove(&self, instance: &InstanceName, mandelbox: &MandelboxId) -> Result<()> {
        let remove = |tables: &mut Tables| tables.remove(instance, mandelbox);
        self.call(Operation::Remove, instance, remove).await
    }

    async fn unregister(&self, instance: &InstanceName) -> Result<()> {
        let delete = |tables: &mut Tables| tables.delete_instance(instance);
        self.call(Operation::Unregister, instance, delete).await
    }

    async fn remove_stale(
        &self,
        instance: &InstanceName,
        after: StaleAfter,
        working_on: &[MandelboxId],
    ) -> Result<Vec<MandelboxId>> {
        let remove = |tables: &mut Tables| tables.remove_stale(instance, after, working_on, self.now_ms());
        self.call(Operation::RemoveStale, instance, remove).await
    }

    async fn allocate(&self, instance: &InstanceName, allocation: &Allocation) -> Result<()> {
        let allocate = |tables: &mut Tables| tables.allocate(instance, allocation, self.now_ms());
        self.call(Operation::Allocate, instance, allocate).await?
    }
}
