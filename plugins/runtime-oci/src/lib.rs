//! Containers without a daemon, as a [`Runtime`]: libcontainer, or an external OCI runtime, under a supervisor each.
//!
//! ```text
//!  OciRuntime ── Containers ──┬── Store      images, layers unpacked once
//!                             ├── Networks   ready namespaces, published ports in one transaction
//!                             └── Held, one per container ══ socket ══ supervisor process ── container
//! ```
//!
//! Tasks, all owned by [`OciRuntime`]: one per operation under way, one per supervisor that listens to it, deletions, and
//! the filler of the pool of networks. They end with [`Runtime::close`] or when the runtime is dropped. Supervisors and
//! containers do not: a later service finds them by their directories (see `place.rs`) and goes on with them.
//!
//! What holds: a container's directory exists before anything else of it and goes last; whatever a killed process had is
//! either the kernel's to take back (mounts, network namespaces, sockets) or found by the directory's name (control
//! groups, layers in use, published ports).

mod binary;
mod bundle;
mod cgroup;
mod config;
mod doctor;
mod events;
mod held;
mod launch;
mod logs;
mod place;
mod program;
mod protocol;
mod recovery;
mod runtime;
mod seccomp;
mod supervisor;

use std::{
    collections::BTreeSet,
    fs::File,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use host_core::{
    ErrorKind, ImageRef, PluginError,
    check::Check,
    registry::{Plugin, Role},
    runtime::{
        Container, ContainerId, ContainerRef, ContainerSpec, Feature, Image, LogChunk, LogOptions,
        OnProgress, Result, Runtime, RuntimeEvent, RuntimeInfo, Selector,
    },
};
use oci_images::Store;
use oci_network::Networks;
use tokio::sync::OnceCell;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use config::Config;
pub use program::Program;
pub use supervisor::dispatch;

use cgroup::Layout;
use place::Root;
use program::Spares;
use runtime::{Containers, Table, failed};

/// The plugin `oci`.
pub fn plugin() -> Plugin<dyn Runtime> {
    Plugin::new("oci", |mut config: Config, context| async move {
        config.state.get_or_insert_with(|| context.state_dir.join("oci"));
        let runtime: Arc<dyn Runtime> = match context.role {
            Role::Service => {
                let program =
                    Program::this().map_err(failed("this program cannot be copied for supervisors"))?;
                Arc::new(OciRuntime::open(config, program).await?)
            }
            Role::Tool => Arc::new(OciRuntime::look(config).await?),
        };
        Ok(runtime)
    })
}

/// Containers on this host, by this process and its supervisors alone.
#[derive(Debug)]
pub struct OciRuntime {
    info: RuntimeInfo,
    config: Config,
    root: Root,
    /// Opened by whoever needs it first: a tool that only looks makes no directories.
    store: OnceCell<Store>,
    /// Absent in a tool beside the service.
    containers: Option<Arc<Containers>>,
}

impl OciRuntime {
    /// Owns the containers under the section's `root`, those of an earlier service included.
    ///
    /// # Errors
    /// `Denied` without root's rights, `Conflict` when another service owns them, `Unavailable` when this host lacks
    /// something.
    pub async fn open(mut config: Config, program: Program) -> Result<Self> {
        let (info, root) = ground(&mut config).await?;
        let runtime = Self { info, config, root: root.clone(), store: OnceCell::new(), containers: None };
        runtime.store().await?;
        let lock = place::create(&root.lock()).map_err(failed("the runtime's lock cannot be made"))?;
        lock.try_lock().map_err(|_| {
            let text = format!(
                "another service uses {}: give this one a runtime.oci.root of its own",
                root.path().display()
            );
            PluginError::new(ErrorKind::Conflict, text)
        })?;
        root.make_state().map_err(failed("the runtime's state cannot be made; see runtime.oci.state"))?;
        runtime.own(lock, program).await.inspect_err(|_| root.leave_state())
    }

    /// Takes over what an earlier service left.
    async fn own(mut self, lock: File, program: Program) -> Result<Self> {
        let layout = Layout::detect()?;
        let root = self.root.clone();
        let (found, unfinished) = recovery::scan(&root).map_err(failed("the containers cannot be read"))?;
        let (key, adopted) = (key(root.path()), recovery::adopted(&found));
        let networks = Networks::open(self.config.network.clone(), &key, &root.network(), adopted).await?;
        let trash = root.trash();
        let supervisors = layout.tracked(&self.config.cgroup_parent.join(format!("{SUPERVISORS}-{key}")));
        let containers = Arc::new(Containers {
            config: self.config.clone(),
            root,
            _lock: lock,
            layout,
            store: self.store().await?.clone(),
            networks,
            hastening: Mutex::default(),
            spares: Spares::new(program, supervisors, self.config.ready),
            table: Table::default(),
            hub: Arc::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        recovery::recover(&containers, found, unfinished).await?;
        let (filler, stop) = (containers.clone(), containers.stop.clone());
        let fill = async move { filler.spares.fill().await };
        containers.tasks.spawn(stop.run_until_cancelled_owned(fill));
        containers.tasks.spawn(async move {
            if let Err(error) = recovery::empty_trash(&trash).await {
                tracing::warn!(%error, path = %trash.display(), "removed containers' files cannot be deleted");
            }
        });
        self.containers = Some(containers);
        Ok(self)
    }

    /// Looks and loads images, perhaps beside a running service.
    ///
    /// # Errors
    /// As [`OciRuntime::open`].
    pub async fn look(mut config: Config) -> Result<Self> {
        let (info, root) = ground(&mut config).await?;
        Ok(Self { info, config, root, store: OnceCell::new(), containers: None })
    }

    async fn store(&self) -> Result<&Store> {
        let open = || async {
            self.root.make().map_err(failed(format!(
                "{} cannot be used; set runtime.oci.root to another directory",
                self.root.path().display()
            )))?;
            Store::open(self.root.images(), self.config.images.clone()).await
        };
        self.store.get_or_try_init(open).await
    }

    /// The images, if anybody has ever made a place for them.
    async fn stored(&self) -> Result<Option<&Store>> {
        match self.root.images().exists() {
            true => self.store().await.map(Some),
            false => Ok(None),
        }
    }

    fn containers(&self) -> Result<&Arc<Containers>> {
        self.containers.as_ref().ok_or_else(|| {
            let text = "only the service itself changes containers: ask it, see host-service mandelbox";
            PluginError::new(ErrorKind::Unsupported, text)
        })
    }

    fn looked(&self) -> Result<Vec<Container>> {
        recovery::look(&self.root).map_err(failed("the containers cannot be read"))
    }
}

impl Drop for OciRuntime {
    fn drop(&mut self) {
        if let Some(containers) = &self.containers {
            containers.stop.cancel();
            containers.tasks.close();
        }
    }
}

/// Begins the name of the supervisors' control group, beside the containers' own.
const SUPERVISORS: &str = "supervisors";
/// The release that `Cargo.toml` asks for.
const LIBCONTAINER: &str = "0.7";

/// What both ways of opening need.
async fn ground(config: &mut Config) -> Result<(RuntimeInfo, Root)> {
    if !rustix::process::geteuid().is_root() {
        let text = "containers without a daemon need root's rights: use sudo, or a rootless engine by runtime.plugin = \"docker\"";
        return Err(PluginError::new(ErrorKind::Denied, text));
    }
    config.binary = config.binary.take().map(|binary| binary::find(&binary)).transpose()?;
    let root = Root::at(&config.root, config.state.as_ref().unwrap_or(&config.root))
        .map_err(failed("runtime.oci.root cannot be found"))?;
    let version = match &config.binary {
        None => format!("libcontainer {LIBCONTAINER}"),
        Some(binary) => binary::version(binary).await?,
    };
    Ok((RuntimeInfo { name: "oci".to_owned(), version, api_version: None }, root))
}

/// What tells this root's parts of the host from those of another.
fn key(root: &Path) -> String {
    // FNV-1a: the same in every version of this program, unlike the standard library's.
    let hash = root
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

#[async_trait]
impl Runtime for OciRuntime {
    fn features(&self) -> BTreeSet<Feature> {
        let always = [
            Feature::Isolation,
            Feature::Pull,
            Feature::LoadImage,
            Feature::Limits,
            Feature::OomReport,
            Feature::Cdi,
            Feature::HostNetwork,
        ];
        let apparmor = Path::new("/sys/kernel/security/apparmor").exists().then_some(Feature::AppArmor);
        always.into_iter().chain(apparmor).collect()
    }

    async fn health(&self) -> Result<RuntimeInfo> {
        Ok(self.info.clone())
    }

    async fn image(&self, reference: &ImageRef) -> Result<Option<Image>> {
        // Who asks is about to make a container of it.
        if let Some(containers) = &self.containers {
            containers.hasten();
        }
        match self.stored().await? {
            Some(store) => store.find(reference).await,
            None => Ok(None),
        }
    }

    async fn images(&self) -> Result<Vec<Image>> {
        match self.stored().await? {
            Some(store) => store.all().await,
            None => Ok(Vec::new()),
        }
    }

    async fn pull(&self, reference: &ImageRef, progress: OnProgress<'_>) -> Result<Image> {
        self.store().await?.pull(reference, progress).await
    }

    async fn load_image(&self, archive: &Path) -> Result<Vec<ImageRef>> {
        self.store().await?.load(archive).await
    }

    async fn tag_image(&self, image: &ImageRef, name: &ImageRef) -> Result<()> {
        self.store().await?.tag(image, name).await
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId> {
        self.containers()?.create(spec).await
    }

    async fn start(&self, container: &ContainerRef) -> Result<()> {
        self.containers()?.start(container).await
    }

    async fn stop(&self, container: &ContainerRef, grace: Duration) -> Result<()> {
        self.containers()?.stop(container, grace).await
    }

    async fn remove(&self, container: &ContainerRef) -> Result<()> {
        self.containers()?.remove(container).await
    }

    async fn inspect(&self, container: &ContainerRef) -> Result<Option<Container>> {
        match &self.containers {
            Some(containers) => Ok(containers.table.find(container).map(|held| held.seen())),
            None => Ok(self.looked()?.into_iter().find(|seen| is(seen, container))),
        }
    }

    async fn list(&self, selector: &Selector) -> Result<Vec<Container>> {
        let mut all = match &self.containers {
            Some(containers) => containers.table.list().iter().map(|held| held.seen()).collect(),
            None => self.looked()?,
        };
        all.retain(|container| selector.matches(&container.labels));
        Ok(all)
    }

    async fn logs(
        &self,
        container: &ContainerRef,
        options: LogOptions,
    ) -> Result<BoxStream<'static, Result<LogChunk>>> {
        let (directory, view) = match &self.containers {
            Some(containers) => {
                let held = containers.table.find(container).ok_or_else(|| runtime::absent(container))?;
                (held.disk.clone(), Some(held.view()))
            }
            None => {
                let seen = self.looked()?.into_iter().find(|seen| is(seen, container));
                let id = seen.ok_or_else(|| runtime::absent(container))?.id;
                (self.root.disk(&id.0), None)
            }
        };
        logs::read(&directory, options, view).await
    }

    async fn events(&self, selector: &Selector) -> Result<BoxStream<'static, Result<RuntimeEvent>>> {
        Ok(self.containers()?.hub.subscribe(selector))
    }

    async fn examine(&self) -> Vec<Check> {
        doctor::examine(&self.config, &self.root).await
    }

    async fn close(&self) -> Result<()> {
        let Some(containers) = &self.containers else {
            return Ok(());
        };
        containers.stop.cancel();
        containers.tasks.close();
        containers.tasks.wait().await;
        containers.spares.dismiss().await;
        containers.networks.close().await?;
        containers.layout.group(&containers.config.cgroup_parent).remove_if_empty();
        containers.root.leave_state();
        Ok(())
    }
}

fn is(seen: &Container, container: &ContainerRef) -> bool {
    match container {
        ContainerRef::Id(id) => seen.id == *id,
        ContainerRef::Name(name) => seen.name == name.as_str(),
    }
}
