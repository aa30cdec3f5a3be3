//! How a service is started.

use std::{
    env,
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::{Process, Service, client};
use crate::{
    wait::until,
    world::{Entrance, search_path},
};

/// From the start of the process to an answer on its admin socket, on a loaded machine.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// How a service is to be started.
#[derive(Debug)]
pub struct Builder {
    profile: &'static str,
    pub(super) config: String,
    settings: Vec<String>,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    scratch: TempDir,
    pub(super) name: String,
    pub(super) entrance: Option<Entrance>,
    pub(super) archive: Option<PathBuf>,
}

impl Builder {
    pub(super) fn within(directory: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let scratch =
            tempfile::Builder::new().prefix("hs").tempdir_in(directory).expect("a scratch directory");
        let name = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let at = |path: &str| scratch.path().join(path).display().to_string();
        let settings = vec![
            format!("instance.name={name}"),
            format!("paths.root={}", at("root")),
            format!("paths.state={}", at("state")),
            format!("paths.logs={}", at("logs")),
            format!("admin.socket={}", at("state/admin.sock")),
            "http.listen=127.0.0.1:0".to_owned(),
            "metrics.listen=127.0.0.1:0".to_owned(),
        ];
        Self {
            profile: "localdev",
            config: String::new(),
            settings,
            arguments: Vec::new(),
            variables: Vec::new(),
            scratch,
            name,
            entrance: None,
            archive: None,
        }
    }

    /// One more `--set`.
    #[must_use]
    pub fn set(mut self, setting: impl Into<String>) -> Self {
        self.settings.push(setting.into());
        self
    }

    /// One more argument of `run`.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// One more environment variable.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Another profile than `localdev`.
    #[must_use]
    pub fn profile(mut self, profile: &'static str) -> Self {
        self.profile = profile;
        self
    }

    /// Text to append to the configuration file.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self
    }

    /// The instance's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The service's scratch directory.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    fn command(&self, command: &[&str]) -> Result<Command> {
        let file = self.scratch.path().join("config.toml");
        // A service that is starting must not find it half written.
        if fs::read_to_string(&file).ok().as_ref() != Some(&self.config) {
            fs::write(&file, &self.config)?;
        }
        let mut process = match &self.entrance {
            Some(entrance) => entrance.command(binary()?),
            None => Command::new(binary()?),
        };
        process.args(command).args(["--profile", self.profile, "--config"]).arg(file);
        for setting in &self.settings {
            process.args(["--set", setting]);
        }
        process.env_clear().env("PATH", search_path()).envs(self.variables.iter().cloned());
        Ok(process)
    }

    fn spawn_command(&self, mut command: Command) -> Result<Child> {
        Ok(match &self.entrance {
            Some(entrance) => entrance.spawn(&mut command)?,
            None => command.spawn()?,
        })
    }

    /// Runs any command of the binary to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn cli(&self, command: &[&str]) -> Result<Output> {
        let mut command = self.command(command)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(self.spawn_command(command)?.wait_with_output()?)
    }

    /// Starts `run` and does not wait for it to answer.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.command(&["run"])?;
        command.args(&self.arguments).stdout(log.try_clone()?).stderr(log);
        self.spawn_command(command)
    }

    /// Gives it the test images, if it has its own.
    fn load(&mut self) -> Result<()> {
        if let Some(archive) = self.archive.take() {
            let loaded = self.cli(&["image", "load", &archive.display().to_string()])?;
            ensure!(loaded.status.success(), "no images: {}", String::from_utf8_lossy(&loaded.stderr));
        }
        Ok(())
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    /// What it said so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Starts the service and waits until it answers.
    ///
    /// # Errors
    /// It ended, with its log, or does not answer in time.
    pub async fn start(mut self) -> Result<Service> {
        self.load()?;
        let mut child = self.spawn()?;
        let answered = until("answer on the admin socket", START_DEADLINE, async || match child.try_wait() {
            Ok(None) => self.status().ok().map(Ok),
            ended => Some(Err(anyhow::anyhow!("the service ended: {ended:?}"))),
        });
        let status = match answered.await.and_then(|status| status) {
            Ok(status) => status,
            Err(error) => {
                child.kill()?;
                child.wait()?;
                bail!("{error:#}\n{}", self.log());
            }
        };
        let address = |which: &str| -> Result<SocketAddr> {
            let address =
                status["listening"][which].as_str().with_context(|| format!("no address in {status}"))?;
            Ok(address.parse()?)
        };
        let (http, metrics) = (address("http")?, address("metrics")?);
        Ok(Service { process: Process(child), http, metrics, builder: self, client: client()? })
    }

    pub(super) fn status(&self) -> Result<Value> {
        let output = self.cli(&["status", "--json"])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// The binary of the same build as this test.
fn binary() -> Result<PathBuf> {
    let test = env::current_exe()?;
    let directory = test.ancestors().find(|directory| directory.join(".cargo-lock").exists());
    let binary = directory.context("not run from a target directory")?.join("host-service");
    ensure!(binary.exists(), "{} is not built; run `cargo build -p host-service`", binary.display());
    Ok(binary)
}
