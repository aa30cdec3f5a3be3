//! Real Docker engines for tests, each in a world of its own.
//!
//! [`Engine::shared`] is one engine for all tests of this checkout, whatever process they run in;
//! [`Engine::scratch`] is a fresh one that a test may kill, freeze and restart. Both have the test mandelbox's images.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! let engine = host_tests::engine::Engine::shared().await?;
//! let _containers = engine.client().list_containers(None).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Nothing stays behind
//!
//! An engine's processes run in their own PID, mount and network namespaces, with their data on a tmpfs in there.
//! When the first process of the namespaces (`world.sh`) ends, the kernel ends all others and drops mounts,
//! interfaces and packet filter rules, so not even SIGKILL can leave any of these. That process ends with its guard
//! (`guard.sh`), and the guard waits for a lock on the engine's `lease` file that every user shares: the kernel gives
//! a user's share back however the user ends. The guard then removes the control groups and the directory, which is
//! all that there is outside. Should the guard be killed, the next engine to start removes those. The kernel keeps
//! what no namespace holds, as after any Docker: modules, and under AppArmor the profile `docker-default`.
//!
//! Under nextest or cargo, a holder of the shared engine's lease lives as long as the test runner does, so the engine
//! ends with the test run and not between two tests of it.
//!
//! # Its own network
//!
//! The ports that containers publish are open inside the engine's network namespace, where nothing else listens. An
//! `Engine` moves the thread that asked for it in there until it is dropped: sockets that a test opens, and
//! processes that it starts, such as `host-service`, are in the same network as the containers and need no further
//! care. So get the engine first, and on the runtime that a plain `#[tokio::test]` gives, which has one thread.
//! Containers have loopback and each other but no outside.
//!
//! Binds may come from anywhere but /run (only /run/udev is there), /etc and /opt, which the engine sees copies of.
//!
//! # Another engine, another image
//!
//! `HOST_TESTS_DOCKER=unix:///var/run/docker.sock` makes that engine the shared one. The test then stays in the network
//! that it is in, and the images are loaded into that engine and remain there.
//! `HOST_TESTS_IMAGE=FILE` is loaded instead of `build/test-mandelbox.tar`, which is made whenever it is missing or old.

mod image;
mod leftovers;
mod network;
mod place;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bollard::models::ContainerSummary;
use bollard::query_parameters::ListContainersOptionsBuilder;
use bollard::{API_DEFAULT_VERSION, Docker};

pub use self::leftovers::Leftovers;
use self::network::Visit;
use self::place::Place;
use crate::wait::until;

/// How long an engine may take for anything; a loaded machine of two cores needs a tenth of it.
const DEADLINE: Duration = Duration::from_secs(30);
const CLEAN_DEADLINE: Duration = Duration::from_secs(10);
const PING_DEADLINE: Duration = Duration::from_secs(2);
/// Longer than any request a test makes, shorter than a test runner's patience.
const REQUEST_SECONDS: u64 = 60;
const PROGRAMS: [&str; 8] =
    ["containerd", "dockerd", "flock", "ip", "iptables", "runc", "setpriv", "unshare"];

/// A running engine, the calling thread's stay in its network, and a share in its life.
#[derive(Debug)]
pub struct Engine {
    docker: Docker,
    socket: PathBuf,
    _visit: Option<Visit>,
    own: Option<Own>,
}

/// What only an engine of the harness has.
#[derive(Debug)]
struct Own {
    place: Option<Place>,
    /// The guard, if this process started it.
    guard: Option<Child>,
    world: u32,
    scratch: bool,
}

impl Engine {
    /// The engine that all tests of this checkout share; started if it does not run yet.
    ///
    /// # Errors
    /// What this host lacks, with the remedy, or why the engine does not come up, with the end of its log.
    pub async fn shared() -> Result<Self> {
        match env::var("HOST_TESTS_DOCKER") {
            Ok(endpoint) => Self::existing(&endpoint).await,
            Err(_) => Self::open(Place::shared, false, &[]).await,
        }
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
        Self::open(Place::scratch, true, arguments).await
    }

    async fn existing(endpoint: &str) -> Result<Self> {
        let socket = endpoint.strip_prefix("unix://").context("HOST_TESTS_DOCKER: not a unix:// endpoint")?;
        let docker = connect(Path::new(socket)).await.with_context(|| format!("no engine at {endpoint}"))?;
        image::load(&docker, &image::archive()?).await?;
        Ok(Self { docker, socket: socket.into(), _visit: None, own: None })
    }

    async fn open(place: fn() -> Result<Place>, scratch: bool, arguments: &[&str]) -> Result<Self> {
        check_host()?;
        network::check_runtime()?;
        let place = place()?;
        let starting = place.lock_start()?;
        let (docker, guard) = running(&place, arguments).await.with_context(|| place.end_of_log())?;
        image::load_once(&docker, &image::archive()?, &place.path("loaded")).await?;
        if !scratch {
            place.hold_for_runner()?;
        }
        drop(starting);
        let world = fs::read_to_string(place.path("world"))?.trim_end().parse()?;
        let socket = place.path("docker.sock");
        let own = Own { place: Some(place), guard, world, scratch };
        Ok(Self { docker, socket, _visit: Some(Visit::to(world)?), own: Some(own) })
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
        let (own, place) = self.scratch_only()?;
        let name =
            place.directory().file_name().and_then(|name| name.to_str()).context("a place without a name")?;
        Leftovers::find(&self.docker, own.world, name).await
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

    /// Kills dockerd, and thereby its containerd; containers and their shims run on, as in reality.
    ///
    /// # Errors
    /// When the engine is not a scratch one.
    pub async fn kill(&self) -> Result<()> {
        self.order("kill").await
    }

    /// Ends dockerd as an administrator does.
    ///
    /// # Errors
    /// When the engine is not a scratch one, or takes too long.
    pub async fn stop(&self) -> Result<()> {
        self.order("stop").await
    }

    /// Starts dockerd after [`Engine::kill`] or [`Engine::stop`], and returns when it answers.
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

    /// Stops dockerd in its tracks: its socket accepts, and nothing ever answers.
    ///
    /// # Errors
    /// When the engine is not a scratch one.
    pub async fn freeze(&self) -> Result<()> {
        self.order("freeze").await
    }

    /// Lets a frozen dockerd go on.
    ///
    /// # Errors
    /// When the engine is not a scratch one.
    pub async fn thaw(&self) -> Result<()> {
        self.order("thaw").await
    }

    async fn order(&self, order: &str) -> Result<()> {
        let (_, place) = self.scratch_only()?;
        let before = place.handled_orders();
        place.send_order(order)?;
        let handled = async || (place.handled_orders() > before).then_some(());
        until(&format!("engine that has obeyed '{order}'"), DEADLINE, handled).await
    }

    fn scratch_only(&self) -> Result<(&Own, &Place)> {
        let own = self.own.as_ref().filter(|own| own.scratch);
        own.and_then(|own| Some((own, own.place.as_ref()?)))
            .context("a shared engine has other users: use a scratch one")
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        drop(self.place.take());
        let Some(guard) = self.guard.as_mut().filter(|_| self.scratch) else {
            return;
        };
        let start = Instant::now();
        while start.elapsed() < DEADLINE && matches!(guard.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A client of the engine in a place, and its guard if it had to be started.
async fn running(place: &Place, arguments: &[&str]) -> Result<(Docker, Option<Child>)> {
    let mut guard = if place.is_guarded()? { None } else { Some(place.start_guard(arguments)?) };
    let socket = place.path("docker.sock");
    let answer = until("answer from the engine", DEADLINE, async || {
        let ended = guard.as_mut().and_then(|guard| guard.try_wait().ok().flatten());
        if ended.is_some() { Some(None) } else { connect(&socket).await.map(Some) }
    });
    let docker = answer.await?.context("the engine ended at once")?;
    Ok((docker, guard))
}

/// A client, if an engine answers at the socket.
async fn connect(socket: &Path) -> Option<Docker> {
    let docker = Docker::connect_with_unix(socket.to_str()?, REQUEST_SECONDS, API_DEFAULT_VERSION).ok()?;
    tokio::time::timeout(PING_DEADLINE, docker.ping()).await.ok()?.ok()?;
    Some(docker)
}

fn check_host() -> Result<()> {
    ensure!(rustix::process::getuid().is_root(), "an engine needs root: run the tests as root");
    let lacking: Vec<_> = PROGRAMS.into_iter().filter(|program| !is_program(program)).collect();
    ensure!(lacking.is_empty(), "this host lacks {}: `make setup` installs them", lacking.join(", "));
    Ok(())
}

fn is_program(name: &str) -> bool {
    env::split_paths(&place::search_path()).any(|directory| directory.join(name).is_file())
}
