//! Real PostgreSQL servers for tests.
//!
//! [`Cluster::shared`] is one server for all tests of a run, whatever process they are in, where each test takes a
//! [`Database`] of its own; [`Cluster::scratch`] is one that a test may kill, freeze and restart.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! let cluster = host_tests::postgres::Cluster::shared().await?;
//! let database = cluster.database()?;
//! database.sql("CREATE TABLE t (n integer)")?;
//! # Ok(())
//! # }
//! ```
//!
//! # Nothing stays behind
//!
//! A server's users share a lock, which the kernel gives back even after SIGKILL. `guard.sh` waits for it, and for the
//! process that runs the tests, then ends the server and removes its directory. What stays is one empty cluster in the
//! temporary directory, which later ones are copied from.
//!
//! The server runs as the user `postgres`, because it refuses to be root; started by anybody else, as that user. It
//! listens on 127.0.0.1, outside of the range that the kernel gives to clients, and does not sync its data.

mod bouncer;
mod development;
mod place;

use std::{
    fs,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use self::place::Place;
pub use self::{bouncer::Bouncer, development::Development};
use crate::wait::until;

/// How long a server may take to start or to end.
const DEADLINE: Duration = Duration::from_secs(30);

/// A running server, and a share in its life.
#[derive(Debug)]
pub struct Cluster {
    place: Place,
    scratch: bool,
}

/// What is special about a server.
#[derive(Debug, Default, Clone, Copy)]
pub struct Setup<'a> {
    /// Lines of `postgresql.conf`.
    pub settings: &'a [&'a str],
    /// Lines of `pg_hba.conf`, before `trust`.
    pub access: &'a [&'a str],
    /// Files in the data directory, which only the server can read: their names and what is in them.
    pub files: &'a [(&'a str, &'a str)],
}

/// A database of one test's own. It goes with the server.
#[derive(Debug, Clone)]
pub struct Database {
    name: String,
    port: u16,
}

impl Cluster {
    /// The server that all tests of this run share; started if it does not run yet.
    ///
    /// # Errors
    /// What this host lacks, with the remedy, or why the server does not come up, with the end of its log.
    pub async fn shared() -> Result<Self> {
        Self::open(
            Place::shared()?,
            false,
            Setup { settings: &["max_connections = 300"], ..Setup::default() },
        )
        .await
    }

    /// A server for one test. It is ended and removed soon after this is dropped.
    ///
    /// # Errors
    /// As [`Cluster::shared`].
    pub async fn scratch() -> Result<Self> {
        Self::scratch_with(Setup::default()).await
    }

    /// One that is set up in its own way.
    ///
    /// # Errors
    /// As [`Cluster::shared`].
    pub async fn scratch_with(setup: Setup<'_>) -> Result<Self> {
        Self::open(Place::scratch()?, true, setup).await
    }

    async fn open(place: Place, scratch: bool, setup: Setup<'_>) -> Result<Self> {
        let starting = place.lock_start()?;
        let cluster = Self { place, scratch };
        if cluster.place.server().is_none() {
            cluster.place.prepare(setup)?;
            // First, so that it also removes what does not come up.
            cluster.place.start_guard(scratch)?;
            cluster.start().await?;
        }
        drop(starting);
        Ok(cluster)
    }

    /// An empty database.
    ///
    /// # Errors
    /// The server refuses.
    pub fn database(&self) -> Result<Database> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        self.postgres().sql(&format!("CREATE DATABASE {name}"))?;
        Ok(Database { name, port: self.port() })
    }

    /// The database that every server has.
    #[must_use]
    pub fn postgres(&self) -> Database {
        Database { name: "postgres".to_owned(), port: self.port() }
    }

    /// Where the server listens on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.place.port()
    }

    /// The server's log so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.place.log()
    }

    /// CPU time of the server with all its sessions, including those that have ended.
    ///
    /// # Errors
    /// It does not run.
    pub fn cpu_time(&self) -> Result<Duration> {
        let server = self.place.server().context("the server does not run")?;
        let mut all = place::sessions(server);
        all.push(server);
        Ok(all.into_iter().map(place::cpu_time).sum())
    }

    /// Kills the server and every session, as a power cut does.
    ///
    /// # Errors
    /// It is shared, or does not run.
    pub async fn kill(&self) -> Result<()> {
        self.signal_all(Signal::KILL)?;
        self.ended().await
    }

    /// Ends the server as an administrator in a hurry does.
    ///
    /// # Errors
    /// As [`Cluster::kill`].
    pub async fn stop(&self) -> Result<()> {
        self.check_scratch()?;
        let server = self.place.server().context("the server does not run")?;
        kill_process(pid(server)?, Signal::INT)?;
        self.ended().await
    }

    /// Starts the server again.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start(&self) -> Result<()> {
        self.place.start_server()?;
        let answers = async || self.postgres().sql("SELECT 1").ok().map(drop);
        until("answer from PostgreSQL", DEADLINE, answers).await.with_context(|| self.log())
    }

    /// Stops the server and every session in their tracks: connections are accepted, and nobody answers.
    ///
    /// # Errors
    /// As [`Cluster::kill`].
    pub fn freeze(&self) -> Result<()> {
        self.signal_all(Signal::STOP)
    }

    /// Lets a frozen server go on.
    ///
    /// # Errors
    /// As [`Cluster::kill`].
    pub fn thaw(&self) -> Result<()> {
        self.signal_all(Signal::CONT)
    }

    async fn ended(&self) -> Result<()> {
        until("end of PostgreSQL", DEADLINE, async || self.place.server().is_none().then_some(())).await
    }

    /// The server first: it starts sessions.
    fn signal_all(&self, signal: Signal) -> Result<()> {
        self.check_scratch()?;
        let server = self.place.server().context("the server does not run")?;
        kill_process(pid(server)?, signal)?;
        for session in place::sessions(server) {
            // It may have ended meanwhile.
            let _ = kill_process(pid(session)?, signal);
        }
        Ok(())
    }

    fn check_scratch(&self) -> Result<()> {
        ensure!(self.scratch, "a shared server has other users: use a scratch one");
        Ok(())
    }
}

impl Database {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its URL, for the superuser.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// Its URL for `user`, or `user:password`.
    #[must_use]
    pub fn url_of(&self, user: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{}", self.port, self.name)
    }

    /// Runs SQL as the superuser with psql, and returns what it prints: one line for each row, `|` between columns.
    ///
    /// # Errors
    /// What psql says.
    pub fn sql(&self, sql: &str) -> Result<String> {
        Self::succeeded(self.psql(&self.url(), sql)?)
    }

    /// The same as another user.
    ///
    /// # Errors
    /// What psql says.
    pub fn sql_as(&self, user: &str, sql: &str) -> Result<String> {
        Self::succeeded(self.psql(&self.url_of(user), sql)?)
    }

    fn psql(&self, url: &str, sql: &str) -> Result<Output> {
        let mut psql = Command::new("psql");
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]);
        Ok(psql.args(["--dbname", url, "--command", sql]).output()?)
    }

    fn succeeded(output: Output) -> Result<String> {
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr).trim_end());
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }
}

fn pid(number: u32) -> Result<Pid> {
    Pid::from_raw(i32::try_from(number)?).context("a process id")
}

/// The directory of the newest server's programs.
fn programs() -> Result<std::path::PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((version, entry.path().join("bin")))
    });
    let (_, programs) = newest.max().context("this host lacks PostgreSQL: `make setup` installs it")?;
    Ok(programs)
}
