//! The least that a mandelbox can cost on an engine: the very container that the service makes, asked for directly.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bollard::{
    Docker,
    models::{ContainerCreateBody, ContainerInspectResponse, HostConfig},
    query_parameters::{
        CreateContainerOptionsBuilder, InspectContainerOptions, RemoveContainerOptionsBuilder,
        StartContainerOptions, StopContainerOptionsBuilder,
    },
};
use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use tempfile::TempDir;

const LABEL_INSTANCE: &str = "host-service.instance";
const READY_FOR_CLIENT: &str = "done_sleeping_until_X_clients";
/// Between the range that the service leases from and the kernel's ephemeral ports.
const PORTS: std::ops::Range<u16> = 30_000..32_700;
const STOP_GRACE_SECONDS: i32 = 10;

/// Makes containers like one that a service has made.
#[derive(Debug)]
pub(crate) struct Floor {
    docker: Docker,
    model: ContainerCreateBody,
    /// The model's directory on the host.
    mandelbox: PathBuf,
    directory: TempDir,
    made: u16,
}

/// A container that is not made yet, everything else being there.
#[derive(Debug)]
pub(crate) struct Prepared {
    docker: Docker,
    pub(crate) name: String,
    body: ContainerCreateBody,
    mappings: PathBuf,
    events: EventStream<Vec<u8>>,
}

/// How long the parts of a direct spin-up took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts {
    pub(crate) create: Duration,
    pub(crate) start: Duration,
    /// From the end of `start` until the application takes its client.
    pub(crate) ready: Duration,
}

impl Parts {
    pub(crate) fn all(&self) -> Duration {
        self.create + self.start + self.ready
    }
}

impl Floor {
    /// The model is the service's container `name`, whose mandelbox has its directory at `mandelbox`.
    pub(crate) async fn like(docker: &Docker, name: &str, mandelbox: PathBuf) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("floor").tempdir()?;
        let made = docker.inspect_container(name, None::<InspectContainerOptions>).await?;
        let floor = Self {
            docker: docker.clone(),
            model: model(made).context("an answer without configuration")?,
            mandelbox,
            directory,
            made: 0,
        };
        Ok(floor)
    }

    /// Directory, files and watch, with ports and a name of their own.
    pub(crate) fn prepare(&mut self) -> Result<Prepared> {
        self.made += 1;
        let name = format!("test-mandelbox-floor-{}", self.made);
        let directory = self.directory.path().join(&name);
        fs::create_dir_all(directory.join("sockets"))?;
        let mappings = directory.join("resourceMappings");
        copy_files(&self.mandelbox.join("resourceMappings"), &mappings)?;
        let inotify = Inotify::init()?;
        inotify.watches().add(&mappings, WatchMask::CREATE | WatchMask::MOVED_TO)?;
        let mut body = self.model.clone();
        let host = body.host_config.get_or_insert_default();
        for mount in host.mounts.iter_mut().flatten() {
            let source = mount.source.as_deref().map(Path::new);
            if let Some(below) = source.and_then(|source| source.strip_prefix(&self.mandelbox).ok()) {
                mount.source = Some(directory.join(below).display().to_string());
            }
        }
        self.give_ports(host);
        Ok(Prepared {
            docker: self.docker.clone(),
            name,
            body,
            mappings,
            events: inotify.into_event_stream(vec![0; 1024])?,
        })
    }

    fn give_ports(&self, host: &mut HostConfig) {
        let bindings = host.port_bindings.iter_mut().flatten();
        let bindings = bindings.filter_map(|(_, bindings)| bindings.as_mut()).flatten();
        let room = PORTS.len() / 3;
        let first = PORTS.start + 3 * (self.made % u16::try_from(room).unwrap_or(u16::MAX));
        for (port, binding) in (first..).zip(bindings) {
            binding.host_port = Some(port.to_string());
        }
    }

    /// Fails if the engine makes anything else of the model than what the service had: limits, security, tmpfs, …
    pub(crate) async fn check(&self, name: &str) -> Result<()> {
        let made = self.docker.inspect_container(name, None::<InspectContainerOptions>).await?;
        let made = model(made).context("an answer without configuration")?;
        let comparable = |body: &ContainerCreateBody| {
            let mut body = body.clone();
            body.labels = None;
            body.exposed_ports.iter_mut().for_each(|ports| ports.sort()); // a set, in any order
            let host = body.host_config.get_or_insert_default();
            host.port_bindings = None;
            for mount in host.mounts.iter_mut().flatten() {
                mount.source = None;
            }
            body
        };
        let (made, model) = (comparable(&made), comparable(&self.model));
        ensure!(made == model, "not the service's container:\n{made:?}\n{model:?}");
        Ok(())
    }

    /// Kills and removes, as the engine does it in one order.
    pub(crate) async fn remove(&self, name: &str) -> Result<Duration> {
        let begun = Instant::now();
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        self.docker.remove_container(name, Some(options)).await?;
        Ok(begun.elapsed())
    }

    /// Lets it end by itself, then removes it.
    pub(crate) async fn stop_and_remove(&self, name: &str) -> Result<Duration> {
        let begun = Instant::now();
        let options = StopContainerOptionsBuilder::new().t(STOP_GRACE_SECONDS).build();
        self.docker.stop_container(name, Some(options)).await?;
        self.remove(name).await?;
        Ok(begun.elapsed())
    }
}

impl Prepared {
    /// Create, start, ready. It borrows, because the kernel takes milliseconds to close a watch, which no figure
    /// is to contain.
    pub(crate) async fn spin_up(&mut self) -> Result<Parts> {
        let begun = Instant::now();
        let options = CreateContainerOptionsBuilder::new().name(&self.name).build();
        self.docker.create_container(Some(options), self.body.clone()).await?;
        let create = begun.elapsed();
        self.docker.start_container(&self.name, None::<StartContainerOptions>).await?;
        let start = begun.elapsed() - create;
        let announcement = self.mappings.join(READY_FOR_CLIENT);
        while announcement.symlink_metadata().is_err() {
            self.events.next().await.context("the watch ended")??;
        }
        Ok(Parts { create, start, ready: begun.elapsed() - create - start })
    }
}

/// What has to be asked for to get such a container, under another instance's label: the service removes
/// containers that are labelled as its own and are not.
fn model(made: ContainerInspectResponse) -> Option<ContainerCreateBody> {
    let config = made.config?;
    let mut labels = config.labels.unwrap_or_default();
    labels.insert(LABEL_INSTANCE.to_owned(), "floor".to_owned());
    Some(ContainerCreateBody {
        image: config.image,
        cmd: config.cmd,
        env: config.env,
        labels: Some(labels),
        tty: config.tty,
        exposed_ports: config.exposed_ports,
        host_config: made.host_config,
        ..ContainerCreateBody::default()
    })
}

/// What the service has written for its mandelbox, `.ready` included; not what the application made of it.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() != READY_FOR_CLIENT {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
