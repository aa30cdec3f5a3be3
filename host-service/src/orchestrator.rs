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

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use host_config::{Profile, Settings};
use host_core::{
    MandelboxId, PluginError, Retry,
    lease::Pools,
    lifecycle::{EndReason, Phase},
    planner::{self, DrainCause, LABEL_MANDELBOX, LABEL_RUN, Observed, Owned, Step},
    pubsub::{DesiredState, InstanceFacts, MandelboxRow, PubSub},
    runtime::{Container, ContainerChange, ContainerEvent, ContainerId, Runtime},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::{self, JoinSet},
    time::{Instant, sleep, sleep_until},
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
};

mod container;
mod estate;
pub(crate) mod image;
mod isolation;
mod owner;
mod spin_up;
mod take_down;

use owner::Ended;

/// Between tries to tell the control plane.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

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
    /// Told when nothing of a mandelbox is left on this host.
    pub settled: Notify,
    /// Of this run of the service alone; every container's label.
    pub run: String,
}

/// What wakes the orchestrator.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub desired: watch::Receiver<Option<DesiredState>>,
    pub sightings: mpsc::Receiver<Sighting>,
    pub drains: mpsc::UnboundedReceiver<DrainOrder>,
}

/// What the engine showed.
#[derive(Debug)]
pub(crate) enum Sighting {
    /// A container changed.
    Event(ContainerEvent),
    /// Every container of this host, and which were expected to be there when the list was asked for.
    List { containers: Vec<Container>, expected: BTreeMap<MandelboxId, ContainerId> },
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Orchestrator {
    shared: Arc<Shared>,
    inputs: Inputs,
    condition: watch::Sender<Condition>,
    owners: JoinSet<Ended>,
    spent: BTreeMap<MandelboxId, MandelboxRow>,
    /// Short pieces of work on rows and orphans.
    chores: JoinSet<()>,
    orphans: BTreeSet<ContainerId>,
    drain: Option<Drain>,
    /// What there is to plan from has changed.
    dirty: bool,
}

#[derive(Debug)]
struct Drain {
    cause: DrainCause,
    until: Instant,
    grace: Duration,
    /// The deadline has passed and every mandelbox is ordered to end.
    over: bool,
    /// Since when nothing but the control plane is waited for.
    settled: Option<Instant>,
}

impl Drain {
    /// When there is something to do about it: the deadline; then, when to stop trying to take down what cannot be
    /// taken down, because its engine does not answer. A control plane that does not answer is waited for less: with
    /// the instance's row all its rows go.
    fn next(&self, settings: &Settings) -> Instant {
        let limits = &settings.mandelbox.timeouts;
        let next = if self.over { self.until + self.grace + limits.stop + limits.remove } else { self.until };
        self.settled.map_or(next, |settled| next.min(settled + settings.pubsub.timeout))
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
            dirty: true,
        }
    }

    /// Runs until the host is drained; the cause of the drain.
    pub(crate) async fn run(mut self) -> DrainCause {
        loop {
            self.plan();
            let on_host = self.shared.board.all().iter().any(|m| !matches!(m.state().phase, Phase::Gone(_)));
            if let Some(drain) = &mut self.drain {
                if self.owners.is_empty() && self.chores.is_empty() {
                    return drain.cause;
                }
                drain.settled = if on_host { None } else { drain.settled.or_else(|| Some(Instant::now())) };
            }
            self.wake().await;
        }
    }

    /// Waits for one input and takes it in.
    async fn wake(&mut self) {
        let next = self.drain.as_ref().map(|drain| drain.next(&self.shared.settings));
        tokio::select! {
            // A closed channel means that its sender ended with the service; the other inputs go on.
            Ok(()) = self.inputs.desired.changed() => self.dirty = true,
            () = self.shared.settled.notified() => {}
            Some(sighting) = self.inputs.sightings.recv() => self.sight(sighting),
            Some(order) = self.inputs.drains.recv() => self.begin_drain(order),
            Some(ended) = self.owners.join_next() => match ended {
                Ok(ended) => self.end_of(ended),
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

    /// Off the board and not to be planned again, both at once.
    fn end_of(&mut self, Ended { id, spent }: Ended) {
        self.shared.board.remove(&id);
        self.spent.extend(spent.map(|row| (id, row)));
        self.dirty = true;
    }

    /// Compares what is wanted with what is, and begins what is to be done.
    fn plan(&mut self) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        let desired = self.inputs.desired.borrow_and_update().clone();
        let Some(desired) = desired else { return };
        let rows: BTreeMap<_, _> = desired.mandelboxes.iter().map(|row| (&row.id, row)).collect();
        self.spent.retain(|id, spent| rows.get(id).is_some_and(|row| row.is_same(spent)));
        let steps = planner::plan(&desired, &self.observed());
        self.begin(steps);
    }

    fn observed(&self) -> Observed {
        let owned = self.shared.board.all();
        Observed {
            draining: self.drain.is_some(),
            owned: owned
                .iter()
                .map(|m| (m.id().clone(), Owned { row: m.row.clone(), ending: m.is_ending() }))
                .collect(),
            spent: self.spent.clone(),
        }
    }

    fn begin(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::SpinUp(row) => {
                    let app =
                        row.app.clone().unwrap_or_else(|| self.shared.settings.mandelbox.default_app.clone());
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
        let owns = |mandelbox: &Arc<Mandelbox>| mandelbox.state().container.as_ref() == Some(&event.id);
        let Some(mandelbox) = self.shared.board.all().into_iter().find(owns) else { return };
        let reason = match event.change {
            // A start that fails can end the container too: what it means is the spin-up's to say.
            ContainerChange::Exited(exit) if mandelbox.keep_exit(exit) => return,
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
                self.drain = Some(Drain { cause: order.cause, until, grace, over: false, settled: None });
                self.dirty = true;
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
            shared
                .persist("marking this host as draining", || shared.pubsub.mark_draining(&shared.facts.name))
                .await;
        });
    }

    /// The drain's deadline has passed, or the time after it too.
    fn drain_time(&mut self) {
        let Some(drain) = &mut self.drain else { return };
        if drain.settled.is_some() || drain.over {
            tracing::warn!("what is left to do cannot be done in time; leaving it");
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
    /// A container of this run and this mandelbox.
    pub(crate) fn is_ours(&self, container: &Container, mandelbox: &Mandelbox) -> bool {
        let label = |name: &str| container.labels.get(name).map(String::as_str);
        label(LABEL_RUN) == Some(&self.run) && label(LABEL_MANDELBOX) == Some(mandelbox.id().as_str())
    }

    /// Tries until it works or the service ends.
    pub(crate) async fn persist<F>(&self, doing: &'static str, operation: impl Fn() -> F)
    where
        F: Future<Output = Result<(), PluginError>>,
    {
        let mut pauses = Pauses::up_to(LONGEST_PAUSE);
        loop {
            let Err(error) = within(self.settings.pubsub.timeout, doing, operation()).await else { return };
            tracing::warn!(doing, error = %host_core::chain(&error), "the control plane could not be told");
            let pause = async {
                match error.retry() {
                    Retry::Later => pauses.pause().await,
                    // Somebody has to change something first.
                    Retry::Never => sleep(LONGEST_PAUSE).await,
                }
            };
            tokio::select! {
                () = pause => {}
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
    task::spawn_blocking(move || span.in_scope(work))
        .await
        .unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

#[cfg(test)]
mod tests;
