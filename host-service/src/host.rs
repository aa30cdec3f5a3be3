//! What the servers may ask of the running host. Cheap to clone; every method is safe to cancel.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::stream::BoxStream;
use host_config::{Profile, Settings};
use host_core::{
    MandelboxId, PluginError,
    gpu::GpuStats,
    lease::Pools,
    lifecycle::EndReason,
    planner::DrainCause,
    pubsub::{Allocation, InstanceFacts, PubSub},
    runtime::{self, LogChunk, LogOptions, Runtime},
};
use tokio::sync::{mpsc, watch};

use crate::{
    lobby::Lobby,
    mandelbox::{Board, EndOrder, Mandelbox},
    resources::Resources,
};

/// The running host.
#[derive(Debug, Clone)]
pub struct Host(Arc<Parts>);

/// What a [`Host`] is made of; the service builds it.
#[derive(Debug)]
pub(crate) struct Parts {
    pub settings: Arc<Settings>,
    pub profile: Profile,
    pub facts: Arc<InstanceFacts>,
    pub runtime: Arc<dyn Runtime>,
    pub pubsub: Arc<dyn PubSub>,
    pub pools: Pools,
    pub lobby: Arc<Lobby>,
    pub board: Arc<Board>,
    pub drains: mpsc::UnboundedSender<DrainOrder>,
    pub condition: watch::Receiver<Condition>,
    pub started: Instant,
}

/// How the host does, as the orchestrator and the collectors see it.
#[derive(Debug, Clone, Default)]
pub struct Condition {
    /// Set while no new mandelboxes are taken.
    pub draining: Option<DrainCause>,
    /// Why the control plane cannot be heard; `None` while it can.
    pub pubsub_error: Option<String>,
    /// Why the engine cannot be heard; `None` while it can.
    pub runtime_error: Option<String>,
    /// What the machine has left.
    pub resources: Resources,
    /// The last figures of the GPUs.
    pub gpus: Vec<GpuStats>,
    /// Where clients and probes are served, once they are.
    pub listening: Option<Listening>,
}

/// Addresses as they are, where the configuration may say port 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    /// `json_transport`.
    pub http: SocketAddr,
    /// Probes and metrics.
    pub metrics: SocketAddr,
}

/// The order to drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainOrder {
    /// Who ordered it.
    pub cause: DrainCause,
    /// Sessions may run on for this long; `None` is the configured time.
    pub deadline: Option<Duration>,
    /// Kill sessions at the deadline without a grace period.
    pub force: bool,
}

impl Host {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Effective settings.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The chosen profile.
    pub fn profile(&self) -> Profile {
        self.0.profile
    }

    /// Who this host is.
    pub fn facts(&self) -> &InstanceFacts {
        &self.0.facts
    }

    /// Leases held and free.
    pub fn pools(&self) -> &Pools {
        &self.0.pools
    }

    /// Where clients' requests meet mandelboxes.
    pub fn lobby(&self) -> &Arc<Lobby> {
        &self.0.lobby
    }

    /// Every mandelbox that has an owner.
    pub fn board(&self) -> &Board {
        &self.0.board
    }

    /// How the host does now.
    pub fn condition(&self) -> Condition {
        self.0.condition.borrow().clone()
    }

    /// Since the service was started.
    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// Statuses of mandelboxes that wait until the control plane can be told.
    pub fn undelivered(&self) -> usize {
        self.0.pubsub.undelivered()
    }

    /// Inserts an `ALLOCATED` row for this host, as the control plane would.
    ///
    /// # Errors
    /// `Conflict` when the id exists; `Timeout`.
    pub async fn allocate(&self, allocation: &Allocation) -> Result<(), PluginError> {
        let insert = self.0.pubsub.allocate(&self.0.facts.name, allocation);
        crate::deadline::within(self.0.settings.pubsub.timeout, "allocating a mandelbox", insert).await
    }

    /// Orders a mandelbox to end, with `grace` between `SIGTERM` and the kill. `None` when there is none of that id;
    /// [`Mandelbox::gone`] waits for the end.
    pub fn stop(&self, id: &MandelboxId, grace: Option<Duration>) -> Option<Arc<Mandelbox>> {
        let mandelbox = self.0.board.get(id)?;
        mandelbox.end(EndOrder { reason: EndReason::Stopped, grace });
        Some(mandelbox)
    }

    /// Orders a drain. A second order may only hurry the first.
    pub fn drain(&self, order: DrainOrder) {
        // A closed channel means that the orchestrator has ended, which is what a drain is for.
        let _ = self.0.drains.send(order);
    }

    /// A mandelbox's output; `None` when there is none of that id.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn logs(
        &self,
        id: &MandelboxId,
        options: LogOptions,
    ) -> Option<runtime::Result<BoxStream<'static, runtime::Result<LogChunk>>>> {
        let mandelbox = self.0.board.get(id)?;
        let container = mandelbox.container.clone().into();
        let logs = self.0.runtime.logs(&container, options);
        Some(crate::deadline::within(self.0.settings.mandelbox.timeouts.start, "opening the log", logs).await)
    }
}
