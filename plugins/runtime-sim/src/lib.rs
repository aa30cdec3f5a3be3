//! A container runtime in memory: real in what the trait promises, simulated in everything else.
//!
//! Containers have names, labels, states, logs, events and ports that clash; they have no processes, and mounts,
//! devices, limits and capabilities are accepted and ignored. A running container plays the application of the
//! in-container contract, so that a host's whole loop runs on it. A [`Script`] makes it misbehave.
//!
//! Time is tokio's, so tests can pause it. The only tasks are those of running containers: they end with their
//! container, and when the [`Sim`] is dropped.

mod application;
mod config;
mod faults;
mod images;
mod model;
mod script;
mod shared;

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures::{StreamExt, stream, stream::BoxStream};
use host_core::{
    ErrorKind, ImageRef, PluginError,
    registry::Plugin,
    runtime::{
        Container, ContainerId, ContainerRef, ContainerSpec, ContainerState, Exit, Feature, Image, LogChunk,
        LogOptions, OnProgress, PullProgress, Result, Runtime, RuntimeEvent, RuntimeInfo, Selector,
    },
};
use tokio::task::JoinSet;

pub use config::Config;
pub use faults::Op;
pub use script::{Calls, Containers, Script};

use application::Behaviour;
use model::{KILLED, Model};
use shared::Shared;

/// The plugin `sim`.
pub fn plugin() -> Plugin<dyn Runtime> {
    Plugin::new("sim", |config: Config, _context| async move {
        let runtime: Arc<dyn Runtime> = Arc::new(Sim::new(config));
        Ok(runtime)
    })
}

/// A simulated engine.
#[derive(Debug)]
pub struct Sim {
    shared: Arc<Shared>,
    plays_application: bool,
    programs: Mutex<JoinSet<()>>,
}

impl Sim {
    /// A running engine without containers.
    pub fn new(config: Config) -> Self {
        Self {
            plays_application: config.application,
            shared: Arc::new(Shared::new(Model::new(config))),
            programs: Mutex::new(JoinSet::new()),
        }
    }

    /// The hand inside.
    pub fn script(&self) -> Script {
        Script(Arc::clone(&self.shared))
    }

    fn run_program(&self, id: ContainerId) {
        let program = run(Arc::clone(&self.shared), id.clone(), self.plays_application);
        let program = {
            let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
            while programs.try_join_next().is_some() {}
            programs.spawn(program)
        };
        self.shared.change(|model| model.set_program(&id, program));
    }
}

/// The life of a container's first process. Ends the container if that ends by itself.
async fn run(shared: Arc<Shared>, id: ContainerId, plays_application: bool) {
    let Some((spec, lifetime)) =
        shared.see(|model| Some((model.get(&id)?.spec.clone(), model.lifetime(&id))))
    else {
        return;
    };
    let behaviour = Behaviour::of(&spec.command);
    let application = async {
        if plays_application {
            play(&shared, &id, &spec, &behaviour).await
        } else {
            std::future::pending().await
        }
    };
    let scripted = async {
        match lifetime {
            Some((after, exit)) => {
                tokio::time::sleep(after).await;
                exit
            }
            None => std::future::pending().await,
        }
    };
    let exit = tokio::select! {
        exit = application => exit,
        exit = scripted => exit,
    };
    shared.change(|model| model.exit(&id, exit));
}

async fn play(shared: &Shared, id: &ContainerId, spec: &ContainerSpec, behaviour: &Behaviour) -> Exit {
    let exit = |code| Exit { code: Some(code), oom: false };
    if let Some(code) = behaviour.exit_at_once {
        return exit(code);
    }
    if let Some(mappings) = application::mappings(spec) {
        shared.change(|model| model.write(id, "waits for .ready"));
        if let Err(error) = application::get_ready(&mappings, behaviour.announce_after).await {
            shared.change(|model| model.write(id, &format!("cannot announce: {error}")));
            return exit(1);
        }
        shared.change(|model| model.write(id, "takes its client"));
    }
    std::future::pending().await
}

#[async_trait]
impl Runtime for Sim {
    fn features(&self) -> BTreeSet<Feature> {
        [Feature::Pull, Feature::OomReport].into()
    }

    async fn health(&self) -> Result<RuntimeInfo> {
        let info = RuntimeInfo {
            name: "sim".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api_version: None,
        };
        self.shared.call(Op::Health, None, |_| Ok(info)).await
    }

    async fn image(&self, reference: &ImageRef) -> Result<Option<Image>> {
        let find = |model: &mut Model| Ok(model.images.find(reference));
        self.shared.call(Op::Image, None, find).await
    }

    async fn images(&self) -> Result<Vec<Image>> {
        self.shared.call(Op::Images, None, |model| Ok(model.images.all())).await
    }

    async fn pull(&self, reference: &ImageRef, progress: OnProgress<'_>) -> Result<Image> {
        let pull = |model: &mut Model| model.images.pull(reference);
        let image = self.shared.call(Op::Pull, None, pull).await?;
        progress(PullProgress { done_bytes: image.size_bytes, total_bytes: image.size_bytes });
        Ok(image)
    }

    async fn load_image(&self, _archive: &Path) -> Result<Vec<ImageRef>> {
        let text = "simulated images are names only and cannot be loaded";
        let refuse = |_: &mut Model| Err(PluginError::new(ErrorKind::Unsupported, text));
        self.shared.call(Op::LoadImage, None, refuse).await
    }

    async fn tag_image(&self, image: &ImageRef, name: &ImageRef) -> Result<()> {
        let tag = |model: &mut Model| model.images.tag(image, name);
        self.shared.call(Op::TagImage, None, tag).await
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId> {
        let name = spec.name.clone().into();
        self.shared.call(Op::Create, Some(&name), |model| model.create(spec)).await
    }

    async fn start(&self, container: &ContainerRef) -> Result<()> {
        let call = self.shared.begin(Op::Start, Some(container)).await?;
        if let Some(id) = self.shared.act(|model| model.start(container))? {
            self.run_program(id);
        }
        call.end().await
    }

    async fn stop(&self, container: &ContainerRef, grace: Duration) -> Result<()> {
        let call = self.shared.begin(Op::Stop, Some(container)).await?;
        if let Some(id) = self.shared.act(|model| Ok(model.terminate(container)))? {
            let ended = self.shared.wait(|model| {
                let runs = model.get(&id).is_some_and(|found| found.state == ContainerState::Running);
                (!runs).then_some(())
            });
            if tokio::time::timeout(grace, ended).await.is_err() {
                self.shared.act(|model| {
                    model.exit(&id, KILLED);
                    Ok(())
                })?;
            }
        }
        call.end().await
    }

    async fn remove(&self, container: &ContainerRef) -> Result<()> {
        let remove = |model: &mut Model| {
            let found = model.find(container).map(|(id, _)| id.clone());
            if let Some(id) = found {
                model.remove(&id);
            }
            Ok(())
        };
        self.shared.call(Op::Remove, Some(container), remove).await
    }

    async fn inspect(&self, container: &ContainerRef) -> Result<Option<Container>> {
        let see = |model: &mut Model| Ok(model.find(container).map(|(id, found)| found.seen(id)));
        self.shared.call(Op::Inspect, Some(container), see).await
    }

    async fn list(&self, selector: &Selector) -> Result<Vec<Container>> {
        let see = |model: &mut Model| {
            let selected = model.all().filter(|(_, found)| selector.matches(&found.spec.labels));
            Ok(selected.map(|(id, found)| found.seen(id)).collect())
        };
        self.shared.call(Op::List, None, see).await
    }

    async fn logs(
        &self,
        container: &ContainerRef,
        options: LogOptions,
    ) -> Result<BoxStream<'static, Result<LogChunk>>> {
        let find = |model: &mut Model| model.log_from(container, options.tail);
        let (id, from) = self.shared.call(Op::Logs, Some(container), find).await?;
        Ok(read_log(Arc::clone(&self.shared), id, from, options.follow))
    }

    async fn events(&self, selector: &Selector) -> Result<BoxStream<'static, Result<RuntimeEvent>>> {
        let subscribe = |model: &mut Model| Ok(model.subscribe(selector).boxed());
        self.shared.call(Op::Events, None, subscribe).await
    }

    async fn started_at(&self) -> Result<Option<SystemTime>> {
        self.shared.call(Op::StartedAt, None, |model| Ok(Some(model.started_at))).await
    }
}

fn read_log(
    shared: Arc<Shared>,
    id: ContainerId,
    from: usize,
    follow: bool,
) -> BoxStream<'static, Result<LogChunk>> {
    stream::unfold((shared, id, from), move |(shared, id, from)| async move {
        let piece = shared
            .wait(|model| {
                let Some(found) = model.get(&id) else {
                    return Some(None);
                };
                let written = found.log.get(from..).unwrap_or_default();
                let is_over = !follow || matches!(found.state, ContainerState::Exited(_));
                if written.is_empty() {
                    return is_over.then_some(None);
                }
                Some(Some(written.to_vec()))
            })
            .await?;
        let next = from + piece.len();
        Some((Ok(piece), (shared, id, next)))
    })
    .boxed()
}
