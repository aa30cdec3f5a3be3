//! Where a world lies and whose it is: a directory with a `lease` that its users share.

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

/// Sockets of containerd and of services lie up to 60 bytes below the directory, and a socket's path has at most 107.
const MAX_PATH_BYTES: usize = 45;

/// A directory, and the lock that keeps it and its world alive for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Place {
    directory: PathBuf,
    lease: File,
}

impl Place {
    /// The one place of this checkout for that purpose.
    pub(crate) fn shared(purpose: &str) -> Result<Self> {
        Self::enter(directory(&format!("{}{purpose}", checkout())))
    }

    /// A place of its own.
    pub(crate) fn scratch() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::enter(directory(&format!("{}-{count}", process::id())))
    }

    fn enter(directory: PathBuf) -> Result<Self> {
        let lease = take_lease(&directory).with_context(|| format!("cannot use {}", directory.display()))?;
        Ok(Self { directory, lease })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Whether a guard, and with it a world, lives here.
    pub(super) fn is_guarded(&self) -> io::Result<bool> {
        let guard = OpenOptions::new().create(true).append(true).open(self.path("guard"))?;
        Ok(guard.try_lock().is_err())
    }

    /// Only one user at a time holds this, so that one starts what all use.
    pub(super) fn lock_start(&self) -> io::Result<File> {
        let start = File::create(self.path("start"))?;
        start.lock()?;
        Ok(start)
    }

    /// Lets the place live as long as the test runner, because a runner that starts a process for each test would
    /// otherwise let the world go between two of them.
    pub(super) fn hold_for_runner(&self) -> io::Result<()> {
        let Some(runner) = runner() else { return Ok(()) };
        let mark =
            OpenOptions::new().create_new(true).write(true).open(self.path(&format!("runner-{runner}")));
        match mark {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => return Err(error),
        }
        // Its standard input is this very lock, which it thereby shares from its first moment on.
        detached("tail")
            .args(["--sleep-interval=0.1", "--follow", "/dev/null", &format!("--pid={runner}")])
            .stdin(self.lease.try_clone()?)
            .spawn()
            .map(drop)
    }

    /// Starts a guard, which starts a world, and a daemon in it if there is a command for one.
    pub(super) fn start_guard(&self, daemon: &[String]) -> Result<Child> {
        fs::write(self.path("guard.sh"), include_str!("guard.sh"))?;
        fs::write(self.path("world.sh"), include_str!("world.sh"))?;
        let mut guard = detached("bash");
        guard.arg(self.path("guard.sh")).arg(self.directory()).args(daemon);
        guard.stderr(File::create(self.path("log"))?);
        guard.env_clear().env("PATH", search_path()).spawn().context("cannot start a world's guard")
    }

    /// Removes whatever a killed guard has left.
    pub(super) fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if ["lease", "guard", "start"].iter().any(|kept| entry.file_name() == *kept) {
                continue;
            }
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }

    /// The last lines that the daemon, or what starts it, wrote.
    pub(super) fn end_of_log(&self) -> String {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let end = &lines[lines.len().saturating_sub(10)..];
        format!("its log ends with:\n{}", end.join("\n"))
    }

    /// Writes a line to `world.sh`.
    pub(super) fn send_order(&self, order: &str) -> io::Result<()> {
        // Open for reading too, because opening a pipe that nobody reads would wait for a reader.
        let mut control = OpenOptions::new().read(true).write(true).open(self.path("control"))?;
        writeln!(control, "{order}")
    }

    /// How many orders `world.sh` is done with.
    pub(super) fn handled_orders(&self) -> u32 {
        let count = fs::read_to_string(self.path("handled")).ok();
        count.and_then(|count| count.trim_end().parse().ok()).unwrap_or(0)
    }
}

/// `PATH`, and the directories of system programs, which not every user's has.
pub(crate) fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

/// A command that no signal to the test's process group, and no pipe of the test's, reaches.
pub(super) fn detached(program: &str) -> Command {
    let mut command = Command::new("setsid");
    command.arg(program).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn directory(name: &str) -> PathBuf {
    let temporary = env::temp_dir();
    let directory = temporary.join(format!("host-tests-{name}"));
    if directory.as_os_str().len() <= MAX_PATH_BYTES {
        return directory;
    }
    Path::new("/tmp").join(format!("host-tests-{name}"))
}

/// A short name for this checkout: two of them share nothing.
fn checkout() -> String {
    let mut hasher = DefaultHasher::new();
    (env!("CARGO_MANIFEST_DIR"), env::temp_dir()).hash(&mut hasher);
    format!("{:08x}", hasher.finish() & 0xffff_ffff)
}

/// Shares the lease of a directory, which is made if need be. A guard that is removing the directory holds the
/// lease alone; when it lets go, what was locked here is no longer there, and the next round makes a new one.
fn take_lease(directory: &Path) -> Result<File> {
    loop {
        make_private(directory)?;
        let path = directory.join("lease");
        let lease = match OpenOptions::new().create(true).append(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        lease.lock_shared()?;
        let locked = lease.metadata()?;
        if fs::metadata(&path).is_ok_and(|found| (found.dev(), found.ino()) == (locked.dev(), locked.ino())) {
            return Ok(lease);
        }
    }
}

/// Makes a directory that only this user can enter, or finds it already made so.
fn make_private(directory: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => return Ok(other?),
    }
    match directory.symlink_metadata() {
        Ok(found) => {
            let own = found.is_dir() && found.uid() == rustix::process::getuid().as_raw();
            ensure!(
                own && found.mode() & 0o077 == 0,
                "it is not a private directory of this user: remove it"
            );
        }
        Err(error) => ensure!(error.kind() == io::ErrorKind::NotFound, error),
    }
    Ok(())
}

/// The process that runs the tests, when there is one: nextest or cargo.
fn runner() -> Option<u32> {
    let is_run = env::var_os("NEXTEST").is_some() || env::var_os("CARGO").is_some();
    is_run.then(parent_id)
}
