//! The one owner of what this host does.
//!
//! ```text
//!  pubsub.watch ──▶ watchers ── full desired state (watch) ──▶┐
//!  runtime.events ▶ watchers ── sightings (mpsc) ────────────▶│ Orchestrator ── spawns ──▶ owner (one per mandelbox)
//!  signals, admin API ── drain orders (mpsc) ────────────────▶┘      │                          │
//!                                                                 plan/compare (pure)       writes its Mandelbox,
//!                                                                 ends mandelboxes          read by everybody
//! ```
//!
//! Every input is only a wake-up: the orchestrator reads the full desired state and its own board, plans, and begins
//! the steps. It never waits for the outside itself. It returns when it drains and no owner and no chore is left.

use std::{collections::{BTreeMap, BTreeSet}, future::Future, sync::Arc, time::Duration};

use host_core::{
    MandelboxId, PluginError,
    lease::Pools,
    lifecycle::EndReason,
    planner::{self, DrainCause, LABEL_MANDELBOX, Observed, Owned, Step},
    pubsub::{DesiredState, InstanceFacts, MandelboxRow, PubSub},
    runtime::{ContainerChange, ContainerEvent, ContainerId, Runtime},
};
use host_config::{MandelboxTimeouts, Profile, Settings};
use tokio::{
    sync::{mpsc, watch},
    task::{self, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    deadline::within,
    files::Root,
    host::{Condition, DrainOrder},
    lobby::{Failure, Lobby},
    mandelbox::{Board, EndOrder, Mandelbox},
    metrics::Metrics,
    records::Records,
    retry::Pauses,
    watchers::Sighting,
};

mod container;
mod image;
mod owner;
mod spin_up;
mod take_down;

/// What the orchestrator and every owner task work with.
#[derive(Debug)]
pub(crate) struct Shared {
    pub settings: Arc<Settings>,
    pub profile: Profile,
    pub facts: Arc<InstanceFacts>,
    pub runtime: Arc<dyn Runtime>,
    pub pubsub: Arc<dyn PubSub>,
    pub pools: Pools,
    pub lobby: Arc<Lobby>,
    pub board: Arc<Board>,
    pub root: Root,
    pub records: Arc<Records>,
    pub metrics: Arc<Metrics>,
    /// A seccomp profile's text, read once at the start.
    pub seccomp: host_core::runtime::Seccomp,
    /// Cancelled when nothing more is to be retried: the service ends now.
    pub hurry: CancellationToken,
}

/// What wakes the orchestrator.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub desired: watch::Receiver<Option<DesiredState>>,
    pub sightings: mpsc::Receiver<Sighting>,
    pub drains: mpsc::UnboundedReceiver<DrainOrder>,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Orchestrator {
    shared: Arc<Shared>,
    inputs: Inputs,
    condition: watch::Sender<Condition>,
    /// Each returns its row when that is spent.
    owners: JoinSet<Option<MandelboxRow>>,
    spent: BTreeMap<MandelboxId, MandelboxRow>,
    /// Short pieces of work on rows and orphans.
    chores: JoinSet<()>,
    orphans: BTreeSet<ContainerId>,
    drain: Option<Drain>,
}

#[derive(Debug)]
struct Drain {
    cause: DrainCause,
    until: Instant,
    grace: Duration,
    /// The deadline has passed and every mandelbox is ordered to end.
    over: bool,
}

impl Drain {
    /// When to stop trying to take down what cannot be taken down, because its engine does not answer.
    fn give_up(&self, limits: &MandelboxTimeouts) -> Instant {
        self.until + self.grace + limits.stop + limits.remove
    }
}

impl Orchestrator {
    pub(crate) fn new(shared: Arc<Shared>, inputs: Inputs, condition: watch::Sender<Condition>) -> Self {
        Self {
            shared,
            inputs,
            condition,
            owners: JoinSet::new(),
            spent: BTreeMap::new(),
            chores: JoinSet::new(),
            orphans: BTreeSet::new(),
            drain: None,
        }
    }

    /// Runs until the host is drained; the cause of the drain.
    pub(crate) async fn run(mut self) -> DrainCause {
        loop {
            self.plan();
            if let Some(drain) = &self.drain
                && self.owners.is_empty()
                && self.chores.is_empty()
            {
                return drain.cause;
            }
            self.wake().await;
        }
    }

    /// Waits for one input and takes it in.
    async fn wake(&mut self) {
        let limits = &self.shared.settings.mandelbox.timeouts;
        let next = self.drain.as_ref().map(|d| if d.over { d.give_up(limits) } else { d.until });
        tokio::select! {
            // A closed channel means that its sender ended with the service; the other inputs go on.
            Ok(()) = self.inputs.desired.changed() => {}
            Some(sighting) = self.inputs.sightings.recv() => self.sight(sighting),
            Some(order) = self.inputs.drains.recv() => self.begin_drain(order),
            Some(ended) = self.owners.join_next() => match ended {
                Ok(row) => self.spent.extend(row.map(|row| (row.id.clone(), row))),
                Err(error) => tracing::error!(%error, "a mandelbox's owner ended without taking it down"),
            },
            Some(done) = self.chores.join_next() => {
                if let Err(error) = done {
                    tracing::error!(%error, "a chore panicked");
                }
            }
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() && !self.shared.hurry.is_cancelled() => {
                self.drain_time();
            }
        }
    }

    /// Compares what is wanted with what is, and begins what is to be done.
    fn plan(&mut self) {
        let desired = self.inputs.desired.borrow_and_update().clone();
        let Some(desired) = desired else { return };
        self.spent.retain(|_, spent| desired.mandelboxes.iter().any(|row| row.is_same(spent)));
        let steps = planner::plan(&desired, &self.observed());
        self.begin(steps);
    }

    fn observed(&self) -> Observed {
        let owned = self.shared.board.all();
        Observed {
            draining: self.drain.is_some(),
            owned: owned.iter().map(|m| (m.id().clone(), Owned { ending: m.is_ending() })).collect(),
            spent: self.spent.clone(),
        }
    }

    fn begin(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::SpinUp(row) => {
                    let app = row.app.clone().unwrap_or_else(|| self.shared.settings.mandelbox.default_app.clone());
                    let mandelbox = Mandelbox::new(row, app);
                    self.shared.board.add(mandelbox.clone());
                    let span = tracing::info_span!("mandelbox", mandelbox = %mandelbox.id());
                    self.owners.spawn(owner::own(self.shared.clone(), mandelbox).instrument(span));
                }
                Step::Refuse(row) => {
                    tracing::info!(mandelbox = %row.id, "refused: this host is draining");
                    self.shared.lobby.refuse(&row.id, Failure::Draining);
                    self.remove_row(row);
                }
                Step::Forget(row) => {
                    tracing::warn!(mandelbox = %row.id, "its row says that it lives here, and it does not: removing the row");
                    self.remove_row(row);
                }
                Step::End(id, reason) => {
                    if let Some(mandelbox) = self.shared.board.get(&id) {
                        mandelbox.end(EndOrder { reason, grace: None });
                    }
                }
                Step::Drain(cause) => self.begin_drain(DrainOrder { cause, deadline: None, force: false }),
                Step::RemoveOrphan(container) => self.remove_orphan(container),
            }
        }
    }

    fn remove_row(&mut self, row: MandelboxRow) {
        let (shared, id) = (self.shared.clone(), row.id.clone());
        self.spent.insert(id.clone(), row);
        self.chores.spawn(async move {
            shared.persist("removing a row", || shared.pubsub.remove(&shared.facts.name, &id)).await;
        });
    }

    fn remove_orphan(&mut self, container: ContainerId) {
        if !self.orphans.insert(container.clone()) {
            return;
        }
        tracing::warn!(container = %container.0, "removing a container of this host that no mandelbox owns");
        let shared = self.shared.clone();
        self.chores.spawn(async move {
            let limit = shared.settings.mandelbox.timeouts.remove;
            let container = container.into();
            let removal = shared.runtime.remove(&container);
            if let Err(error) = within(limit, "removing an orphaned container", removal).await {
                tracing::warn!(error = %host_core::chain(&error), "an orphaned container stays for now");
            }
        });
    }

    fn sight(&mut self, sighting: Sighting) {
        match sighting {
            Sighting::Event(event) => self.sight_event(&event),
            Sighting::List { containers, expected } => {
                let steps = planner::compare(&containers, &expected, &self.observed());
                // An orphan that could not be removed is tried again with the next list.
                self.orphans.clear();
                self.begin(steps);
            }
        }
    }

    fn sight_event(&self, event: &ContainerEvent) {
        let id = event.labels.get(LABEL_MANDELBOX).and_then(|id| id.parse().ok());
        let Some(mandelbox) = id.and_then(|id: MandelboxId| self.shared.board.get(&id)) else { return };
        if mandelbox.state().container.as_ref() != Some(&event.id) {
            return;
        }
        let reason = match event.change {
            ContainerChange::Exited(exit) => EndReason::Exited(mandelbox.with_oom(exit)),
            ContainerChange::Removed => EndReason::ContainerLost,
            ContainerChange::Oom => return mandelbox.update(|state| state.oom = true),
            ContainerChange::Created | ContainerChange::Started => return,
        };
        mandelbox.end(EndOrder { reason, grace: None });
    }

    /// The first order begins the drain; later ones can only hurry it.
    fn begin_drain(&mut self, order: DrainOrder) {
        let drain = &self.shared.settings.drain;
        let until = Instant::now() + order.deadline.unwrap_or(drain.deadline);
        let grace = if order.force { Duration::ZERO } else { drain.grace };
        match &mut self.drain {
            Some(running) => {
                running.until = running.until.min(until);
                running.over &= running.grace <= grace;
                running.grace = running.grace.min(grace);
            }
            None => {
                tracing::info!(cause = ?order.cause, mandelboxes = self.shared.board.len(), "draining");
                self.drain = Some(Drain { cause: order.cause, until, grace, over: false });
                self.condition.send_modify(|condition| condition.draining = Some(order.cause));
                self.shared.lobby.close(Failure::Draining);
                self.mark_draining(order.cause);
            }
        }
    }

    fn mark_draining(&mut self, cause: DrainCause) {
        if matches!(cause, DrainCause::ControlPlane | DrainCause::GivenUp | DrainCause::Unregistered) {
            return;
        }
        let shared = self.shared.clone();
        self.chores.spawn(async move {
            shared.persist("marking this host as draining", || shared.pubsub.mark_draining(&shared.facts.name)).await;
        });
    }

    /// The drain's deadline has passed, or the time after it too.
    fn drain_time(&mut self) {
        let Some(drain) = &mut self.drain else { return };
        if drain.over {
            tracing::error!("what is left cannot be taken down in time; leaving it to the next start");
            self.shared.hurry.cancel();
            return;
        }
        drain.over = true;
        let grace = Some(drain.grace);
        for mandelbox in self.shared.board.all() {
            mandelbox.end(EndOrder { reason: EndReason::Drained, grace });
        }
    }
}

impl Shared {
    /// Tries until it works, unless trying again cannot help or the service ends.
    pub(crate) async fn persist<F>(&self, doing: &'static str, operation: impl Fn() -> F)
    where
        F: Future<Output = Result<(), PluginError>>,
    {
        let mut pauses = Pauses::up_to(Duration::from_secs(30));
        loop {
            let Err(error) = within(self.settings.pubsub.timeout, doing, operation()).await else { return };
            tracing::warn!(doing, error = %host_core::chain(&error), "the control plane could not be told");
            if error.retry() == host_core::Retry::Never {
                return;
            }
            tokio::select! {
                () = pauses.pause() => {}
                () = self.hurry.cancelled() => return,
            }
        }
    }
}

/// File system work, off the threads that must not block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let span = tracing::Span::current();
    task::spawn_blocking(move || span.in_scope(work)).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

#[cfg(test)]
mod tests;
