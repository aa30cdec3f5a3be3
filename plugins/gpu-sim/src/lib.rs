//! Configurable fake GPUs: for development on a machine without any, and for tests that need one to break.
//!
//! [`SimGpu`] is one host's simulated driver with its devices. It starts no task and no thread; a call takes no time
//! unless a test makes it hang. Time comes from tokio's clock, so paused time pauses the figures. What tests do to it
//! ([`SimGpu::lose`], [`SimGpu::hang_calls`], …) is in force for every call that begins or is hung at that time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use host_core::{
    ErrorKind, PluginError,
    gpu::{Gpu, GpuDevice, GpuHealth, GpuStats, Result},
    registry::Plugin,
    runtime::Attachment,
};
use tokio::{sync::watch, time::Instant};

mod config;
mod figures;

use config::DeviceConfig;
pub use config::{Config, InvalidConfig};

/// Tells a mandelbox which simulated GPU is its own.
pub const DEVICE_VARIABLE: &str = "HOST_SERVICE_SIM_GPU";

/// `[gpu] plugin = "sim"`.
pub fn plugin() -> Plugin<dyn Gpu> {
    Plugin::new("sim", |config: Config, _| async move { Ok(Arc::new(SimGpu::new(config)) as Arc<dyn Gpu>) })
}

/// A simulated driver and its devices.
#[derive(Debug)]
pub struct SimGpu {
    up_since: Instant,
    devices: Mutex<Vec<Sim>>,
    driver: watch::Sender<Driver>,
}

/// One device and how it does. Lost ones stay here, so that they can be found again.
#[derive(Debug)]
struct Sim {
    config: DeviceConfig,
    seed: u64,
    condition: Condition,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    Healthy,
    Unhealthy(String),
    Lost,
}

/// What calls do.
#[derive(Debug, Clone, Copy)]
enum Driver {
    Answers,
    Fails(ErrorKind),
    Hangs,
}

impl SimGpu {
    /// Every device healthy, every call answered.
    pub fn new(config: Config) -> Self {
        let seed = config.seed;
        let sim = |(slot, config)| Sim {
            config,
            seed: figures::device_seed(seed, slot),
            condition: Condition::Healthy,
        };
        Self {
            up_since: Instant::now(),
            devices: Mutex::new(config.devices.into_iter().enumerate().map(sim).collect()),
            driver: watch::Sender::new(Driver::Answers),
        }
    }

    /// Lets a device report that it is unhealthy; it still answers.
    ///
    /// # Errors
    /// `NotFound` for an unknown UUID.
    pub fn make_unhealthy(&self, uuid: &str, reason: impl Into<String>) -> Result<()> {
        self.set_condition(uuid, Condition::Unhealthy(reason.into()))
    }

    /// Lets a device fall off the bus: it is not enumerated any more, has no figures, and those after it move up.
    ///
    /// # Errors
    /// `NotFound` for an unknown UUID.
    pub fn lose(&self, uuid: &str) -> Result<()> {
        self.set_condition(uuid, Condition::Lost)
    }

    /// Makes a device healthy again, in its old place.
    ///
    /// # Errors
    /// `NotFound` for an unknown UUID.
    pub fn recover(&self, uuid: &str) -> Result<()> {
        self.set_condition(uuid, Condition::Healthy)
    }

    /// From now on every call fails with `kind`, also those that hang.
    pub fn fail_calls(&self, kind: ErrorKind) {
        self.driver.send_replace(Driver::Fails(kind));
    }

    /// From now on no call returns before [`SimGpu::answer_calls`] or [`SimGpu::fail_calls`].
    pub fn hang_calls(&self) {
        self.driver.send_replace(Driver::Hangs);
    }

    /// From now on every call is answered, also those that hang.
    pub fn answer_calls(&self) {
        self.driver.send_replace(Driver::Answers);
    }

    fn set_condition(&self, uuid: &str, condition: Condition) -> Result<()> {
        let mut devices = self.devices();
        let sim = devices.iter_mut().find(|sim| sim.config.uuid == uuid).ok_or_else(|| {
            PluginError::new(ErrorKind::NotFound, format!("there is no simulated GPU {uuid}"))
        })?;
        sim.condition = condition;
        Ok(())
    }

    /// No code that can panic runs under this lock.
    fn devices(&self) -> MutexGuard<'_, Vec<Sim>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call(&self) -> Result<()> {
        let mut driver = self.driver.subscribe();
        let closed = || PluginError::new(ErrorKind::Internal, "the simulated driver is gone");
        let now = *driver.wait_for(|driver| !matches!(driver, Driver::Hangs)).await.map_err(|_| closed())?;
        match now {
            Driver::Fails(kind) => Err(PluginError::new(kind, "the simulated driver was told to fail")),
            Driver::Answers | Driver::Hangs => Ok(()),
        }
    }
}

impl Sim {
    fn is_present(&self) -> bool {
        self.condition != Condition::Lost
    }

    fn device(&self, index: u32) -> GpuDevice {
        GpuDevice {
            index,
            uuid: self.config.uuid.clone(),
            name: self.config.name.clone(),
            memory_bytes: self.config.memory_bytes,
            node: None,
            attachment: attachment(&self.config.uuid),
        }
    }

    fn health(&self) -> GpuHealth {
        match &self.condition {
            Condition::Healthy => GpuHealth::Healthy,
            Condition::Unhealthy(reason) => GpuHealth::Unhealthy(reason.clone()),
            Condition::Lost => GpuHealth::Unhealthy("the device is lost".to_owned()),
        }
    }
}

/// A simulated GPU has no device node, so a container gets a variable that names it, and no more.
///
/// `void` is how NVIDIA's container runtime is told to give no GPU at all. Where that runtime is the engine's
/// default, no variable would mean what the image says, `all` in every CUDA image, and an unknown UUID would keep
/// the container from starting.
fn attachment(uuid: &str) -> Attachment {
    let env = [(DEVICE_VARIABLE, uuid), ("NVIDIA_VISIBLE_DEVICES", "void")];
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    Attachment { env: env.into_iter().map(owned).collect::<BTreeMap<_, _>>(), ..Attachment::default() }
}

#[async_trait]
impl Gpu for SimGpu {
    async fn enumerate(&self) -> Result<Vec<GpuDevice>> {
        self.call().await?;
        let devices = self.devices();
        let present = devices.iter().filter(|sim| sim.is_present());
        Ok((0..).zip(present).map(|(index, sim)| sim.device(index)).collect())
    }

    async fn stats(&self) -> Result<Vec<GpuStats>> {
        self.call().await?;
        let at = self.up_since.elapsed();
        let figures = |sim: &Sim| figures::figures(&sim.config.uuid, sim.config.memory_bytes, sim.seed, at);
        let devices = self.devices();
        Ok(devices.iter().filter(|sim| sim.is_present()).map(figures).collect())
    }

    async fn health(&self) -> Result<Vec<(String, GpuHealth)>> {
        self.call().await?;
        let health = |sim: &Sim| (sim.config.uuid.clone(), sim.health());
        Ok(self.devices().iter().map(health).collect())
    }
}
