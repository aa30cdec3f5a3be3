//! The real `host-service` binary, started for one test with everything of its own in a scratch directory.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use host_tests::{oci::OciHost, service::Service};
//!
//! let host = OciHost::scratch().await?;
//! let service = Service::on(&host).set("drain.deadline=1s").start().await?;
//! let answer = service.spin_up("m1").await?;
//! println!("http://127.0.0.1:{}/", answer.port(32262)?);
//! service.end_cleanly().await
//! # }
//! ```

mod builder;

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Output},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

pub use self::builder::Builder;
use crate::{ground::Ground, leftovers::entries, wait::until};

/// From the last order to the end of the process.
const END_DEADLINE: Duration = Duration::from_secs(60);

/// A running service. Dropping it kills the process.
#[derive(Debug)]
pub struct Service {
    process: Process,
    builder: Builder,
    http: SocketAddr,
    metrics: SocketAddr,
    client: reqwest::Client,
}

/// An answer of `json_transport`.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: Value,
}

impl Answer {
    /// The host port of a mandelbox's port.
    ///
    /// # Errors
    /// The answer names none.
    pub fn port(&self, inside: u16) -> Result<u16> {
        let port = self.body["result"][format!("port_{inside}")].as_u64();
        let port = port.with_context(|| format!("no port {inside} in {self:?}"))?;
        Ok(u16::try_from(port)?)
    }

    /// The AES key.
    #[must_use]
    pub fn aes_key(&self) -> Option<&str> {
        self.body["result"]["aes_key"].as_str()
    }

    /// The machine-readable code of a failure.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.body["code"].as_str()
    }
}

impl Service {
    /// A service of profile `localdev` that runs its mandelboxes on `ground`.
    ///
    /// # Panics
    /// The ground has no room for a scratch directory, or the test images cannot be made.
    #[must_use]
    pub fn on(ground: &dyn Ground) -> Builder {
        let mut builder = Builder::within(&ground.directory());
        builder.config = ground.settings(&builder.name);
        builder.entrance = ground.entrance();
        builder.archive = ground.archive().expect("the test images");
        builder
    }

    /// A service of profile `localdev` with this configuration and everything else of its own.
    ///
    /// # Panics
    /// The machine has no room for a scratch directory.
    #[must_use]
    pub fn with(config: &str) -> Builder {
        Builder::within(&env::temp_dir()).config(config)
    }

    /// The instance's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.builder.name
    }

    /// The label that all of its containers carry.
    #[must_use]
    pub fn label(&self) -> String {
        format!("host-service.instance={}", self.name())
    }

    /// Where clients connect.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// `[paths] root`.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.builder.scratch().join("root")
    }

    /// `[paths] state`.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.builder.scratch().join("state")
    }

    /// What it said so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.builder.log()
    }

    /// Runs a command of the binary against this service.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn cli(&self, command: &[&str]) -> Result<Output> {
        self.builder.cli(command)
    }

    /// What `status --json` prints.
    ///
    /// # Errors
    /// It fails.
    pub fn status(&self) -> Result<Value> {
        self.builder.status()
    }

    /// What `mandelbox list --json` prints.
    ///
    /// # Errors
    /// It fails.
    pub fn mandelboxes(&self) -> Result<Vec<Value>> {
        let output = self.cli(&["mandelbox", "list", "--json"])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let list: Value = serde_json::from_slice(&output.stdout)?;
        list["mandelboxes"].as_array().cloned().with_context(|| format!("no list: {list}"))
    }

    /// `PUT /json_transport` with this body.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn put(&self, body: &Value) -> Result<Answer> {
        let url = format!("https://{}/json_transport", self.http);
        let response = self.client.put(url).json(body).send().await?;
        Ok(Answer { status: response.status().as_u16(), body: response.json().await? })
    }

    /// Asks for a mandelbox as a client does.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn ask(&self, id: &str, app: &str) -> Result<Answer> {
        self.put(&json!({"mandelbox_id": id, "app_name": app, "json_data": {"dpi": 96, "id": id}})).await
    }

    /// Asks for a mandelbox of the test image.
    ///
    /// # Errors
    /// It is not spun up.
    pub async fn spin_up(&self, id: &str) -> Result<Answer> {
        let answer = self.ask(id, "test/mandelbox").await?;
        ensure!(answer.status == 200, "{id}: {answer:?}\n{}", self.log());
        Ok(answer)
    }

    /// What the mandelbox of `answer` says of itself.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn facts(&self, answer: &Answer) -> Result<Value> {
        let url = format!("http://127.0.0.1:{}/facts.json", answer.port(32262)?);
        Ok(self.client.get(url).send().await?.error_for_status()?.json().await?)
    }

    /// Sends a request to the mandelbox of `answer` itself.
    ///
    /// # Errors
    /// The connection failed, which for `/exit` may be the point.
    pub async fn post(&self, answer: &Answer, path: &str) -> Result<u16> {
        let url = format!("http://127.0.0.1:{}{path}", answer.port(32262)?);
        Ok(self.client.post(url).send().await?.status().as_u16())
    }

    /// The body and status of a path of the metrics server.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn probe(&self, path: &str) -> Result<(u16, String)> {
        let response = self.client.get(format!("http://{}{path}", self.metrics)).send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    /// Waits until no mandelbox is left and none of what they leased.
    ///
    /// # Errors
    /// Something still is there after the deadline.
    pub async fn idle(&self) -> Result<()> {
        let idle = async || {
            let status = self.status().ok()?;
            let held = ["ports", "ttys", "gpu_slots"].map(|pool| status["leases"][pool]["held"].as_u64());
            let none = self.mandelboxes().ok()?.is_empty() && held == [Some(0); 3];
            (none && fs::read_dir(self.root()).ok()?.count() == 0).then_some(())
        };
        until("idle service", END_DEADLINE, idle).await.with_context(|| self.log())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.process.0.id())?).context("a process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// It goes on.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        let child = &mut self.process.0;
        let ended = until("end of the service", END_DEADLINE, async || child.try_wait().ok().flatten()).await;
        ended.with_context(|| self.builder.log())
    }

    /// Ends it as Ctrl-C does, and checks that it succeeds and leaves nothing.
    ///
    /// # Errors
    /// It fails, or something is left.
    pub async fn end_cleanly(mut self) -> Result<()> {
        self.signal(Signal::INT)?;
        let status = self.ended().await?;
        ensure!(status.success(), "{status}\n{}", self.log());
        for directory in [self.root(), self.state()] {
            ensure!(!directory.exists(), "left: {:?}\n{}", files_in(&directory), self.log());
        }
        Ok(())
    }

    /// Kills the process as nothing else can; another one may be started over what it left.
    ///
    /// # Errors
    /// It could not be killed.
    pub async fn kill(mut self) -> Result<Builder> {
        self.signal(Signal::KILL)?;
        self.ended().await?;
        Ok(self.builder)
    }
}

/// A process that does not outlive its test.
#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory and everything in it.
fn files_in(directory: &Path) -> Vec<PathBuf> {
    let inner = entries(directory).into_iter().flat_map(|path| match path.is_dir() && !path.is_symlink() {
        true => files_in(&path),
        false => vec![path],
    });
    [directory.to_owned()].into_iter().chain(inner).collect()
}

/// A client that takes any certificate: the service's is made by itself.
pub(crate) fn client() -> Result<reqwest::Client> {
    // A second installation fails, and the first one is this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).timeout(END_DEADLINE);
    Ok(client.build()?)
}
