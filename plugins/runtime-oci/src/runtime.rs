//! What the service does with its containers: creating, starting, stopping, removing.
//!
//! ```text
//!   create:  image and network, side by side ─▶ directory ─▶ supervisor ─▶ launch
//!   start:   ports published ─▶ the process begins
//!   remove:  killed ─▶ supervisor gone ─▶ address, layers, directory given back
//! ```
//!
//! Each is a task of its own, so that a caller who gives up leaves nothing half done; whoever removes the container
//! makes the others give up.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use host_core::{
    ErrorKind, PluginError,
    runtime::{ContainerChange, ContainerId, ContainerRef, ContainerSpec, Network, Result},
};
use nix::sys::signal::Signal;
use oci_images::Store;
use oci_network::Networks;
use tokio::task::JoinError;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cgroup::Layout,
    config::Config,
    events::Hub,
    held::{Held, Link},
    place::{self, Description, Root},
    program::Spares,
    protocol::{Asked, Phase},
};

/// How long a killed container's supervisor may take to tell of its end before it is killed itself.
const TIDY_END: Duration = Duration::from_secs(2);

/// Everything that the service's containers have in common.
#[derive(Debug)]
pub(crate) struct Containers {
    pub(crate) config: Config,
    pub(crate) root: Root,
    /// Held as long as this is.
    pub(crate) _lock: File,
    pub(crate) layout: Layout,
    pub(crate) store: Store,
    pub(crate) networks: Networks,
    /// Held by who makes the kernel wait ahead of a move: once is enough for all.
    pub(crate) hastening: Mutex<()>,
    pub(crate) spares: Spares,
    pub(crate) table: Table,
    pub(crate) hub: Arc<Hub>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

/// The containers there are.
#[derive(Debug, Default)]
pub(crate) struct Table(Mutex<HashMap<String, Arc<Held>>>);

impl Table {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<Held>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn list(&self) -> Vec<Arc<Held>> {
        self.all().values().cloned().collect()
    }

    pub(crate) fn find(&self, container: &ContainerRef) -> Option<Arc<Held>> {
        let all = self.all();
        match container {
            ContainerRef::Id(id) => all.get(&id.0).cloned(),
            ContainerRef::Name(name) => all.values().find(|held| held.name == name.as_str()).cloned(),
        }
    }

    /// Unless its name is taken.
    pub(crate) fn add(&self, held: &Arc<Held>) -> Result<()> {
        let mut all = self.all();
        if let Some(other) = all.values().find(|other| other.name == held.name) {
            let text = format!("the name {} is taken by container {}", other.name, other.id.0);
            return Err(PluginError::new(ErrorKind::Conflict, text));
        }
        all.insert(held.id.0.clone(), held.clone());
        Ok(())
    }

    fn remove(&self, held: &Held) {
        self.all().remove(&held.id.0);
    }
}

/// A failed step with a container's files, by what it does.
pub(crate) fn failed<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> PluginError {
    let doing = doing.into();
    move |error| {
        let error = error.into();
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => {
                ErrorKind::Exhausted
            }
            io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            _ => ErrorKind::Internal,
        };
        PluginError::new(kind, doing).with_source(error)
    }
}

impl Containers {
    pub(crate) async fn create(self: &Arc<Self>, spec: &ContainerSpec) -> Result<ContainerId> {
        if spec.network != Network::Bridge && !spec.ports.is_empty() {
            let text = "ports can be published only with a network of the container's own (bridge)";
            return Err(PluginError::new(ErrorKind::Invalid, text));
        }
        let id = format!("{:032x}", rand::random::<u128>());
        let cgroup = self.config.cgroup_parent.join(&id);
        let description = Description {
            name: spec.name.to_string(),
            labels: spec.labels.clone(),
            address: None,
            ports: spec.ports.clone(),
            terminal: spec.terminal,
            stop_signal: None,
            cgroup: cgroup.clone(),
        };
        let held = Arc::new(Held::new(ContainerId(id), &self.root, &self.layout, description));
        self.table.add(&held)?;
        let (containers, spec) = (self.clone(), spec.clone());
        self.see_through(async move { containers.make(held, spec).await }).await
    }

    /// Runs `work` to its end, even if this future is dropped.
    async fn see_through<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.tasks.spawn(work).await.unwrap_or_else(|error| Err(abandoned(error)))
    }

    /// A process will be moved to its control group some time later: the kernel may begin to wait for that.
    pub(crate) fn hasten(self: &Arc<Self>) {
        let containers = self.clone();
        self.tasks.spawn_blocking(move || {
            if let Ok(_alone) = containers.hastening.try_lock() {
                containers.layout.hasten_moves();
            }
        });
    }

    async fn make(self: Arc<Self>, held: Arc<Held>, spec: ContainerSpec) -> Result<ContainerId> {
        self.hasten();
        let mut gate = held.gate.lock().await;
        let error = match self.launch(&held, &spec).await {
            Ok(link) => {
                *gate = Some(link);
                self.hub.tell(&held, ContainerChange::Created);
                return Ok(held.id.clone());
            }
            Err(error) => error,
        };
        drop(gate);
        if let Err(error) = self.clone().dispose(held).await {
            tracing::error!(error = %host_core::chain(&error), "what was made of a container cannot be removed");
        }
        Err(error)
    }

    pub(crate) async fn start(self: &Arc<Self>, container: &ContainerRef) -> Result<()> {
        let held = self.table.find(container).ok_or_else(|| absent(container))?;
        let containers = self.clone();
        self.see_through(async move {
            let mut gate = held.gate.lock().await;
            if matches!(held.phase(), Phase::Exited(_)) && !held.is_gone() {
                let text = format!("container {} has ended and cannot be started again", held.name);
                return Err(PluginError::new(ErrorKind::Conflict, text));
            }
            let link = gate.as_mut().filter(|_| !held.is_gone()).ok_or_else(|| removed(&held.name))?;
            let started = containers.begin(&held, link);
            held.leaving.run_until_cancelled(started).await.unwrap_or_else(|| Err(removed(&held.name)))
        })
        .await
    }

    async fn begin(&self, held: &Held, link: &mut Link) -> Result<()> {
        if let Phase::Running { .. } = held.phase() {
            return Ok(());
        }
        if let Some(address) = held.address.get() {
            self.networks.publish(*address, &held.ports).await?;
        }
        link.ask(&Asked::Start).await
    }

    pub(crate) async fn stop(self: &Arc<Self>, container: &ContainerRef, grace: Duration) -> Result<()> {
        let Some(held) = self.table.find(container) else {
            return Ok(());
        };
        let asked = held.stop_signal.get().and_then(|number| Signal::try_from(*number).ok());
        let first = if grace.is_zero() { Signal::SIGKILL } else { asked.unwrap_or(Signal::SIGTERM) };
        self.clone().signal(held.clone(), first).await?;
        if !matches!(held.phase(), Phase::Running { .. }) {
            return Ok(());
        }
        if tokio::time::timeout(grace, held.ended()).await.is_err() {
            self.clone().signal(held.clone(), Signal::SIGKILL).await?;
            held.ended().await;
        }
        Ok(())
    }

    /// To what runs.
    async fn signal(self: Arc<Self>, held: Arc<Held>, signal: Signal) -> Result<()> {
        self.see_through(async move {
            let mut gate = held.gate.lock().await;
            match (gate.as_mut(), held.phase()) {
                // Who removes it does not wait for a supervisor that does not answer.
                (Some(link), Phase::Running { .. }) => {
                    match held.leaving.run_until_cancelled(link.signal(signal)).await {
                        // Its supervisor has ended, so it has too.
                        Some(Err(error)) if error.kind() == ErrorKind::Unavailable => Ok(()),
                        Some(other) => other,
                        None => Ok(()),
                    }
                }
                _ => Ok(()),
            }
        })
        .await
    }

    pub(crate) async fn remove(self: &Arc<Self>, container: &ContainerRef) -> Result<()> {
        match self.table.find(container) {
            Some(held) => self.see_through(self.clone().dispose(held)).await,
            None => Ok(()),
        }
    }

    /// Ends it and gives back all that it has. What cannot be given back keeps it in the table, for another try.
    pub(crate) async fn dispose(self: Arc<Self>, held: Arc<Held>) -> Result<()> {
        held.leaving.cancel();
        let mut gate = held.gate.lock().await;
        if held.is_gone() {
            return Ok(());
        }
        let withdrawn = async {
            match held.address.get() {
                Some(address) => self.networks.withdraw(*address).await,
                None => Ok(()),
            }
        };
        let (ended, withdrawn) = tokio::join!(self.end(&held, gate.as_mut()), withdrawn);
        ended.and(withdrawn)?;
        let (containers, id) = (self.clone(), held.id.0.clone());
        tokio::task::spawn_blocking(move || containers.discard(&id))
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(failed(format!("the directory of {} cannot be removed", held.name)))?;
        self.store.release(&held.id.0).await?;
        // Last of all: what fails before is tried again, and the address may be another's as soon as it is free.
        if let Some(address) = held.address.get() {
            self.networks.release(*address).await;
        }
        held.gone.store(true, Ordering::Release);
        self.table.remove(&held);
        self.hub.tell(&held, ContainerChange::Removed);
        Ok(())
    }

    /// Kills it, in good order if its supervisor can.
    async fn end(&self, held: &Arc<Held>, link: Option<&mut Link>) -> Result<()> {
        if let Some(link) = link {
            let asked = async {
                // When it has ended already there is nobody to ask.
                let _ = link.signal(Signal::SIGKILL).await;
                held.unsupervised().await;
            };
            if tokio::time::timeout(TIDY_END, asked).await.is_err() {
                tracing::warn!(container = held.name, "a supervisor does not answer; killing it");
            }
        }
        // After an end in good order there is nothing left to kill, which only this can tell.
        let of = held.clone();
        tokio::task::spawn_blocking(move || of.destroy()).await.unwrap_or_else(|error| Err(abandoned(error)))
    }

    /// Out of the way at once, which blocks for a moment; deleted afterwards, because an application may have written much.
    pub(crate) fn discard(&self, id: &str) -> io::Result<()> {
        let trash = self.root.trash().join(id);
        match fs::rename(self.root.disk(id), &trash) {
            Ok(()) => {
                self.tasks.spawn(async move {
                    if let Err(error) = place::delete(&trash).await {
                        tracing::warn!(%error, path = %trash.display(), "a removed container's files stay until the next start");
                    }
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        match fs::remove_dir_all(self.root.container(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// A task that panicked, or that the end of the program has overtaken.
pub(crate) fn abandoned(error: JoinError) -> PluginError {
    PluginError::new(ErrorKind::Internal, "work on a container was abandoned").with_source(error)
}

pub(crate) fn absent(container: &ContainerRef) -> PluginError {
    PluginError::new(ErrorKind::NotFound, format!("there is no container {}", container.as_str()))
}

pub(crate) fn removed(name: &str) -> PluginError {
    PluginError::new(ErrorKind::NotFound, format!("container {name} is being removed"))
}
