//! The settings, typed. Every default is in `profiles/defaults.toml`, which also says why it is what it is; here
//! are only types and meanings. An empty text, or 0 where said so, stands for "not set" and becomes `None`.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use host_core::{InstanceName, lease::Placement};
use serde::Deserialize;

pub(crate) mod de;
mod mandelbox;
mod value;

pub use mandelbox::{
    DeviceSettings, LimitSettings, MandelboxSettings, MandelboxTimeouts, MountSettings, TmpfsSettings,
    VariableNames,
};
pub use value::{AuthMode, ImageTemplate, Metadata, NumberRange, Pull, SeccompChoice};

/// Everything that can be set, plugins' own sections aside.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `[runtime]`
    pub runtime: RuntimeSettings,
    /// `[gpu]`
    pub gpu: GpuSettings,
    /// `[pubsub]`
    pub pubsub: PubSubSettings,
    /// `[telemetry]`
    pub telemetry: TelemetrySettings,
    /// `[instance]`
    pub instance: InstanceSettings,
    /// `[http]`
    pub http: HttpSettings,
    /// `[auth]`
    pub auth: AuthSettings,
    /// `[admin]`
    pub admin: AdminSettings,
    /// `[metrics]`
    pub metrics: MetricsSettings,
    /// `[paths]`
    pub paths: PathSettings,
    /// `[drain]`
    pub drain: DrainSettings,
    /// `[interruption]`
    pub interruption: InterruptionSettings,
    /// `[mandelbox]`
    pub mandelbox: MandelboxSettings,
}

/// What runs the containers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeSettings {
    /// The plugin's name; its own section is `[runtime.<name>]`.
    pub plugin: String,
}

/// Access to GPUs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuSettings {
    /// The plugin's name; its own section is `[gpu.<name>]`.
    pub plugin: String,
    /// Mandelboxes that may share one GPU, 1 to 64.
    pub slots_per_gpu: u32,
    /// Which of several GPUs with room takes the next mandelbox.
    pub placement: Placement,
    /// Free GPU memory that each mandelbox is to find; 0 for any.
    pub memory_floor_bytes: u64,
    /// How often statistics and health are asked for.
    #[serde(deserialize_with = "de::duration")]
    pub poll: Duration,
    /// Deadline of each call.
    #[serde(deserialize_with = "de::duration")]
    pub timeout: Duration,
}

/// The control plane.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PubSubSettings {
    /// The plugin's name; its own section is `[pubsub.<name>]`.
    pub plugin: String,
    /// How often this host reports that it lives, before jitter.
    #[serde(deserialize_with = "de::duration")]
    pub heartbeat: Duration,
    /// How often stale rows are looked for.
    #[serde(deserialize_with = "de::duration")]
    pub stale_check: Duration,
    /// A row longer than this in `ALLOCATED` is stale.
    #[serde(deserialize_with = "de::duration")]
    pub stale_allocated: Duration,
    /// A row longer than this in `CONNECTING` is stale.
    #[serde(deserialize_with = "de::duration")]
    pub stale_connecting: Duration,
    /// Deadline of each call.
    #[serde(deserialize_with = "de::duration")]
    pub timeout: Duration,
}

/// Where records go.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetrySettings {
    /// The plugins' names; their own sections are `[telemetry.<name>]`.
    pub plugins: Vec<String>,
    /// Which records are made, in `tracing`'s directives: `info`, `info,host_service=debug`.
    pub filter: String,
    /// How long the end of the service waits for each plugin to deliver what it holds.
    #[serde(deserialize_with = "de::duration")]
    pub flush: Duration,
}

/// What this host is.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceSettings {
    /// Where the facts come from; those set here come first.
    pub metadata: Metadata,
    /// The longest that finding them may delay the start.
    #[serde(deserialize_with = "de::duration")]
    pub metadata_timeout: Duration,
    /// Where the metadata service is instead of EC2's own place.
    #[serde(deserialize_with = "de::text")]
    pub metadata_endpoint: Option<String>,
    /// EC2's API, for the Name tag, instead of the region's own.
    #[serde(deserialize_with = "de::text")]
    pub ec2_endpoint: Option<String>,
    /// Its key in the database; `None` is the Name tag, or the machine's host name in the local profiles.
    #[serde(deserialize_with = "de::text_as")]
    pub name: Option<InstanceName>,
    /// The cloud's id of the machine.
    #[serde(deserialize_with = "de::text")]
    pub id: Option<String>,
    /// The machine image.
    #[serde(deserialize_with = "de::text")]
    pub image_id: Option<String>,
    /// The region.
    #[serde(deserialize_with = "de::text")]
    pub region: Option<String>,
    /// The machine type.
    #[serde(rename = "type", deserialize_with = "de::text")]
    pub instance_type: Option<String>,
    /// Where clients reach it; `None` is found out from the machine's addresses.
    #[serde(deserialize_with = "de::text_as")]
    pub ip: Option<IpAddr>,
    /// Reported instead of the commit this binary was built from.
    #[serde(deserialize_with = "de::text")]
    pub commit: Option<String>,
}

/// The HTTPS server for clients.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpSettings {
    /// Address and port.
    pub listen: SocketAddr,
    /// Certificate chain, PEM; `None` makes a self-signed one. Set exactly when `key` is.
    #[serde(deserialize_with = "de::path")]
    pub certificate: Option<PathBuf>,
    /// The file of the certificate's private key, PEM.
    #[serde(deserialize_with = "de::path")]
    pub key: Option<PathBuf>,
    /// Open connections; one more is closed at once.
    pub max_connections: u32,
    /// Open connections of one address (of one /64 of IPv6); 0 for any number.
    pub max_connections_per_address: u32,
    /// New connections of one address per second, with four seconds' worth at once; 0 for any number.
    pub connection_rate_per_address: u32,
    /// New connections of all addresses per second; 0 for any number.
    pub connection_rate: u32,
    /// Requests of one address per second; more are told 429; 0 for any number.
    pub request_rate_per_address: u32,
    /// How often the files of the certificate are looked at for new ones; zero for never.
    #[serde(deserialize_with = "de::duration")]
    pub certificate_check: Duration,
    /// Requests that wait for a mandelbox to be allocated; more are told 429.
    pub max_waiting: u32,
    /// From the first byte of a request to the end of its header.
    #[serde(deserialize_with = "de::duration")]
    pub header_timeout: Duration,
    /// From the end of the header to the end of the body.
    #[serde(deserialize_with = "de::duration")]
    pub body_timeout: Duration,
    /// For the TLS handshake.
    #[serde(deserialize_with = "de::duration")]
    pub handshake_timeout: Duration,
    /// Largest body; a larger one is told 413.
    pub body_limit_bytes: u64,
    /// A connection without a request is closed after this.
    #[serde(deserialize_with = "de::duration")]
    pub idle_timeout: Duration,
}

/// Who may ask for a mandelbox.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthSettings {
    /// Whether tokens are checked.
    pub mode: AuthMode,
    /// Whose tokens are taken: the `iss` claim.
    #[serde(deserialize_with = "de::text")]
    pub issuer: Option<String>,
    /// For whom tokens must be made: the `aud` claim.
    #[serde(deserialize_with = "de::text")]
    pub audience: Option<String>,
    /// File with the issuer's public keys, a JSON Web Key Set; excludes `jwks_url`.
    #[serde(deserialize_with = "de::path")]
    pub jwks_file: Option<PathBuf>,
    /// Where the issuer serves that set; without this and `jwks_file`, see [`AuthSettings::keys_url`].
    #[serde(deserialize_with = "de::text")]
    pub jwks_url: Option<String>,
    /// How often the set is fetched anew.
    #[serde(deserialize_with = "de::duration")]
    pub jwks_refresh: Duration,
    /// Between two fetches for tokens that name a key which is not in the set.
    #[serde(deserialize_with = "de::duration")]
    pub jwks_pause: Duration,
    /// Deadline of each fetch.
    #[serde(deserialize_with = "de::duration")]
    pub jwks_timeout: Duration,
}

impl AuthSettings {
    /// Where the keys are fetched; `None` where they are in a file. Without `jwks_url` it is where `issuer` has them
    /// by convention (OpenID Connect, Auth0).
    pub fn keys_url(&self) -> Option<String> {
        if self.jwks_file.is_some() {
            return None;
        }
        let conventional =
            |issuer: &String| format!("{}/.well-known/jwks.json", issuer.strip_suffix('/').unwrap_or(issuer));
        self.jwks_url.clone().or_else(|| self.issuer.as_ref().map(conventional))
    }
}

/// The admin API.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminSettings {
    /// Unix socket, absolute.
    pub socket: PathBuf,
    /// The group that may use it beside root; `None` is root alone.
    #[serde(deserialize_with = "de::text")]
    pub group: Option<String>,
}

/// The server for probes and Prometheus.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsSettings {
    /// Address and port.
    pub listen: SocketAddr,
}

/// Directories; absolute, none inside another.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathSettings {
    /// Each mandelbox has a directory here.
    pub root: PathBuf,
    /// The service's own records, sockets and keys.
    pub state: PathBuf,
    /// Log directories of the mandelboxes.
    pub logs: PathBuf,
    /// Plugins in shared libraries; no other directory is loaded from.
    pub plugins: PathBuf,
}

/// The end of the service.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainSettings {
    /// How long sessions may go on after a drain began; zero ends them at once.
    #[serde(deserialize_with = "de::duration")]
    pub deadline: Duration,
    /// From `SIGTERM` to the kill of a mandelbox that is still there at the deadline.
    #[serde(deserialize_with = "de::duration")]
    pub grace: Duration,
    /// Program and arguments that switch the machine off after a drain which the control plane ordered; empty leaves it on.
    pub power_off: Vec<String>,
}

/// What the cloud says is about to happen to this machine; only with `instance.metadata = "ec2"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterruptionSettings {
    /// How often it is asked; zero for never.
    #[serde(deserialize_with = "de::duration")]
    pub poll: Duration,
    /// Whether the host drains when its Auto Scaling group lets it go.
    pub autoscaling: bool,
    /// How long the group's lifecycle hook waits; the metadata do not say.
    #[serde(deserialize_with = "de::duration")]
    pub autoscaling_time: Duration,
    /// Whether the host drains when a spot instance will probably be taken back.
    pub rebalance: bool,
    /// Kept back from a notice's time, beside `drain.grace`, for taking mandelboxes down.
    #[serde(deserialize_with = "de::duration")]
    pub reserve: Duration,
}
