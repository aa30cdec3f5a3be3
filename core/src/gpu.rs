//! The host's GPUs: what there is, how it does, and how one is given to a container.

use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{check::Check, error::PluginError, runtime::Attachment};

/// What an operation returns.
pub type Result<T> = std::result::Result<T, PluginError>;

/// One device that can be leased: a GPU, or a slice of one that stands by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuDevice {
    /// Its place in the driver's enumeration; for people only, it changes when a device is lost.
    pub index: u32,
    /// Its identity.
    pub uuid: String,
    /// Its product name.
    pub name: String,
    /// All its memory.
    pub memory_bytes: u64,
    /// Its node on the host, `/dev/nvidia0` for example; a slice has that of its GPU. None where that is not known.
    #[serde(default)]
    pub node: Option<PathBuf>,
    /// How it is given to a container.
    pub attachment: Attachment,
}

/// A device's figures now; `None` where it does not tell.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GpuStats {
    /// Which device.
    pub uuid: String,
    /// Memory not in use.
    pub memory_free_bytes: u64,
    /// 0 to 100.
    pub utilization_percent: Option<u32>,
    /// Video encoder, 0 to 100.
    pub encoder_percent: Option<u32>,
    /// Video encoder sessions open.
    pub encoder_sessions: Option<u32>,
    /// Degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// Milliwatts.
    pub power_mw: Option<u32>,
}

/// Whether a device may get new mandelboxes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "health", content = "reason")]
pub enum GpuHealth {
    /// It works.
    Healthy,
    /// It does not; the text says why.
    Unhealthy(String),
}

/// Access to the host's GPUs.
///
/// A call may be slow or hang with the driver: the caller owns the deadline and may drop the future at any time.
#[async_trait]
pub trait Gpu: Send + Sync + std::fmt::Debug + 'static {
    /// Every device, healthy or not. Empty means that mandelboxes run without a GPU.
    async fn enumerate(&self) -> Result<Vec<GpuDevice>>;

    /// Figures of every device that answers.
    async fn stats(&self) -> Result<Vec<GpuStats>>;

    /// Health of every device of [`Gpu::enumerate`], by UUID; also of those that were there and are gone.
    async fn health(&self) -> Result<Vec<(String, GpuHealth)>>;

    /// What this host has and lacks for its GPUs, each with its remedy; for a person who looks. Changes nothing.
    async fn examine(&self) -> Vec<Check> {
        Vec::new()
    }
}
