//! What a container and its network cost without any service: libcontainer in a process that does nothing else, and the
//! network's parts by themselves.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use host_core::runtime::{PortMapping, Protocol};
use libcontainer::{container::builder::ContainerBuilder, syscall::syscall::SyscallType};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::wait::waitpid,
    unistd::Pid,
};
use oci_network::{Config, Networks};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The first argument of this program when it is the process that does nothing else.
const ARGUMENT: &str = "container-alone";
const READY_FOR_CLIENT: &str = "done_sleeping_until_X_clients";
const MAPPINGS: &str = "/fractal/resourceMappings";

/// A bundle as the service makes it, and the image's layers.
pub(crate) struct Bundle {
    config: PathBuf,
    root: TempDir,
}

impl Bundle {
    /// `config` was caught; `root` is where the image store lies.
    pub(crate) fn new(config: &Path, root: TempDir) -> Result<Self> {
        ensure!(config.exists(), "no bundle was caught");
        Ok(Self { config: config.to_owned(), root })
    }

    /// From nothing until the application takes its client: overlay, create, start, ready.
    pub(crate) fn run(&self) -> Result<Duration> {
        let mut child = Command::new(env::current_exe()?)
            .args([OsStr::new(ARGUMENT), self.config.as_os_str(), self.root.path().as_os_str()])
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("no output")?;
        let said = std::io::read_to_string(output)?;
        ensure!(child.wait()?.success(), "libcontainer alone failed: {said}");
        Ok(Duration::from_nanos(said.trim().parse()?))
    }
}

/// If this process is to be the one that does nothing else: is it.
pub(crate) fn dispatch() -> Option<Result<()>> {
    let arguments: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    match arguments.as_slice() {
        [first, config, root] if first == Path::new(ARGUMENT) => Some(measure(config, root)),
        _ => None,
    }
}

fn measure(config: &Path, root: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?;
    let work = tempfile::Builder::new().prefix("alone").tempdir_in(root)?;
    let mappings = prepare(work.path(), config)?;
    let layers = layers(&root.join("oci/images"))?;
    env::set_current_dir(root.join("oci/images"))?;

    let begun = Instant::now();
    let rootfs = work.path().join("rootfs");
    let options =
        format!("lowerdir={layers},upperdir={0}/upper,workdir={0}/work,volatile", work.path().display());
    mount(Some("overlay"), &rootfs, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
    let null = || fs::File::options().read(true).write(true).open("/dev/null");
    let mut container = ContainerBuilder::new("alone".to_owned(), SyscallType::default())
        .with_root_path(work.path())?
        .with_stdin(null()?)
        .with_stdout(null()?)
        .with_stderr(null()?)
        .as_init(work.path())
        .with_systemd(false)
        .with_detach(true)
        .build()?;
    container.start()?;
    while !mappings.join(READY_FOR_CLIENT).exists() {
        std::thread::sleep(Duration::from_micros(100));
    }
    let took = begun.elapsed();

    let pid = container.pid().context("no process")?.as_raw();
    container.kill(libcontainer::signal::Signal::try_from("SIGKILL")?, false)?;
    waitpid(Pid::from_raw(pid), None)?;
    container.delete(true)?;
    nix::mount::umount2(&rootfs, nix::mount::MntFlags::MNT_DETACH)?;
    Ok(writeln!(std::io::stdout(), "{}", took.as_nanos())?)
}

/// The caught bundle with places of its own.
fn prepare(work: &Path, config: &Path) -> Result<PathBuf> {
    let mappings = work.join("mappings");
    for directory in ["rootfs", "upper", "work", "mappings", "sockets"] {
        fs::create_dir(work.join(directory))?;
    }
    fs::write(mappings.join(".ready"), "")?;
    fs::write(work.join("file"), "")?;
    let mut spec: Value = serde_json::from_slice(&fs::read(config)?)?;
    spec["root"]["path"] = json!(work.join("rootfs"));
    spec["process"]["terminal"] = json!(false);
    // Refused where the namespace is this process's own.
    spec["linux"]["sysctl"] = Value::Null;
    let group = work.file_name().unwrap_or_default().to_string_lossy().into_owned();
    spec["linux"]["cgroupsPath"] = json!(format!("/{group}"));
    for namespace in spec["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
        if namespace["type"] == "network" {
            namespace["path"] = json!(format!("/proc/{}/ns/net", std::process::id()));
        }
    }
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        // What was mounted for the model is gone with it.
        let source = PathBuf::from(mount["source"].as_str().unwrap_or_default());
        if mount["destination"] == MAPPINGS {
            mount["source"] = json!(mappings);
        } else if source.is_absolute() && !source.exists() {
            let is_file = mount["destination"].as_str().is_some_and(|to| to.starts_with("/etc/"));
            mount["source"] = json!(work.join(if is_file { "file" } else { "sockets" }));
        }
    }
    fs::write(work.join("config.json"), serde_json::to_vec(&spec)?)?;
    Ok(mappings)
}

/// All that the store has: the test image is the only one.
fn layers(store: &Path) -> Result<String> {
    let names =
        fs::read_dir(store.join("l"))?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    Ok(names.iter().map(|name| format!("l/{name}")).collect::<Vec<_>>().join(":"))
}

/// Networks without containers in them, none of them made ahead.
pub(crate) struct Network {
    networks: Networks,
    _state: TempDir,
}

impl Network {
    pub(crate) async fn open() -> Result<Self> {
        let state = tempfile::tempdir()?;
        let config = Config { ready: 0, ..Config::default() };
        let networks = Networks::open(config, "be4c4000", state.path(), Vec::new()).await?;
        Ok(Self { networks, _state: state })
    }

    /// How long it takes to make one, and to publish three ports of it.
    pub(crate) async fn make_and_publish(&self) -> Result<(Duration, Duration)> {
        let begun = Instant::now();
        let network = self.networks.take().await?;
        let made = begun.elapsed();
        let port = |host, container, protocol| PortMapping {
            host_ip: [127, 0, 0, 1].into(),
            host,
            container,
            protocol,
        };
        let ports = [
            port(32_701, 32_262, Protocol::Tcp),
            port(32_702, 32_263, Protocol::Udp),
            port(32_703, 32_273, Protocol::Tcp),
        ];
        let begun = Instant::now();
        self.networks.publish(network.address, &ports).await?;
        let published = begun.elapsed();
        self.networks.release(network.address).await;
        Ok((made, published))
    }

    pub(crate) async fn close(self) -> Result<()> {
        Ok(self.networks.close().await?)
    }
}
