//! The Docker Engine as a [`Runtime`], through its API (versions 1.41 and later: Docker 20.10 to 29).
//!
//! ```text
//!  DockerRuntime ── Engine ──┬── bollard ── one connection per request, every path with the version
//!        │                   └── Wire ───── ping, events, logs, what there is: one connection each, owned by the answer
//!        └───────── Creates ─── one task per container being created
//! ```
//!
//! The only tasks are the creations under way; they end with their request, and when the runtime is dropped.
//! Everything else ends when its future or stream is dropped. Look-ups have the section's deadline, everything else
//! the caller's.

mod config;
mod container;
mod create;
mod engine;
mod error;
mod events;
mod image;
mod logs;
mod seen;
mod support;
mod version;

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use engine_http::Creates;
use futures::stream::BoxStream;
use host_core::{
    ImageRef,
    registry::Plugin,
    runtime::{
        Container, ContainerId, ContainerRef, ContainerSpec, Feature, Image, LogChunk, LogOptions,
        OnProgress, Result, Runtime, RuntimeEvent, RuntimeInfo, Selector,
    },
};

pub use config::Config;
pub use engine_http::{Endpoint, InvalidEndpoint};

use engine::Engine;

/// The plugin `docker`.
pub fn plugin() -> Plugin<dyn Runtime> {
    Plugin::new("docker", |config: Config, _context| async move {
        let runtime: Arc<dyn Runtime> = Arc::new(DockerRuntime::connect(config).await?);
        Ok(runtime)
    })
}

/// Containers in one Docker Engine.
#[derive(Debug)]
pub struct DockerRuntime {
    engine: Engine,
    creates: Creates,
}

impl DockerRuntime {
    /// Reaches the engine, agrees on a version with it and asks what it can do.
    ///
    /// # Errors
    /// `Unavailable` when it is not there, `Denied` when it may not be used, `Unsupported` when it is too old.
    pub async fn connect(config: Config) -> Result<Self> {
        Ok(Self { engine: Engine::connect(config).await?, creates: Creates::default() })
    }
}

#[async_trait]
impl Runtime for DockerRuntime {
    fn features(&self) -> BTreeSet<Feature> {
        self.engine.support.features()
    }

    async fn health(&self) -> Result<RuntimeInfo> {
        let pong = self.engine.ping().await?;
        Ok(RuntimeInfo {
            name: "docker".to_owned(),
            version: pong.version,
            api_version: Some(self.engine.version().to_string()),
        })
    }

    async fn image(&self, reference: &ImageRef) -> Result<Option<Image>> {
        image::find(&self.engine, reference).await
    }

    async fn images(&self) -> Result<Vec<Image>> {
        image::all(&self.engine).await
    }

    async fn pull(&self, reference: &ImageRef, progress: OnProgress<'_>) -> Result<Image> {
        image::pull(&self.engine, reference, progress).await
    }

    async fn load_image(&self, archive: &Path) -> Result<Vec<ImageRef>> {
        image::load(&self.engine, archive).await
    }

    async fn tag_image(&self, image: &ImageRef, name: &ImageRef) -> Result<()> {
        image::tag(&self.engine, image, name).await
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId> {
        let create = container::create(&self.engine, spec)?;
        self.creates.see_through(&spec.name, create).await
    }

    async fn start(&self, container: &ContainerRef) -> Result<()> {
        self.creates.settled(container).await;
        container::start(&self.engine, container).await
    }

    async fn stop(&self, container: &ContainerRef, grace: Duration) -> Result<()> {
        self.creates.settled(container).await;
        container::stop(&self.engine, container, grace).await
    }

    async fn remove(&self, container: &ContainerRef) -> Result<()> {
        self.creates.settled(container).await;
        container::remove(&self.engine, container).await
    }

    async fn inspect(&self, container: &ContainerRef) -> Result<Option<Container>> {
        self.creates.settled(container).await;
        seen::inspect(&self.engine, container).await
    }

    async fn list(&self, selector: &Selector) -> Result<Vec<Container>> {
        seen::list(&self.engine, selector).await
    }

    async fn logs(
        &self,
        container: &ContainerRef,
        options: LogOptions,
    ) -> Result<BoxStream<'static, Result<LogChunk>>> {
        self.creates.settled(container).await;
        logs::read(&self.engine, container, options).await
    }

    async fn events(&self, selector: &Selector) -> Result<BoxStream<'static, Result<RuntimeEvent>>> {
        events::follow(&self.engine, selector).await
    }
}
