//! The container runtime: what creates, starts, watches and removes mandelboxes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::{
    check::Check,
    error::PluginError,
    id::{ContainerName, ImageRef},
};

mod spec;

pub use spec::{
    Attachment, Capability, ContainerPort, ContainerSpec, Device, DeviceRequest, EnvValue, Limits, Mount,
    Network, PortMapping, Propagation, Protocol, Seccomp, Security, Tmpfs,
};

/// What an operation returns.
pub type Result<T> = std::result::Result<T, PluginError>;

/// Something a runtime can do that another may not; conformance tests are gated by these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Feature {
    /// Containers run real processes with namespaces, limits and ports. Absent in simulations.
    Isolation,
    /// [`Runtime::pull`] fetches from registries.
    Pull,
    /// [`Runtime::load_image`] reads archives.
    LoadImage,
    /// `Limits` are in force.
    Limits,
    /// An out-of-memory kill is told by an event or at [`Runtime::inspect`].
    OomReport,
    /// `Attachment::cdi` is applied.
    Cdi,
    /// `Attachment::requests` is applied.
    DeviceRequests,
    /// `Security::apparmor` is applied on this host.
    AppArmor,
    /// `Network::Host` is possible.
    HostNetwork,
}

/// The component behind a runtime, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeInfo {
    /// `docker`, `podman`, …
    pub name: String,
    /// Its own version text.
    pub version: String,
    /// The version of the API spoken, where there is one.
    pub api_version: Option<String>,
}

/// An image that is present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The engine's content id, `sha256:…`.
    pub id: String,
    /// Every name it has here.
    pub names: Vec<ImageRef>,
    /// Unpacked size.
    pub size_bytes: u64,
    /// The `USER` it wants to run as; empty is root.
    pub user: String,
}

/// The engine's id of a container, unique for ever, unlike a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerId(pub String);

/// How operations name a container: by id once it is known, by name when the answer to `create` was lost.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerRef {
    /// By the engine's id.
    Id(ContainerId),
    /// By name.
    Name(ContainerName),
}

impl ContainerRef {
    /// What an engine's API takes for either.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Id(id) => &id.0,
            Self::Name(name) => name.as_str(),
        }
    }
}

impl From<ContainerId> for ContainerRef {
    fn from(id: ContainerId) -> Self {
        Self::Id(id)
    }
}

impl From<ContainerName> for ContainerRef {
    fn from(name: ContainerName) -> Self {
        Self::Name(name)
    }
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ContainerState {
    /// It exists and was never started.
    Created,
    /// Its first process runs (or is paused, or restarting).
    Running,
    /// Its first process has ended.
    Exited(Exit),
}

/// How a container's first process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Exit {
    /// The exit status; 128 + the signal's number when killed by one. `None` where the engine lost it.
    pub code: Option<i32>,
    /// The kernel killed it for memory.
    pub oom: bool,
}

/// A container as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The engine's id.
    pub id: ContainerId,
    /// Its name, without any engine's leading slash.
    pub name: String,
    /// All its labels.
    pub labels: BTreeMap<String, String>,
    /// Where it is in its life.
    pub state: ContainerState,
    /// The first process on the host, while it runs. `list` may leave it out.
    pub pid: Option<u32>,
}

/// Labels that a container must all have; `None` as a value means any.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Selector(pub BTreeMap<String, Option<String>>);

impl Selector {
    /// Containers that have `key=value`.
    pub fn label(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self([(key.into(), Some(value.into()))].into())
    }

    /// Whether `labels` satisfy this; for engines whose own filters cannot be trusted.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, want)| {
            labels.get(key).is_some_and(|have| want.as_ref().is_none_or(|want| want == have))
        })
    }
}

/// What happened to one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerEvent {
    /// Which.
    pub id: ContainerId,
    /// Its labels at that time; may be empty.
    pub labels: BTreeMap<String, String>,
    /// What.
    pub change: ContainerChange,
}

/// The changes a runtime reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerChange {
    /// It was created.
    Created,
    /// Its first process was started.
    Started,
    /// The kernel killed a process in it for memory; not necessarily the first.
    Oom,
    /// Its first process ended.
    Exited(Exit),
    /// It is gone.
    Removed,
}

/// An item of [`Runtime::events`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeEvent {
    /// A container changed.
    Container(ContainerEvent),
    /// Events may have been lost before this point: list and compare.
    Gap,
}

/// Which part of a container's output to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogOptions {
    /// Go on with what is written later, until the container ends.
    pub follow: bool,
    /// Only the last lines.
    pub tail: Option<u32>,
}

/// A piece of a container's output, in order. Pieces need not end where lines do.
pub type LogChunk = Vec<u8>;

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PullProgress {
    /// Bytes here already.
    pub done_bytes: u64,
    /// Bytes in all, as far as known by now.
    pub total_bytes: u64,
}

/// Told while a pull goes on; must not block.
pub type OnProgress<'a> = &'a (dyn Fn(PullProgress) + Send + Sync);

/// A container runtime.
///
/// Every operation may be cancelled by dropping its future; whether it then took effect is unknown, and the
/// caller finds out by [`Runtime::inspect`] or undoes it by [`Runtime::remove`]. The caller owns all deadlines;
/// an implementation needs none of its own, except for connections it keeps.
#[async_trait]
pub trait Runtime: Send + Sync + std::fmt::Debug + 'static {
    /// What this implementation can do here. Constant once built.
    fn features(&self) -> BTreeSet<Feature>;

    /// Asks the component itself.
    ///
    /// # Errors
    /// `Unavailable` when it does not answer.
    async fn health(&self) -> Result<RuntimeInfo>;

    /// The image that `reference` names here, without any network; `None` when it is not present.
    async fn image(&self, reference: &ImageRef) -> Result<Option<Image>>;

    /// Every image present.
    async fn images(&self) -> Result<Vec<Image>>;

    /// Fetches an image from its registry, or confirms that what is here is current.
    ///
    /// # Errors
    /// `NotFound` when the registry has none, `Denied` for credentials, `Unavailable` for the network.
    async fn pull(&self, reference: &ImageRef, progress: OnProgress<'_>) -> Result<Image>;

    /// Takes every image of a `docker save` archive or OCI layout archive, under the names it carries.
    ///
    /// # Errors
    /// `Invalid` when the file is no such archive, `Unsupported` without [`Feature::LoadImage`].
    async fn load_image(&self, archive: &Path) -> Result<Vec<ImageRef>>;

    /// Gives an image one more name.
    async fn tag_image(&self, image: &ImageRef, name: &ImageRef) -> Result<()>;

    /// Creates a container, not started. Applies everything in `spec`, or fails: nothing is silently dropped.
    ///
    /// # Errors
    /// `Conflict` when the name is taken, `NotFound` when the image is not present.
    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId>;

    /// Starts a created container. Starting one that runs succeeds.
    ///
    /// # Errors
    /// `NotFound`; `AddressInUse` when a published port is taken; `Invalid` when the image cannot run here.
    async fn start(&self, container: &ContainerRef) -> Result<()>;

    /// Asks a container to end (`SIGTERM`) and kills it after `grace`; returns when it has ended. Stopping what
    /// does not run or does not exist succeeds.
    async fn stop(&self, container: &ContainerRef, grace: Duration) -> Result<()>;

    /// Kills if needed and removes a container with its anonymous volumes; returns when it is gone and its ports
    /// are free. Removing what does not exist succeeds.
    async fn remove(&self, container: &ContainerRef) -> Result<()>;

    /// The container as it is now, `None` when it does not exist.
    async fn inspect(&self, container: &ContainerRef) -> Result<Option<Container>>;

    /// Every container with these labels, whatever its state.
    async fn list(&self, selector: &Selector) -> Result<Vec<Container>>;

    /// Output, standard error included.
    ///
    /// # Errors
    /// `NotFound`.
    async fn logs(
        &self,
        container: &ContainerRef,
        options: LogOptions,
    ) -> Result<BoxStream<'static, Result<LogChunk>>>;

    /// Changes of containers with these labels. Once the call has returned, every later change is in the stream
    /// or is covered by a [`RuntimeEvent::Gap`]. The stream ends, with an error as its last item where one is
    /// known, when the connection is lost: the caller subscribes again, then lists.
    async fn events(&self, selector: &Selector) -> Result<BoxStream<'static, Result<RuntimeEvent>>>;

    /// What this host has and lacks for the runtime, each with its remedy; for a person who looks. Changes nothing.
    async fn examine(&self) -> Vec<Check> {
        Vec::new()
    }

    /// Gives back what the runtime keeps on the host for itself. The service is done with it; containers that still
    /// run go on, and a later service finds them.
    ///
    /// # Errors
    /// Whatever had to be left.
    async fn close(&self) -> Result<()> {
        Ok(())
    }

    /// When the component started, where it says so: a change means that it was restarted.
    async fn started_at(&self) -> Result<Option<SystemTime>> {
        Ok(None)
    }
}
