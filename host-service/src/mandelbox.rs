//! One mandelbox as everybody sees it: what it is, where it is in its life, and the order to end it.
//!
//! The owner task is the only writer of the state; anybody may order the end. Both are level-triggered watch
//! channels, so nobody can miss a change or give an order too early or twice.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use host_core::{
    AppName, ContainerName, MandelboxId,
    gpu::GpuDevice,
    lifecycle::{EndReason, Event, Phase, Stage, Timing},
    pubsub::MandelboxRow,
    runtime::{ContainerId, ContainerPort, Exit},
};
use tokio::sync::watch;

/// The shared side of a mandelbox.
#[derive(Debug)]
pub struct Mandelbox {
    /// What the control plane said of it when it was spun up.
    pub row: MandelboxRow,
    /// The application in it.
    pub app: AppName,
    /// Its container's name, fixed before the container exists.
    pub container: ContainerName,
    /// When this host took it.
    pub created: SystemTime,
    state: watch::Sender<State>,
    end: watch::Sender<Option<EndOrder>>,
}

/// Where it is in its life and what it has.
#[derive(Debug, Clone)]
pub struct State {
    /// Where.
    pub phase: Phase,
    /// Since when.
    pub since: SystemTime,
    /// The engine's id, once created.
    pub container: Option<ContainerId>,
    /// Host port of each of its ports, once leased.
    pub ports: Vec<(ContainerPort, u16)>,
    /// Its console, once leased.
    pub tty: Option<u16>,
    /// Its GPU, once leased.
    pub gpu: Option<GpuDevice>,
    /// The kernel killed something in it for memory.
    pub oom: bool,
    /// Its container ended while the engine still started it.
    pub exited: Option<Exit>,
    /// How long each finished stage took.
    pub timings: Vec<Timing>,
}

/// The order to end a mandelbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndOrder {
    /// Why.
    pub reason: EndReason,
    /// How long its processes have after `SIGTERM`; `None` is the configured time.
    pub grace: Option<Duration>,
}

impl Mandelbox {
    /// Not claimed yet.
    pub fn new(row: MandelboxRow, app: AppName) -> Arc<Self> {
        let container = ContainerName::of(&app, &row.id);
        let created = SystemTime::now();
        let state = State {
            phase: Phase::Claiming,
            since: created,
            container: None,
            ports: Vec::new(),
            tty: None,
            gpu: None,
            oom: false,
            exited: None,
            timings: Vec::new(),
        };
        let (state, end) = (watch::Sender::new(state), watch::Sender::new(None));
        Arc::new(Self { row, app, container, created, state, end })
    }

    /// Which.
    pub fn id(&self) -> &MandelboxId {
        &self.row.id
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Orders its end. The first reason stays; a later order may only shorten the grace.
    pub fn end(&self, order: EndOrder) {
        self.end.send_if_modified(|current| match current {
            None => {
                *current = Some(order);
                true
            }
            Some(given) => {
                let sooner = order.grace.is_some_and(|grace| given.grace.is_none_or(|before| grace < before));
                if sooner {
                    given.grace = order.grace;
                }
                sooner
            }
        });
    }

    /// Its end is ordered or under way.
    pub fn is_ending(&self) -> bool {
        self.end.borrow().is_some() || self.state.borrow().phase.is_ending()
    }

    /// Returns once nothing is left of it.
    pub async fn gone(&self) {
        let mut state = self.state.subscribe();
        // The sender lives as long as `self`, so this only returns by the condition.
        let _ = state.wait_for(|state| matches!(state.phase, Phase::Gone(_))).await;
    }

    /// The order to end it, as soon as there is one.
    pub(crate) async fn end_ordered(&self) -> EndOrder {
        let mut end = self.end.subscribe();
        let order = end.wait_for(Option::is_some).await.ok().and_then(|order| order.clone());
        match order {
            Some(order) => order,
            // The sender lives as long as `self`.
            None => std::future::pending().await,
        }
    }

    /// Changes of the end order, for a grace period that is shortened.
    pub(crate) fn end_orders(&self) -> watch::Receiver<Option<EndOrder>> {
        self.end.subscribe()
    }

    /// Moves it on. For its owner only.
    pub(crate) fn advance(&self, event: Event) {
        self.state.send_modify(|state| match state.phase.clone().after(event) {
            Ok(phase) => {
                if phase.name() != state.phase.name() {
                    state.since = SystemTime::now();
                }
                state.phase = phase;
            }
            Err(error) => {
                tracing::error!(mandelbox = %self.row.id, %error, "the lifecycle was driven wrongly")
            }
        });
    }

    /// Changes what it has.
    pub(crate) fn update(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    /// Keeps an exit while the engine still starts the container, for the owner to judge. `false` when it does not.
    pub(crate) fn keep_exit(&self, exit: Exit) -> bool {
        self.state.send_if_modified(|state| {
            let starting = state.phase == Phase::Launching;
            if starting {
                state.exited = Some(exit);
            }
            starting
        })
    }

    /// An exit, with what earlier events told of it.
    pub(crate) fn with_oom(&self, exit: Exit) -> Exit {
        Exit { oom: exit.oom || self.state.borrow().oom, ..exit }
    }

    /// Notes how long a stage took. For its owner only.
    pub(crate) fn timed(&self, stage: Stage, took: Duration) {
        self.state.send_modify(|state| state.timings.push((stage, took)));
    }
}

/// Every mandelbox that has an owner task.
#[derive(Debug, Default)]
pub struct Board(Mutex<BTreeMap<MandelboxId, Arc<Mandelbox>>>);

impl Board {
    /// The mandelbox of that id.
    pub fn get(&self, id: &MandelboxId) -> Option<Arc<Mandelbox>> {
        self.entries().get(id).cloned()
    }

    /// Every one, by id.
    pub fn all(&self) -> Vec<Arc<Mandelbox>> {
        self.entries().values().cloned().collect()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    pub(crate) fn add(&self, mandelbox: Arc<Mandelbox>) {
        self.entries().insert(mandelbox.row.id.clone(), mandelbox);
    }

    pub(crate) fn remove(&self, id: &MandelboxId) {
        self.entries().remove(id);
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<MandelboxId, Arc<Mandelbox>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
