//! Podman (4.3 to 5, root's or a user's) as a [`Runtime`], through libpod's API.
//!
//! ```text
//!  PodmanRuntime ── Engine ──┬── podman-api ── one connection per request
//!        │                   └── Wire ──────── what it sends wrongly, reads too narrowly or holds back: the body of a
//!        │                                     creation, stop, inspect, load, events, logs; one connection each
//!        └───────── Creates ─── one task per container being created
//! ```
//!
//! The only tasks are the creations under way; they end with their request, and when the runtime is dropped.
//! Everything else ends when its future or stream is dropped. Look-ups have the section's deadline, everything else
//! the caller's.

mod config;
mod container;
mod create;
mod doctor;
mod engine;
mod error;
mod events;
mod image;
mod logs;
mod support;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use engine_http::Creates;
use futures::stream::BoxStream;
use host_core::{
    ImageRef,
    check::Check,
    registry::Plugin,
    runtime::{
        Container, ContainerId, ContainerRef, ContainerSpec, Feature, Image, LogChunk, LogOptions,
        OnProgress, Result, Runtime, RuntimeEvent, RuntimeInfo, Selector,
    },
};

pub use config::Config;
pub use engine_http::{Endpoint, InvalidEndpoint};

use engine::Engine;

/// The plugin `podman`.
pub fn plugin() -> Plugin<dyn Runtime> {
    Plugin::new("podman", |config: Config, context| async move {
        let runtime: Arc<dyn Runtime> = Arc::new(PodmanRuntime::connect(config, context.state_dir).await?);
        Ok(runtime)
    })
}

/// Containers in one Podman.
#[derive(Debug)]
pub struct PodmanRuntime {
    engine: Engine,
    creates: Creates,
}

impl PodmanRuntime {
    /// Reaches the engine and asks what it can do. In `scratch`, a directory, it finds filters of system calls while it
    /// creates a container with one.
    ///
    /// # Errors
    /// `Unavailable` when it is not there, `Denied` when it may not be used, `Unsupported` when it is too old or keeps no
    /// events.
    pub async fn connect(config: Config, scratch: PathBuf) -> Result<Self> {
        Ok(Self { engine: Engine::connect(config, scratch).await?, creates: Creates::default() })
    }
}

#[async_trait]
impl Runtime for PodmanRuntime {
    fn features(&self) -> BTreeSet<Feature> {
        self.engine.support.features()
    }

    async fn health(&self) -> Result<RuntimeInfo> {
        let version = self.engine.version().await?;
        let api_version = Some(engine::API_VERSION.to_owned());
        Ok(RuntimeInfo { name: "podman".to_owned(), version, api_version })
    }

    async fn image(&self, reference: &ImageRef) -> Result<Option<Image>> {
        image::find(&self.engine, reference).await
    }

    async fn images(&self) -> Result<Vec<Image>> {
        image::all(&self.engine).await
    }

    async fn pull(&self, reference: &ImageRef, _: OnProgress<'_>) -> Result<Image> {
        image::pull(&self.engine, reference).await
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
        container::inspect(&self.engine, container).await
    }

    async fn list(&self, selector: &Selector) -> Result<Vec<Container>> {
        container::list(&self.engine, selector).await
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

    async fn examine(&self) -> Vec<Check> {
        doctor::examine(&self.engine).await
    }
}
