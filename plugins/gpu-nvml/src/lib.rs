//! NVIDIA's GPUs, by NVML, the library that comes with their driver.
//!
//! One thread asks the driver, and nobody else does (`driver.rs`): a call that hangs in the kernel hangs that thread
//! alone. Whoever asks waits at most `timeout` for a driver that makes no progress, and is then told what was last
//! known, with the GPU unhealthy that the driver is silent about (a driver that is only being begun anew may take
//! `opening`); figures are never told twice, so those are an error then. What a round of questions yields is a `survey::Survey`; what outlives one (faults, counters, devices that
//! were there) is `health.rs`. Events are queued by the driver and read at every round.
//!
//! The thread ends with the plugin. One that hangs ends when its call returns: nothing can end it earlier.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use host_core::{
    ErrorKind, PluginError,
    check::Check,
    gpu::{Gpu, GpuDevice, GpuHealth, GpuStats, Result},
    registry::Plugin,
};
mod attach;
mod config;
mod driver;
mod health;
mod survey;
mod trouble;

pub use config::Config;
use driver::{Driver, Reply, Silence};
use survey::Survey;

/// `[gpu] plugin = "nvml"`.
pub fn plugin() -> Plugin<dyn Gpu> {
    Plugin::new("nvml", |config: Config, context| async move {
        Ok(Arc::new(NvmlGpu::open(config, context.local).await?) as Arc<dyn Gpu>)
    })
}

/// The GPUs of NVIDIA's driver.
#[derive(Debug)]
pub struct NvmlGpu {
    driver: Driver,
    config: Arc<Config>,
    required: bool,
}

impl NvmlGpu {
    /// Loads NVML and looks at every GPU once. `lenient` is what a section that does not say `required` means: a host
    /// without NVML has no GPUs then, until it has.
    ///
    /// # Errors
    /// There is no NVML that works, or no GPU, where one is required.
    pub async fn open(config: Config, lenient: bool) -> Result<Self> {
        let required = config.required.unwrap_or(!lenient);
        let config = Arc::new(config);
        let driver = Driver::start(Arc::clone(&config)).map_err(|error| {
            PluginError::new(ErrorKind::Exhausted, "no thread for NVIDIA's driver").with_source(error)
        })?;
        let opening = config.opening;
        let gpu = Self { driver, config, required };
        match gpu.survey(opening).await {
            Ok(survey) if survey.devices.is_empty() && required => Err(PluginError::new(
                ErrorKind::Unavailable,
                "NVIDIA's driver works and knows no GPU; set gpu.nvml.required = false to do without",
            )),
            Ok(survey) => {
                let (driver, devices) = (&survey.driver, survey.devices.len());
                tracing::info!(driver, devices, "asked NVIDIA's driver for its GPUs");
                Ok(gpu)
            }
            Err(error) if required => Err(error),
            Err(error) => {
                tracing::warn!(%error, "there are no NVIDIA GPUs, mandelboxes run without");
                Ok(gpu)
            }
        }
    }

    async fn survey(&self, patience: Duration) -> Result<Arc<Survey>> {
        match self.driver.survey(patience).await {
            Reply::Told(told) => Ok(told?),
            Reply::Silent(silence) => Err(silence.into()),
        }
    }

    /// From what the driver tells now; `silent` from what it told last.
    async fn ask<T>(
        &self,
        told: impl Fn(&Survey) -> Vec<T>,
        silent: impl FnOnce(&Survey, &Silence) -> Option<Vec<T>>,
    ) -> Result<Vec<T>> {
        match self.driver.survey(self.config.timeout).await {
            Reply::Told(Ok(survey)) => Ok(told(&survey)),
            // A host that never had any has none; one that had some has trouble.
            Reply::Told(Err(_)) if !self.required && !self.driver.has_ever_told() => Ok(Vec::new()),
            Reply::Told(Err(trouble)) => Err(trouble.into()),
            Reply::Silent(silence) => match &silence.last {
                Some(last) => silent(last, &silence).ok_or_else(|| silence.into()),
                None if !self.required => Ok(Vec::new()),
                None => Err(silence.into()),
            },
        }
    }
}

#[async_trait]
impl Gpu for NvmlGpu {
    async fn enumerate(&self) -> Result<Vec<GpuDevice>> {
        let devices = |survey: &Survey| survey.devices.clone();
        self.ask(devices, |last, _| Some(devices(last))).await
    }

    async fn stats(&self) -> Result<Vec<GpuStats>> {
        self.ask(|survey| survey.stats.clone(), |_, _| None).await
    }

    async fn health(&self) -> Result<Vec<(String, GpuHealth)>> {
        self.ask(|survey| survey.health.clone(), |last, silence| Some(silence.health(last))).await
    }

    async fn examine(&self) -> Vec<Check> {
        match self.survey(self.config.timeout).await {
            Ok(survey) => survey.checks(),
            // Whoever enumerates is told.
            Err(_) => Vec::new(),
        }
    }
}
