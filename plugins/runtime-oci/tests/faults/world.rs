//! A host of one test's own: network, mounts, root, control groups. Whatever becomes of the test, nothing of it stays.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use host_core::{
    ErrorKind, ImageRef,
    runtime::{
        Container, ContainerRef, ContainerSpec, ContainerState, Exit, Limits, Mount, Network, Propagation,
        Runtime, Security,
    },
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use runtime_oci::{Config, OciRuntime, Program};
use rustix::process::FlockType;
use tempfile::TempDir;

use crate::image::{Image, Layer};

/// More than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(10);
/// An image in which the host's own programs can be run.
pub(crate) const TOOLS: &str = "test/tools:1";
/// The test mandelbox.
pub(crate) const MANDELBOX: &str = "test/mandelbox:current-build";

/// What a test does its damage to.
pub(crate) struct World {
    pub(crate) config: Config,
    directory: PathBuf,
    /// Absent in a second process that was let in.
    owned: Option<TempDir>,
}

impl World {
    /// To be called first, and once: the thread that calls it, and all that it makes, leave the host.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        apart();
        let owned = tempfile::tempdir().unwrap();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("/oci-faults-{}-{number}", std::process::id());
        let mut world = Self::at(owned.path().to_owned(), cgroup.into());
        world.owned = Some(owned);
        world
    }

    /// That of another process.
    pub(crate) fn at(directory: PathBuf, cgroup: PathBuf) -> Self {
        let (root, state) = (directory.join("oci"), Some(directory.join("state")));
        let mut config = Config { root, state, cgroup_parent: cgroup, ..Config::default() };
        // Whatever there is of networks then belongs to a container.
        config.network.ready = 0;
        Self { config, directory, owned: None }
    }

    /// For the test's own files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) async fn try_open(&self) -> host_core::runtime::Result<OciRuntime> {
        OciRuntime::open(self.config.clone(), Program::at(env!("CARGO_BIN_EXE_oci-supervisor"))).await
    }

    pub(crate) async fn open(&self) -> OciRuntime {
        let deadline = Instant::now() + LONG;
        loop {
            match self.try_open().await {
                // Another test of this process is about to execute something, and has a copy of the lock until then.
                Err(error) if error.kind() == ErrorKind::Conflict && Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                opened => return opened.unwrap(),
            }
        }
    }

    /// With both images.
    pub(crate) async fn with_images(&self) -> OciRuntime {
        let runtime = self.open().await;
        runtime.load_image(&mandelbox()).await.unwrap();
        self.load(&runtime, tools()).await;
        runtime
    }

    pub(crate) async fn load(&self, runtime: &OciRuntime, image: Image) {
        let archive = self.path("image.tar");
        fs::write(&archive, image.archive()).unwrap();
        runtime.load_image(&archive).await.unwrap();
        fs::remove_file(archive).unwrap();
    }

    /// In production on another file system than the root.
    pub(crate) fn state(&self) -> PathBuf {
        self.config.state.clone().unwrap()
    }

    /// What the only container has written.
    pub(crate) fn log(&self, file: &str) -> PathBuf {
        let container = self.container();
        self.config.root.join("containers").join(container.file_name().unwrap()).join(file)
    }

    pub(crate) fn containers(&self) -> Vec<PathBuf> {
        entries(&self.state().join("containers"))
    }

    /// Where the only container is.
    pub(crate) fn container(&self) -> PathBuf {
        let [only] = self.containers().try_into().unwrap();
        only
    }

    pub(crate) fn supervisor(&self) -> Pid {
        holder(&self.container()).expect("the container has no supervisor")
    }

    /// This world's control groups, in every hierarchy that there is.
    pub(crate) fn groups(&self) -> Vec<PathBuf> {
        let name = self.config.cgroup_parent.strip_prefix("/").unwrap();
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let hierarchies = mounts.lines().filter(|line| line.contains(" - cgroup"));
        let at = hierarchies.filter_map(|line| line.split(' ').nth(4));
        at.map(|at| Path::new(at).join(name)).filter(|group| group.exists()).collect()
    }

    pub(crate) fn processes(&self) -> Vec<String> {
        let shown = |pid: Pid| {
            let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            format!("{pid}: {}", words.replace('\0', " "))
        };
        self.pids().into_iter().map(shown).collect()
    }

    /// Processes in this world's control groups, and others that name its directory or are in it.
    fn pids(&self) -> Vec<Pid> {
        let (group, root) = (self.config.cgroup_parent.to_str().unwrap(), self.directory.to_str().unwrap());
        let of = |path: &Path, file| fs::read(path.join(file)).unwrap_or_default();
        let text = |path: &Path, file| String::from_utf8_lossy(&of(path, file)).replace('\0', " ");
        let all = entries(Path::new("/proc")).into_iter();
        let here = |path: &Path| fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.starts_with(root));
        // A supervisor without a container is in a group of this world too.
        let grouped = |path: &Path| {
            let groups = text(path, "cgroup");
            groups.lines().any(|line| line.contains(group) && !line.contains("/supervisors-"))
        };
        all.filter(|path| grouped(path) || text(path, "cmdline").contains(root) || here(path))
            // What has ended and waits to be reaped is the test's own.
            .filter(|path| !text(path, "stat").contains(") Z "))
            .filter_map(|path| path.file_name()?.to_str()?.parse().ok().map(Pid::from_raw))
            .collect()
    }

    /// As a reboot does.
    pub(crate) async fn kill_everything(&self) {
        eventually("everything is dead", || {
            let left = self.pids();
            for pid in &left {
                let _ = kill(*pid, Signal::SIGKILL);
            }
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
    }

    /// Everything that containers leave behind until somebody takes it away; empty when all is as at the beginning.
    fn leftovers(&self) -> Vec<String> {
        let mut left = self.processes();
        for group in self.groups() {
            let of_containers =
                |path: &PathBuf| path.is_dir() && !path.to_string_lossy().contains("/supervisors-");
            left.extend(entries(&group).into_iter().filter(of_containers).map(show));
        }
        let root = &self.config.root;
        let parts = ["containers", "trash", "images/users"].map(|part| root.join(part));
        for part in parts.iter().chain([&self.state().join("containers")]) {
            left.extend(entries(part).into_iter().map(show));
        }
        left.extend(self.escaped_mounts());
        left.extend(
            output("ip", &["-o", "link"]).lines().filter(|line| line.contains(": hs")).map(str::to_owned),
        );
        let published = output("nft", &["list", "ruleset"]);
        left.extend(published.lines().filter(|line| line.contains("elements")).map(str::to_owned));
        left
    }

    /// What of the containers' mounts the host sees.
    pub(crate) fn escaped_mounts(&self) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let ours =
            [&self.config.root, &self.state()].map(|path| path.join("containers").display().to_string());
        let escaped = mounts.lines().filter(|line| ours.iter().any(|path| line.contains(path)));
        escaped.map(str::to_owned).collect()
    }

    /// After the removal of every container.
    pub(crate) async fn is_clean(&self) {
        eventually("everything is given back", || match self.leftovers() {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:#?}")),
        })
        .await;
    }

    /// After the end of the service too.
    pub(crate) async fn is_untouched(&self) {
        self.is_clean().await;
        assert_eq!(output("nft", &["list", "ruleset"]), "");
        assert_eq!(output("ip", &["route", "show", "table", "all", "proto", "104"]), "");
        assert_eq!(self.groups(), Vec::<PathBuf>::new());
        assert_eq!(self.others(), Vec::<Pid>::new());
    }

    /// Every other process in this world's network: supervisors that wait for a container, if all is well.
    pub(crate) fn others(&self) -> Vec<Pid> {
        let network = |process: &Path| fs::read_link(process.join("ns/net")).ok();
        let ours = network(Path::new("/proc/thread-self"));
        let number = |path: PathBuf| path.file_name()?.to_str()?.parse().ok();
        let all =
            entries(Path::new("/proc")).into_iter().filter(|path| network(path) == ours).filter_map(number);
        all.filter(|pid| *pid != std::process::id().cast_signed()).map(Pid::from_raw).collect()
    }

    /// Runs the words of a shell.
    pub(crate) fn shell(&self, name: &str, words: &str) -> ContainerSpec {
        let mut spec = spec(name, TOOLS);
        spec.command = ["/bin/sh", "-c", words].map(str::to_owned).into();
        spec.mounts = host_programs();
        spec
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.owned.is_none() {
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = self.pids();
            for pid in &left {
                let _ = kill(*pid, Signal::SIGKILL);
            }
            let full = self.groups().iter().filter(|group| !empty(group)).count();
            if (left.is_empty() && full == 0) || Instant::now() > deadline {
                return;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Work with a world of its own, among others in one test. What a runtime's idle threads have of an earlier world is gone
/// with them.
pub(crate) fn elsewhere<T: Send>(work: impl AsyncFnOnce() -> T + Send) -> T {
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work())
    };
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A host whose mounts are shared, as systemd has them, so that those which escape are seen.
fn apart() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    for arguments in [&["--make-rprivate", "/"][..], &["--make-rshared", "/"]] {
        output("mount", arguments);
    }
    output("ip", &["link", "set", "lo", "up"]);
}

/// Kills what is in a group and those below it, and removes them.
fn empty(group: &Path) -> bool {
    for inner in entries(group).iter().filter(|path| path.is_dir()) {
        empty(inner);
    }
    for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
        let _ = kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL);
    }
    fs::remove_dir(group).is_ok()
}

/// Who holds the lock of a container's directory: its supervisor, as long as it lives.
pub(crate) fn holder(container: &Path) -> Option<Pid> {
    let lock = fs::File::open(container.join("lock")).ok()?;
    let held = rustix::process::fcntl_getlk(&lock, &FlockType::WriteLock.into()).unwrap()?;
    Some(Pid::from_raw(held.pid?.as_raw_nonzero().get()))
}

pub(crate) fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().map_while(Result::ok).map(|entry| entry.path()).collect()
}

fn show(path: PathBuf) -> String {
    path.display().to_string()
}

/// What a program of the host says, which must succeed.
pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Looks until it is so; the last complaint is the test's.
pub(crate) async fn eventually<T>(what: &str, look: impl Fn() -> Result<T, String>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        match look() {
            Ok(found) => return found,
            Err(complaint) if Instant::now() > deadline => panic!("{what}: {complaint}"),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Fails rather than hangs.
pub(crate) async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| panic!("{what} takes more than {limit:?}"))
}

fn mandelbox() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/test-mandelbox.tar");
    std::env::var_os("HOST_TESTS_IMAGE").map_or(built, PathBuf::from)
}

/// Where the host's programs are found by paths of their own.
const PROGRAMS: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Directories that an application expects, and the host's links to its programs.
pub(crate) fn tools_layer() -> Layer {
    let mut layer = ["dev", "etc", "proc", "run", "sys", "tmp", "usr"]
        .iter()
        .fold(Layer::new(), |layer, directory| layer.directory(directory, 0o755));
    for name in PROGRAMS {
        if let Ok(target) = fs::read_link(Path::new("/").join(name)) {
            layer = layer.symlink(name, target.to_str().unwrap());
        }
    }
    layer
}

fn tools() -> Image {
    Image::new(TOOLS, tools_layer())
}

/// The host's own programs, whose libraries no image need bring.
pub(crate) fn host_programs() -> Vec<Mount> {
    let directories = PROGRAMS
        .iter()
        .map(|name| Path::new("/").join(name))
        .filter(|path| path.is_dir() && !path.is_symlink());
    directories
        .chain([PathBuf::from("/usr")])
        .map(|path| Mount {
            source: path.clone(),
            target: path,
            read_only: true,
            propagation: Propagation::Private,
        })
        .collect()
}

pub(crate) fn bind(source: &Path, target: &str) -> Mount {
    Mount {
        source: source.to_owned(),
        target: target.into(),
        read_only: false,
        propagation: Propagation::Private,
    }
}

/// The least there is.
pub(crate) fn spec(name: &str, image: &str) -> ContainerSpec {
    ContainerSpec {
        name: name.parse().unwrap(),
        image: image.parse::<ImageRef>().unwrap(),
        command: Vec::new(),
        env: [].into(),
        labels: [("test".to_owned(), name.to_owned())].into(),
        terminal: false,
        network: Network::None,
        ports: Vec::new(),
        mounts: Vec::new(),
        tmpfs: Vec::new(),
        shm_bytes: 1 << 20,
        devices: Vec::new(),
        gpu: None,
        security: Security::default(),
        limits: Limits::default(),
    }
}

pub(crate) fn named(name: &str) -> ContainerRef {
    ContainerRef::Name(name.parse().unwrap())
}

pub(crate) async fn start(runtime: &OciRuntime, spec: &ContainerSpec) {
    runtime.create(spec).await.unwrap();
    runtime.start(&spec.name.clone().into()).await.unwrap();
}

pub(crate) async fn seen(runtime: &OciRuntime, name: &str) -> Container {
    runtime.inspect(&named(name)).await.unwrap().unwrap_or_else(|| panic!("{name} is not there"))
}

/// Its end, once it has ended.
pub(crate) async fn exit(runtime: &OciRuntime, name: &str) -> Exit {
    let deadline = Instant::now() + LONG;
    loop {
        match seen(runtime, name).await.state {
            ContainerState::Exited(exit) => return exit,
            state => assert!(Instant::now() < deadline, "{name} is still {state:?}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
