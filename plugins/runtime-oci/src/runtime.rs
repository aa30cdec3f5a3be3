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
    fs::{DirBuilder, File, Permissions},
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use host_core::{
    ErrorKind, PluginError,
    runtime::{ContainerChange, ContainerId, ContainerRef, ContainerSpec, Network, Propagation, Result},
};
use nix::sys::signal::Signal;
use oci_images::{Store, Unpacked};
use oci_network::Networks;
use oci_spec::runtime::Spec;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    bundle::{self, AppArmor, Files, NetworkNamespace, Place, files},
    cgroup::Layout,
    config::Config,
    events::Hub,
    held::{Held, connect, listen},
    place::{self, Description, Root, name},
    program::Program,
    protocol::{Asked, Launch, Phase},
};

/// Stands for the network namespace that the supervisor is given; only it knows the descriptor.
const NETWORK: &str = "/proc/self/fd/1";

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
    pub(crate) program: Program,
    pub(crate) table: Table,
    pub(crate) hub: Arc<Hub>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

/// The containers there are.
#[derive(Debug, Default)]
pub(crate) struct Table(Mutex<HashMap<String, Arc<Held>>>);

impl Table {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Held>>> {
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
            cgroup: cgroup.clone(),
        };
        let directory = self.root.container(&id);
        let held = Arc::new(Held::new(ContainerId(id), directory, self.layout.group(&cgroup), description));
        self.table.add(&held)?;
        let (containers, spec) = (self.clone(), spec.clone());
        self.see_through(async move { containers.make(held, spec).await }).await
    }

    /// Runs `work` to its end, even if this future is dropped.
    async fn see_through<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.tasks.spawn(work).await.unwrap_or_else(|error| {
            Err(PluginError::new(ErrorKind::Internal, "work on a container was abandoned").with_source(error))
        })
    }

    async fn make(self: Arc<Self>, held: Arc<Held>, spec: ContainerSpec) -> Result<ContainerId> {
        let mut gate = held.gate.lock().await;
        let made = held.leaving.run_until_cancelled(self.launch(&held, &spec)).await;
        let error = match made {
            Some(Ok(link)) => {
                *gate = Some(link);
                self.hub.tell(&held, ContainerChange::Created);
                return Ok(held.id.clone());
            }
            Some(Err(error)) => error,
            None => removed(&held.name),
        };
        drop(gate);
        if let Err(error) = self.clone().dispose(held).await {
            tracing::error!(error = %host_core::chain(&error), "what was made of a container cannot be removed");
        }
        Err(error)
    }

    async fn launch(self: &Arc<Self>, held: &Arc<Held>, spec: &ContainerSpec) -> Result<crate::held::Link> {
        let image = self.store.acquire(&spec.image, &held.id.0);
        let (unpacked, network) = tokio::try_join!(image, self.network(held, spec.network))?;
        let files = self.furnish(held, spec.network).await?;
        let bundle = self.bundle(held, spec, &unpacked, files, network.is_some())?;
        let asked = Asked::Launch(Box::new(Launch {
            id: held.id.0.clone(),
            spec: bundle,
            user: bundle::image_user(&unpacked.config).to_owned(),
            images: self.root.images(),
            layers: unpacked.layers,
            cgroup: held.cgroup.clone(),
            binary: self.config.binary.clone(),
            shared_mounts: spec.mounts.iter().any(|mount| mount.propagation == Propagation::Shared),
            log_bytes: self.config.log_bytes,
        }));
        let starting = failed(format!("the supervisor of {} cannot be started", held.name));
        let (mut link, ear) = self.supervisor(held, network).await.map_err(starting)?;
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(ear.listen(self.hub.clone())));
        link.ask(&asked).await.map_err(|error| with_last_words(error, &held.directory))?;
        Ok(link)
    }

    async fn supervisor(
        &self,
        held: &Arc<Held>,
        network: Option<OwnedFd>,
    ) -> io::Result<(crate::held::Link, crate::held::Ear)> {
        let log = place::create(&held.directory.join(name::OWN_LOG))?;
        let child = self.program.supervise(&held.directory, listen(&held.directory)?, network, log)?;
        connect(held, Some(child)).await
    }

    /// A network namespace for it, unless it is to have the host's.
    async fn network(&self, held: &Held, network: Network) -> Result<Option<OwnedFd>> {
        match network {
            Network::Host => Ok(None),
            Network::None => oci_network::isolated().await.map(Some),
            Network::Bridge => {
                let taken = self.networks.take().await?;
                // The only place that sets it.
                let _ = held.address.set(taken.address);
                Ok(Some(taken.namespace))
            }
        }
    }

    /// The container's directory and what is in it from the beginning.
    async fn furnish(&self, held: &Held, network: Network) -> Result<Files> {
        let furnishing = || failed(format!("the directory of {} cannot be made", held.name));
        let make = |path: &Path, mode| DirBuilder::new().recursive(true).mode(mode).create(path);
        let directory = &held.directory;
        make(directory, 0o700).map_err(furnishing())?;
        // First of all, so that what a crash leaves can be told apart and taken down.
        place::write_json(&directory.join(name::CONTAINER), &held.description()).map_err(furnishing())?;
        for inner in [name::ETC, name::BUNDLE, name::ROOTFS, name::WORK] {
            make(&directory.join(inner), 0o700).map_err(furnishing())?;
        }
        // It is the container's root directory, seen from inside.
        make(&directory.join(name::UPPER), 0o755).map_err(furnishing())?;
        let hostname = hostname(held);
        let (hosts, resolv_conf) = match network {
            Network::Bridge => (
                files::hosts(&hostname, held.address.get().map(|address| (*address).into())),
                self.networks.resolv_conf().await?,
            ),
            Network::None => (files::hosts(&hostname, None), String::new()),
            Network::Host => (host_file("/etc/hosts"), host_file("/etc/resolv.conf")),
        };
        let [hosts, resolv_conf, hostname] =
            [("hosts", hosts), ("resolv.conf", resolv_conf), ("hostname", files::hostname(&hostname))]
                .map(|(file, text)| readable(&directory.join(name::ETC).join(file), &text));
        Ok(Files {
            hosts: hosts.map_err(furnishing())?,
            resolv_conf: resolv_conf.map_err(furnishing())?,
            hostname: hostname.map_err(furnishing())?,
        })
    }

    fn bundle(
        &self,
        held: &Held,
        spec: &ContainerSpec,
        unpacked: &Unpacked,
        files: Files,
        own_network: bool,
    ) -> Result<Spec> {
        let wants_cdi = spec.gpu.as_ref().is_some_and(|gpu| !gpu.cdi.is_empty());
        let cdi = if wants_cdi { cdi::Registry::read(&self.config.cdi) } else { cdi::Registry::default() };
        let place = Place {
            // The supervisor knows better.
            rootfs: name::ROOTFS.into(),
            cgroups_path: held.cgroup.clone(),
            cgroups: self.layout.seen_inside(),
            counts_swap: self.layout.counts_swap(),
            hostname: hostname(held),
            network: if own_network {
                NetworkNamespace::Path(NETWORK.into())
            } else {
                NetworkNamespace::Host
            },
            files,
            apparmor: apparmor(),
            cdi: &cdi,
        };
        bundle::spec(spec, &unpacked.config, &place)
    }

    pub(crate) async fn start(self: &Arc<Self>, container: &ContainerRef) -> Result<()> {
        let held = self.table.find(container).ok_or_else(|| absent(container))?;
        let containers = self.clone();
        self.see_through(async move {
            let mut gate = held.gate.lock().await;
            let link = gate.as_mut().filter(|_| !held.is_gone()).ok_or_else(|| removed(&held.name))?;
            let started = containers.begin(&held, link);
            held.leaving.run_until_cancelled(started).await.unwrap_or_else(|| Err(removed(&held.name)))
        })
        .await
    }

    async fn begin(&self, held: &Held, link: &mut crate::held::Link) -> Result<()> {
        match held.phase() {
            Phase::Running { .. } => return Ok(()),
            Phase::Exited(_) => {
                let text = format!("container {} has ended and cannot be started again", held.name);
                return Err(PluginError::new(ErrorKind::Conflict, text));
            }
            Phase::Launching | Phase::Created { .. } => {}
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
        let first = if grace.is_zero() { Signal::SIGKILL } else { Signal::SIGTERM };
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
                (Some(link), Phase::Running { .. }) => match link.signal(signal).await {
                    // Its supervisor has ended, so it has too.
                    Err(error) if error.kind() == ErrorKind::Unavailable => Ok(()),
                    other => other,
                },
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
        if let Some(address) = held.address.get() {
            self.networks.release(*address).await;
        }
        self.discard(&held.id.0)
            .map_err(failed(format!("the directory of {} cannot be removed", held.name)))?;
        self.store.release(&held.id.0).await?;
        held.gone.store(true, Ordering::Release);
        self.table.remove(&held);
        self.hub.tell(&held, ContainerChange::Removed);
        Ok(())
    }

    /// Kills it, in good order if its supervisor can.
    async fn end(&self, held: &Arc<Held>, link: Option<&mut crate::held::Link>) -> Result<()> {
        if let Some(link) = link {
            let asked = async {
                // When it has ended already there is nobody to ask.
                let _ = link.signal(Signal::SIGKILL).await;
                held.unsupervised().await;
            };
            if tokio::time::timeout(TIDY_END, asked).await.is_ok() {
                return Ok(());
            }
            tracing::warn!(container = held.name, "a supervisor does not answer; killing it");
        }
        let of = held.clone();
        let destroyed = tokio::task::spawn_blocking(move || of.destroy()).await;
        destroyed.unwrap_or_else(|error| {
            Err(PluginError::new(ErrorKind::Internal, "killing a container was abandoned").with_source(error))
        })
    }

    /// Out of the way at once; deleted afterwards, because an application may have written much.
    pub(crate) fn discard(&self, id: &str) -> io::Result<()> {
        let trash = self.root.trash().join(id);
        match std::fs::rename(self.root.container(id), &trash) {
            Ok(()) => {
                self.tasks.spawn_blocking(move || {
                    if let Err(error) = std::fs::remove_dir_all(&trash) {
                        tracing::warn!(%error, path = %trash.display(), "a removed container's files stay until the next start");
                    }
                });
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

pub(crate) fn absent(container: &ContainerRef) -> PluginError {
    PluginError::new(ErrorKind::NotFound, format!("there is no container {}", container.as_str()))
}

fn removed(name: &str) -> PluginError {
    PluginError::new(ErrorKind::NotFound, format!("container {name} is being removed"))
}

/// What a supervisor wrote before it ended tells more than that it did.
fn with_last_words(error: PluginError, directory: &Path) -> PluginError {
    let words = std::fs::read_to_string(directory.join(name::OWN_LOG)).unwrap_or_default();
    if words.is_empty() {
        error
    } else {
        PluginError::new(error.kind(), format!("{error}: {}", words.trim()))
    }
}

/// As the engines do: the first half of the id.
fn hostname(held: &Held) -> String {
    held.id.0.chars().take(12).collect()
}

/// The host's own, for a container that shares its network.
fn host_file(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A file that everybody inside may read.
fn readable(path: &Path, text: &str) -> io::Result<PathBuf> {
    let mut file = place::create(path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    Ok(path.to_owned())
}

fn apparmor() -> AppArmor {
    match Path::new("/sys/kernel/security/apparmor").exists() {
        true => AppArmor::Enabled { default: None },
        false => AppArmor::Absent,
    }
}
