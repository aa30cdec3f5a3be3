//! No GPU: mandelboxes run without one.
//!
//! Every list is empty, at once, always. There is nothing to configure and nothing to fail.

use std::sync::Arc;

use async_trait::async_trait;
use host_core::{
    gpu::{Gpu, GpuDevice, GpuHealth, GpuStats, Result},
    registry::Plugin,
};
use serde::Deserialize;

/// `[gpu.none]`, which has no keys.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// `[gpu] plugin = "none"`.
pub fn plugin() -> Plugin<dyn Gpu> {
    Plugin::new("none", |_: Config, _| async { Ok(Arc::new(NoGpu) as Arc<dyn Gpu>) })
}

/// A host without GPUs.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoGpu;

#[async_trait]
impl Gpu for NoGpu {
    async fn enumerate(&self) -> Result<Vec<GpuDevice>> {
        Ok(Vec::new())
    }

    async fn stats(&self) -> Result<Vec<GpuStats>> {
        Ok(Vec::new())
    }

    async fn health(&self) -> Result<Vec<(String, GpuHealth)>> {
        Ok(Vec::new())
    }
}
