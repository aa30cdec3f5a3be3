//! Parts of this machine that end with their users: processes, mounts and a network of their own.
//!
//! # Nothing stays behind
//!
//! A world's processes run in their own PID, mount and network namespaces, with their data on a tmpfs in there. When
//! the first process of the namespaces (`world.sh`) ends, the kernel ends all others and drops mounts, interfaces and
//! packet filter rules, so not even SIGKILL can leave any of these. That process ends with its guard (`guard.sh`), and
//! the guard waits for a lock on the world's `lease` file that every user shares: the kernel gives a user's share back
//! however the user ends. The guard then removes the control groups and the directory, which is all that there is
//! outside. Should the guard be killed, the next world to start removes those.
//!
//! Under nextest or cargo, a holder of a shared world's lease lives as long as the test runner does, so the world ends
//! with the test run and not between two tests of it.
//!
//! # Its own network
//!
//! The thread that asked for a world is in its network until the world is dropped: sockets that a test opens, and
//! processes that it starts, are in there and need no further care, and nothing else listens there. So get the world
//! first, and on the runtime that a plain `#[tokio::test]` gives, which has one thread. There is loopback, and no outside.
//!
//! # Its own processes
//!
//! What a test starts through an [`Entrance`] is in the world whole, and ends with it, also when it makes processes that
//! leave its session. [`on_own_host`](crate::oci::on_own_host) does that with the test itself.

mod entrance;
mod place;
mod visit;

use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    process::Child,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

pub use self::entrance::Entrance;
pub(crate) use self::place::{Place, search_path};
use self::visit::Visit;
use crate::wait::until;

/// How long a world may take for anything; a loaded machine of two cores needs a tenth of it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// What makes a world, whatever lives in it.
const PROGRAMS: [&str; 6] = ["flock", "ip", "nsenter", "setpriv", "setsid", "unshare"];

/// A world, a share in its life, and the calling thread's stay in its network.
#[derive(Debug)]
pub struct World {
    visit: Option<Visit>,
    place: Option<Place>,
    /// The guard, if this process started it.
    guard: Option<Child>,
    /// Held until the world is as every user expects it.
    starting: Option<File>,
    first: u32,
    scratch: bool,
}

impl World {
    /// An empty world for one test. Dropping it returns when nothing of it is left.
    ///
    /// # Errors
    /// What this host lacks, with the remedy, or why the world does not come up.
    pub async fn scratch() -> Result<Self> {
        check_host(&[])?;
        let mut world = Self::start(Place::scratch()?, true, |_| Ok(Vec::new())).await?;
        world.settle()?;
        Ok(world)
    }

    /// The world in a place, which is started if need be. `furnish` writes what its daemon reads and says how that is
    /// started. Until [`World::settle`] other users of the place wait.
    pub(crate) async fn start(
        place: Place,
        scratch: bool,
        furnish: impl FnOnce(&Place) -> Result<Vec<String>>,
    ) -> Result<Self> {
        let starting = Some(place.lock_start()?);
        let guard = match place.is_guarded()? {
            true => None,
            false => {
                place.clear()?;
                let daemon = furnish(&place)?;
                Some(place.start_guard(&daemon)?)
            }
        };
        let mut world = Self { visit: None, place: Some(place), guard, starting, first: 0, scratch };
        let made = world.path("handled");
        world.until("world", async || made.exists().then_some(())).await?;
        world.first = fs::read_to_string(world.path("world"))?.trim_end().parse()?;
        Ok(world)
    }

    /// Waits like [`until`], but not for what cannot come any more.
    pub(crate) async fn until<T>(
        &mut self,
        what: &str,
        mut ask: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T> {
        let guard = &mut self.guard;
        let answer = until(what, DEADLINE, async || {
            let ended = guard.as_mut().and_then(|guard| guard.try_wait().ok().flatten());
            if ended.is_some() { Some(None) } else { ask().await.map(Some) }
        });
        let answer = answer.await.and_then(|answer| answer.context("the world ended at once"));
        answer.with_context(|| self.place().end_of_log())
    }

    /// The world is as it has to be: others may use it, and the calling thread enters its network.
    pub(crate) fn settle(&mut self) -> Result<()> {
        if !self.scratch {
            self.place().hold_for_runner()?;
        }
        self.starting = None;
        self.visit = Some(Visit::to(self.first)?);
        Ok(())
    }

    /// The way in for processes.
    ///
    /// # Errors
    /// The world has ended.
    pub fn entrance(&self) -> Result<Entrance> {
        Entrance::to(self.first)
    }

    /// The number of its first process, as the test sees it.
    #[must_use]
    pub fn first(&self) -> u32 {
        self.first
    }

    /// The directory that goes with the world. The test and the world see it at the same path, but for what is in
    /// [`World::disk`].
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.place().directory()
    }

    /// The last part of [`World::directory`], which is also the name of the world's control group.
    #[must_use]
    pub fn name(&self) -> String {
        self.directory().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// A directory in memory that only those in the world see.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.path("disk")
    }

    /// Where the test sees a path of the world's.
    #[must_use]
    pub fn seen_outside(&self, path: &Path) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.first)).join(path.strip_prefix("/").unwrap_or(path))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place().path(name)
    }

    /// Has `world.sh` obey.
    pub(crate) async fn order(&self, order: &str) -> Result<()> {
        ensure!(self.scratch, "a shared engine has other users: use a scratch one");
        let before = self.place().handled_orders();
        self.place().send_order(order)?;
        let handled = async || (self.place().handled_orders() > before).then_some(());
        until(&format!("world that has obeyed '{order}'"), DEADLINE, handled).await
    }

    pub(crate) fn is_scratch(&self) -> bool {
        self.scratch
    }

    fn place(&self) -> &Place {
        // Only its end takes it.
        self.place.as_ref().expect("a world that has not ended")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.visit.take());
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

/// Whether this host has what a world takes, and `more`, and the caller can enter one. To be asked before there is a
/// [`Place`], which only a guard removes.
pub(crate) fn check_host(more: &[&str]) -> Result<()> {
    visit::check_runtime()?;
    ensure!(rustix::process::getuid().is_root(), "an engine needs root: run the tests as root");
    let lacking: Vec<_> =
        PROGRAMS.iter().chain(more).copied().filter(|program| find(program).is_none()).collect();
    ensure!(lacking.is_empty(), "this host lacks {}: `make setup` installs them", lacking.join(", "));
    Ok(())
}

/// Where a program is.
fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|directory| directory.join(program)).find(|path| path.is_file())
}
