//! Where a server lives and whose it is: a directory with a `lease` that its users share.

use std::{
    env,
    fs::{self, File, OpenOptions},
    hash::{BuildHasher, RandomState},
    io::{self, Write},
    net::TcpListener,
    os::unix::{
        fs::{OpenOptionsExt, chown},
        process::parent_id,
    },
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{Setup, programs};

/// Below the range that the kernel gives to clients (32768 and up): one that tries to connect again and again to a
/// server that is away would in the end be given the server's own port, and be connected to itself.
const PORTS: std::ops::Range<u64> = 20_000..32_000;

/// A directory, and the lock that keeps it and its server alive for as long as this value lives.
#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    _lease: File,
}

impl Place {
    pub(super) fn shared() -> Result<Self> {
        Self::enter(&runner().unwrap_or_else(process::id).to_string())
    }

    pub(super) fn scratch() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self::enter(&format!("{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    fn enter(name: &str) -> Result<Self> {
        let directory = env::temp_dir().join(format!("host-tests-pg-{name}"));
        make(&directory).with_context(|| format!("cannot use {}", directory.display()))?;
        let lease = OpenOptions::new().create(true).append(true).open(directory.join("lease"))?;
        lease.lock_shared()?;
        Ok(Self { directory, _lease: lease })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Only one user at a time holds this, so that one starts what all use.
    pub(super) fn lock_start(&self) -> io::Result<File> {
        let start = File::create(self.path("start"))?;
        start.lock()?;
        Ok(start)
    }

    pub(super) fn port(&self) -> u16 {
        let port = fs::read_to_string(self.path("port")).ok();
        port.and_then(|port| port.parse().ok()).unwrap_or_default()
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The process, if it runs.
    pub(super) fn server(&self) -> Option<u32> {
        let data = self.path("data");
        let process: u32 =
            fs::read_to_string(data.join("postmaster.pid")).ok()?.lines().next()?.parse().ok()?;
        let command = fs::read(format!("/proc/{process}/cmdline")).ok()?;
        String::from_utf8_lossy(&command).contains(data.to_str()?).then_some(process)
    }

    /// Makes the data directory, with a configuration of its own.
    pub(super) fn prepare(&self, setup: Setup<'_>) -> Result<()> {
        let data = self.path("data");
        copy(&template()?, &data)?;
        let port = free_port()?;
        fs::write(self.path("port"), port.to_string())?;
        let mut conf = OpenOptions::new().append(true).open(data.join("postgresql.conf"))?;
        writeln!(
            conf,
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\nfsync = off\n\
             full_page_writes = off\nshared_buffers = 32MB\n{}",
            self.directory.display(),
            setup.settings.join("\n")
        )?;
        let access = setup.access.join("\n");
        fs::write(
            data.join("pg_hba.conf"),
            format!("{access}\nlocal all all trust\nhost all all samehost trust\n"),
        )?;
        setup.files.iter().try_for_each(|(name, content)| private(&data.join(name), content))
    }

    pub(super) fn start_server(&self) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.path("log"))?;
        let mut command = as_postgres("setsid")?;
        command.arg(programs()?.join("postgres")).arg("-D").arg(self.path("data"));
        command.current_dir(&self.directory).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        reaped(command.spawn().context("cannot start PostgreSQL")?);
        Ok(())
    }

    /// Starts what ends the server when nobody uses it any more.
    pub(super) fn start_guard(&self, scratch: bool) -> Result<()> {
        let script = self.path("guard.sh");
        fs::write(&script, include_str!("guard.sh"))?;
        let mut guard = Command::new("setsid");
        guard.arg("bash").arg(script).arg(&self.directory);
        if let Some(runner) = runner().filter(|_| !scratch) {
            guard.arg(runner.to_string());
        }
        guard.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        reaped(guard.spawn().context("cannot start the guard")?);
        Ok(())
    }
}

/// Waits for a child in the background, so that it is no zombie that looks alive.
fn reaped(mut child: Child) {
    std::thread::spawn(move || child.wait());
}

/// The sessions and helpers of a server.
pub(super) fn sessions(server: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{server}/task/{server}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// CPU time of a process and of its children that have ended.
pub(super) fn cpu_time(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // After the name, which is in brackets and may hold anything: utime, stime, cutime and cstime are 12th to 15th.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(4).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// A command that runs as a user who may run a server.
pub(super) fn as_postgres(program: &str) -> Result<Command> {
    if !rustix::process::getuid().is_root() {
        return Ok(Command::new(program));
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
    Ok(command)
}

/// Makes a directory that a server may use.
fn make(directory: &Path) -> Result<()> {
    // First, so that a host without that user is left as it was.
    let owner = rustix::process::getuid().is_root().then(postgres_user).transpose()?;
    match fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    if let Some((user, group)) = owner {
        chown(directory, Some(user), Some(group))?;
    }
    Ok(())
}

/// Writes a file that only the server can read.
fn private(path: &Path, content: &str) -> Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content.as_bytes())?;
    if rustix::process::getuid().is_root() {
        let (user, group) = postgres_user()?;
        chown(path, Some(user), Some(group))?;
    }
    Ok(())
}

fn postgres_user() -> Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd")?;
    let user = users.lines().find_map(|line| {
        let mut fields = line.strip_prefix("postgres:")?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    user.context("this host lacks the user postgres, which comes with Debian's package postgresql")
}

/// An empty cluster to copy, made once.
fn template() -> Result<PathBuf> {
    let programs = programs()?;
    let version =
        programs.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
    let user = rustix::process::getuid().as_raw();
    let directory = env::temp_dir().join(format!("host-tests-pgtemplate-{version}-{user}"));
    make(&directory)?;
    let lock = File::create(directory.join("lock"))?;
    lock.lock()?;
    let template = directory.join("data");
    if template.exists() {
        return Ok(template);
    }
    let fresh = directory.join("fresh");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    let mut initdb = as_postgres(programs.join("initdb").to_str().context("a path")?)?;
    initdb.args([
        "--auth=trust",
        "--username=postgres",
        "--no-sync",
        "--encoding=UTF8",
        "--locale=C",
        "--pgdata",
    ]);
    let output = initdb.arg(&fresh).current_dir(&directory).output()?;
    ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    fs::rename(&fresh, &template)?;
    Ok(template)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").args(["--archive", "--reflink=auto"]).arg(from).arg(to).status()?;
    ensure!(copied.success(), "{} cannot be copied", from.display());
    Ok(())
}

pub(super) fn free_port() -> Result<u16> {
    let start = RandomState::new().hash_one(process::id());
    for step in 0..100 {
        let port = u16::try_from(PORTS.start + (start.wrapping_add(step)) % (PORTS.end - PORTS.start))?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port from {} to {}", PORTS.start, PORTS.end)
}

/// The process that runs the tests, when there is one: nextest or cargo.
fn runner() -> Option<u32> {
    let is_run = env::var_os("NEXTEST").is_some() || env::var_os("CARGO").is_some();
    is_run.then(parent_id)
}
