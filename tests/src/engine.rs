//! Real engines for tests, Docker's and Podman's, each in a world of its own.
//!
//! [`Engine::shared`] is one engine for all tests of this checkout, whatever process they run in;
//! [`Engine::scratch`] is a fresh one that a test may kill, freeze and restart. Both have the test mandelbox's images, and
//! both exist for Podman: [`Engine::shared_podman`] and [`Engine::scratch_podman`].
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! let engine = host_tests::engine::Engine::shared().await?;
//! let _containers = engine.client().list_containers(None).await?;
//! # Ok(())
//! # }
//! ```
//!
//! An engine's world (see [`crate::world`]) ends with its users. The kernel keeps what no namespace holds, as after any
//! Docker: modules, and under AppArmor the profile `docker-default`. The ports that containers publish are open in the
//! world's network, which the thread that asked for the engine is in. Containers have loopback and each other but no
//! outside.
//!
//! Binds may come from anywhere but /run (only /run/udev is there), /etc, /opt and /var/lib, which the engine sees copies of.
//!
//! # Another engine, another image
//!
//! `HOST_TESTS_DOCKER=unix:///var/run/docker.sock` makes that engine the shared one of Docker. The test then stays in the network
//! that it is in, and the images are loaded into that engine and remain there.
//! `HOST_TESTS_IMAGE=FILE` is loaded instead of `build/test-mandelbox.tar`, which is made whenever it is missing or old.

mod image;
mod leftovers;
mod make;

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

pub use self::make::Make;
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use bollard::models::ContainerSummary;
use bollard::query_parameters::ListContainersOptionsBuilder;
use bollard::{API_DEFAULT_VERSION, Docker};

use crate::{
    ground::Ground,
    image::archive,
    leftovers::Leftovers,
    wait::until,
    world::{DEADLINE, Place, World, check_host},
};

const CLEAN_DEADLINE: Duration = Duration::from_secs(10);
const PING_DEADLINE: Duration = Duration::from_secs(2);
/// Longer than any request a test makes, shorter than a test runner's patience.
const REQUEST_SECONDS: u64 = 60;

/// A running engine, the calling thread's stay in its network, and a share in its life.
#[derive(Debug)]
pub struct Engine {
    docker: Docker,
    make: Make,
    socket: PathBuf,
    /// Only an engine of the harness has one.
    world: Option<World>,
}

impl Engine {
    /// The engine that all tests of this checkout share; started if it does not run yet.
    ///
    /// # Errors
    /// What this host lacks, with the remedy, or why the engine does not come up, with the end of its log.
    pub async fn shared() -> Result<Self> {
        match env::var("HOST_TESTS_DOCKER") {
            Ok(endpoint) => Self::existing(&endpoint).await,
            Err(_) => Self::open(Make::Docker, || Place::shared(""), false, &[]).await,
        }
    }

    /// The same of Podman.
    ///
    /// # Errors
    /// As [`Engine::shared`].
    pub async fn shared_podman() -> Result<Self> {
        Self::open(Make::Podman, || Place::shared("-podman"), false, &[]).await
    }

    /// A fresh engine for one test. Dropping it returns when nothing of it is left.
    ///
    /// # Errors
    /// As [`Engine::shared`].
    pub async fn scratch() -> Result<Self> {
        Self::scratch_with(&[]).await
    }

    /// A fresh engine with more arguments for dockerd, `--live-restore` for example.
    ///
    /// # Errors
    /// As [`Engine::shared`].
    pub async fn scratch_with(arguments: &[&str]) -> Result<Self> {
        Self::open(Make::Docker, Place::scratch, true, arguments).await
    }

    /// A fresh Podman for one test.
    ///
    /// # Errors
    /// As [`Engine::shared`].
    pub async fn scratch_podman() -> Result<Self> {
        Self::open(Make::Podman, Place::scratch, true, &[]).await
    }

    /// A fresh Podman of a user's, for one test.
    ///
    /// # Errors
    /// As [`Engine::shared`].
    pub async fn scratch_rootless_podman() -> Result<Self> {
        Self::open(Make::RootlessPodman, Place::scratch, true, &[]).await
    }

    async fn existing(endpoint: &str) -> Result<Self> {
        let socket = endpoint.strip_prefix("unix://").context("HOST_TESTS_DOCKER: not a unix:// endpoint")?;
        let docker = connect(Path::new(socket)).await.with_context(|| format!("no engine at {endpoint}"))?;
        image::load(&docker, &archive()?).await?;
        Ok(Self { docker, make: Make::Docker, socket: socket.into(), world: None })
    }

    async fn open(
        make: Make,
        place: fn() -> Result<Place>,
        scratch: bool,
        arguments: &[&str],
    ) -> Result<Self> {
        check_host(make.programs())?;
        let mut world = World::start(place()?, scratch, |place| make.daemon(place, arguments)).await?;
        let socket = make.socket(&world);
        let docker = world.until("answer from the engine", async || connect(&socket).await).await?;
        image::load_once(&docker, &archive()?, &world.path("loaded")).await?;
        world.settle()?;
        Ok(Self { docker, make, socket, world: Some(world) })
    }

    /// Which engine it is.
    #[must_use]
    pub fn make(&self) -> Make {
        self.make
    }

    /// The engine's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The engine's endpoint, `unix://` and its socket, as `DOCKER_HOST` and the configuration have it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Where the test sees a path of the engine's, in /proc for example.
    #[must_use]
    pub fn seen_outside(&self, path: &Path) -> PathBuf {
        self.world.as_ref().map_or_else(|| path.to_owned(), |world| world.seen_outside(path))
    }

    /// A client of the engine.
    #[must_use]
    pub fn client(&self) -> &Docker {
        &self.docker
    }

    /// The containers, running or not, that carry a label: `key` or `key=value`.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn containers_with_label(&self, label: &str) -> Result<Vec<ContainerSummary>> {
        let filters = [("label", vec![label])].into();
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        Ok(self.docker.list_containers(Some(options)).await?)
    }

    /// Succeeds once no container carries the label.
    ///
    /// # Errors
    /// When one still does after ten seconds.
    pub async fn assert_none_labelled(&self, label: &str) -> Result<()> {
        let gone = async || {
            self.containers_with_label(label).await.is_ok_and(|found| found.is_empty()).then_some(())
        };
        until(&format!("end of all containers labelled {label}"), CLEAN_DEADLINE, gone).await
    }

    /// What containers have left in this scratch engine at this moment.
    ///
    /// # Errors
    /// When the engine does not answer, or has other users.
    pub async fn leftovers(&self) -> Result<Leftovers> {
        let world = self.world.as_ref().filter(|world| world.is_scratch());
        let world = world.context("a shared engine has other users: use a scratch one")?;
        leftovers::find(self.make, &self.docker, world).await
    }

    /// Succeeds once this scratch engine holds nothing that a container has left: containers, volumes, networks,
    /// processes, mounts, interfaces, control groups.
    ///
    /// # Errors
    /// When something is still there after ten seconds; it is named.
    pub async fn assert_clean(&self) -> Result<()> {
        let clean = async || self.leftovers().await.is_ok_and(|left| left.is_empty()).then_some(());
        match until("clean engine", CLEAN_DEADLINE, clean).await {
            Ok(()) => Ok(()),
            Err(_) => bail!("left in the engine: {}", self.leftovers().await?),
        }
    }

    /// Kills the engine, and thereby Docker's containerd; containers and their shims run on, as in reality.
    ///
    /// # Errors
    /// When the engine is not a scratch one.
    pub async fn kill(&self) -> Result<()> {
        self.order("kill").await
    }

    /// Ends the engine as an administrator does.
    ///
    /// # Errors
    /// When the engine is not a scratch one, or takes too long.
    pub async fn stop(&self) -> Result<()> {
        self.order("stop").await
    }

    /// Starts the engine after [`Engine::kill`] or [`Engine::stop`], and returns when it answers.
    ///
    /// # Errors
    /// When the engine is not a scratch one, or does not come up.
    pub async fn start(&self) -> Result<()> {
        self.order("start").await?;
        let up = async || connect(&self.socket).await.map(drop);
        until("answer from the engine", DEADLINE, up).await
    }

    /// [`Engine::stop`], then [`Engine::start`].
    ///
    /// # Errors
    /// As these two.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.start().await
    }

    /// Stops the engine in its tracks: its socket accepts, and nothing ever answers.
    ///
    /// # Errors
    /// When the engine is not a scratch one.
    pub async fn freeze(&self) -> Result<()> {
        self.order("freeze").await
    }

    /// Lets a frozen engine go on.
    ///
    /// # Errors
    /// When the engine is not a scratch one.
    pub async fn thaw(&self) -> Result<()> {
        self.order("thaw").await
    }

    async fn order(&self, order: &str) -> Result<()> {
        let world = self.world.as_ref().context("a shared engine has other users: use a scratch one")?;
        world.order(order).await
    }
}

#[async_trait(?Send)]
impl Ground for Engine {
    fn settings(&self, _: &str) -> String {
        let (plugin, endpoint) = (self.make.plugin(), self.endpoint());
        format!("[runtime]\nplugin = \"{plugin}\"\n[runtime.{plugin}]\nendpoint = \"{endpoint}\"\n")
    }

    fn directory(&self) -> PathBuf {
        self.world.as_ref().map_or_else(env::temp_dir, |world| world.directory().to_owned())
    }

    async fn containers(&self, instance: &str) -> Result<Vec<String>> {
        let found = self.containers_with_label(&format!("host-service.instance={instance}")).await?;
        let names = found.into_iter().map(|container| {
            let names = container.names.unwrap_or_default();
            names
                .first()
                .map(|name| name.trim_start_matches('/').to_owned())
                .context("a container without a name")
        });
        names.collect()
    }
}

/// A client, if an engine answers at the socket.
async fn connect(socket: &Path) -> Option<Docker> {
    let docker = Docker::connect_with_unix(socket.to_str()?, REQUEST_SECONDS, API_DEFAULT_VERSION).ok()?;
    tokio::time::timeout(PING_DEADLINE, docker.ping()).await.ok()?.ok()?;
    Some(docker)
}
