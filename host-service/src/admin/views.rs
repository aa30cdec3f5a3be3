//! What the admin API takes and says: one set of types for the server, the client and `openapi.json`.
//!
//! Durations and times are numbers with their unit in the name. No view holds a secret, except for the answer to a
//! spin-up.

use std::{collections::BTreeMap, fmt};

use host_core::{
    AppName, MandelboxId, SessionId, UserId,
    lifecycle::{EndReason, Stage},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The whole service at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatusView {
    /// Version of the service.
    pub version: String,
    /// The commit it was built from.
    pub commit: String,
    /// The profile it runs in.
    pub profile: String,
    /// Since it was started.
    pub uptime_seconds: u64,
    /// Who this host is.
    pub instance: InstanceView,
    /// Where it is reached; absent while it starts.
    pub listening: Option<ListeningView>,
    /// The plugins chosen.
    pub plugins: PluginsView,
    /// How it does.
    pub condition: ConditionView,
    /// How many mandelboxes it can run at once.
    pub capacity: u32,
    /// How many there are in each phase; phases without any are left out.
    pub mandelboxes: BTreeMap<String, usize>,
    /// What is leased.
    pub leases: LeasesView,
    /// What is left.
    pub resources: ResourcesView,
    /// Its GPUs.
    pub gpus: Vec<GpuView>,
}

/// Addresses as they are, where the configuration may say port 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListeningView {
    /// `json_transport`, over HTTPS.
    pub http: String,
    /// Probes and metrics, over HTTP.
    pub metrics: String,
}

/// Who a host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceView {
    /// Its key in the database.
    pub name: String,
    /// The cloud's id of the machine.
    pub cloud_id: String,
    /// The machine image.
    pub image_id: String,
    /// The region.
    pub region: String,
    /// The machine type.
    #[serde(rename = "type")]
    pub instance_type: String,
    /// Where clients reach it.
    pub ip: String,
}

/// Names of the plugins chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PluginsView {
    /// Runs the containers.
    pub runtime: String,
    /// Knows the GPUs.
    pub gpu: String,
    /// The control plane.
    pub pubsub: String,
    /// Where records go.
    pub telemetry: Vec<String>,
}

/// How a host does; `null` and 0 are well.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ConditionView {
    /// Who ordered the drain that is under way.
    pub draining: Option<String>,
    /// Why the engine cannot be heard.
    pub runtime_error: Option<String>,
    /// Why the control plane cannot be heard.
    pub pubsub_error: Option<String>,
    /// How many statuses and removals of mandelboxes wait until the control plane can be told.
    pub undelivered: usize,
}

/// What is leased of each resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeasesView {
    /// Host ports.
    pub ports: UsageView,
    /// Virtual consoles.
    pub ttys: UsageView,
    /// GPU slots; `null` on a host without GPUs.
    pub gpu_slots: Option<UsageView>,
}

/// How much of a resource is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageView {
    /// In use.
    pub held: usize,
    /// In all.
    pub size: usize,
}

/// What a host has left.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResourcesView {
    /// Memory that can be had without swapping.
    pub memory_available_bytes: u64,
    /// Idle CPU in 10⁻⁹ CPUs.
    pub idle_nanocpus: u64,
    /// Load average of a minute.
    pub load_1m: f64,
    /// Free space for mandelboxes' files.
    pub disk_free_bytes: u64,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GpuView {
    /// Its place in the driver's enumeration.
    pub index: u32,
    /// Its identity.
    pub uuid: String,
    /// Its product name.
    pub name: String,
    /// All its memory.
    pub memory_bytes: u64,
    /// Memory not in use, where the device tells.
    pub memory_free_bytes: Option<u64>,
    /// 0 to 100, where the device tells.
    pub utilization_percent: Option<u32>,
    /// Of the video encoder, 0 to 100, where the device tells.
    pub encoder_percent: Option<u32>,
    /// Video encoder sessions open, where the device tells.
    pub encoder_sessions: Option<u32>,
    /// Where the device tells.
    pub temperature_celsius: Option<u32>,
    /// Milliwatts, where the device tells.
    pub power_mw: Option<u32>,
    /// Why it gets no mandelboxes; `null` while it may.
    pub unhealthy: Option<String>,
    /// Who is on it.
    #[schema(value_type = Vec<String>)]
    pub mandelboxes: Vec<MandelboxId>,
}

/// Every mandelbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MandelboxesView {
    /// By id.
    pub mandelboxes: Vec<MandelboxView>,
}

/// One mandelbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MandelboxView {
    /// Which.
    #[schema(value_type = String)]
    pub id: MandelboxId,
    /// The application in it.
    #[schema(value_type = String)]
    pub app: AppName,
    /// Whose.
    #[schema(value_type = String)]
    pub user: UserId,
    /// The client's session.
    #[schema(value_type = String)]
    pub session: SessionId,
    /// Where it is in its life: `claiming`, `launching`, `awaiting_client`, `awaiting_application`, `running`,
    /// `ending` or `gone`.
    pub phase: String,
    /// Since when, Unix time.
    pub phase_since_unix_ms: u64,
    /// When this host took it, Unix time.
    pub created_unix_ms: u64,
    /// Why it ends, once it does.
    pub end: Option<EndView>,
    /// Its container.
    pub container: ContainerView,
    /// Its published ports, once leased.
    pub ports: Vec<PortView>,
    /// The number of its virtual console, once leased.
    pub tty: Option<u16>,
    /// The UUID of its GPU, once leased.
    pub gpu: Option<String>,
    /// How long each finished stage of its spin-up took.
    pub timings: Vec<TimingView>,
}

/// Why a mandelbox ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndView {
    /// A stable name, such as `stopped`, `exited` or `spin_up_failed`.
    pub reason: String,
    /// The same for people, with its details.
    pub text: String,
}

impl From<&EndReason> for EndView {
    fn from(reason: &EndReason) -> Self {
        Self { reason: reason.name().to_owned(), text: reason.to_string() }
    }
}

/// A mandelbox's container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContainerView {
    /// Its name, fixed before it exists.
    pub name: String,
    /// The engine's id, once it exists.
    pub id: Option<String>,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortView {
    /// Inside, with its protocol.
    #[schema(example = "32262/tcp")]
    pub container: String,
    /// On the host.
    pub host: u16,
}

/// How long a stage took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TimingView {
    /// Which.
    #[schema(value_type = String, example = "create")]
    pub stage: Stage,
    /// How long.
    pub micros: u64,
}

/// A mandelbox to allocate; what is left out is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AllocateRequest {
    /// What runs in it; the configured default when left out.
    #[schema(value_type = Option<String>, example = "browsers/chrome")]
    pub app: Option<AppName>,
    /// Must be new; made up when left out.
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    pub id: Option<MandelboxId>,
    /// Whose; a user for local development when left out.
    #[schema(value_type = Option<String>)]
    pub user: Option<UserId>,
}

/// What was allocated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AllocatedView {
    /// Which.
    #[schema(value_type = String)]
    pub id: MandelboxId,
    /// What runs in it.
    #[schema(value_type = String)]
    pub app: AppName,
    /// Whose.
    #[schema(value_type = String)]
    pub user: UserId,
}

/// A mandelbox to allocate, with the startup data that its client would bring.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SpinUpRequest {
    /// What runs in it; the configured default when left out.
    #[schema(value_type = Option<String>, example = "browsers/chrome")]
    pub app: Option<AppName>,
    /// Must be new; made up when left out.
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9_-]{1,64}$")]
    pub id: Option<MandelboxId>,
    /// Whose; a user for local development when left out.
    #[schema(value_type = Option<String>)]
    pub user: Option<UserId>,
    /// Handed to the application as it is: DPI, time zone, dark mode, …
    pub json_data: Option<serde_json::Map<String, serde_json::Value>>,
}

/// A mandelbox that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SpinUpView {
    /// Which.
    #[schema(value_type = String)]
    pub id: MandelboxId,
    /// What runs in it.
    #[schema(value_type = String)]
    pub app: AppName,
    /// Whose.
    #[schema(value_type = String)]
    pub user: UserId,
    /// Its published ports.
    pub ports: Vec<PortView>,
    /// Its AES key.
    pub aes_key: ShownKey,
    /// Its first TCP port as a page to look at; `null` when it has none.
    pub url: Option<String>,
    /// From the order to the answer.
    pub took_ms: u64,
}

/// An AES key on its way to the one who asked for the mandelbox: 32 hex digits. `Debug` shows none of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct ShownKey(pub String);

impl fmt::Debug for ShownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShownKey([redacted])")
    }
}

/// The order to stop a mandelbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StopRequest {
    /// From `SIGTERM` to the kill; the configured time when left out.
    pub grace_ms: Option<u64>,
}

/// A mandelbox that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoppedView {
    /// Which.
    #[schema(value_type = String)]
    pub id: MandelboxId,
    /// Why it ended: not by this order, if its end had begun before.
    pub end: EndView,
}

/// The order to drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DrainRequest {
    /// Kill sessions at the deadline without a grace period.
    pub force: bool,
    /// Sessions may run on for this long; the configured time when left out.
    pub deadline_ms: Option<u64>,
}

/// A drain that was ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainView {
    /// How many mandelboxes still have to end.
    pub mandelboxes: usize,
}

/// Which part of a mandelbox's output to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct LogsQuery {
    /// Go on with what is written later, until the container ends.
    pub follow: bool,
    /// Only the last lines.
    pub tail: Option<u32>,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorView {
    /// For people.
    pub error: String,
    /// For machines.
    #[schema(example = "not_found")]
    pub code: String,
}

/// Whether a host should get new mandelboxes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// It should.
    pub ready: bool,
    /// Why not.
    pub reasons: Vec<NotReady>,
}

/// Why a host should get no new mandelboxes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NotReady {
    /// For machines: `draining`, `runtime` or `pubsub`.
    pub code: String,
    /// For people.
    pub reason: String,
}
