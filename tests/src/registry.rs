//! A real registry, Debian's `docker-registry`, on loopback.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use reqwest::{Client, header::CONTENT_TYPE};
use serde_json::Value;
use tempfile::TempDir;

use crate::{service::client, world::search_path};

/// A loaded machine needs a tenth of it.
const DEADLINE: Duration = Duration::from_secs(30);
const REPOSITORY: &str = "test/pullable";
const TAG: &str = "current-build";

/// A running registry. It is killed when this is dropped, and by the kernel when the thread that started it ends.
#[derive(Debug)]
pub struct Registry {
    host: String,
    process: Child,
    directory: TempDir,
}

impl Registry {
    /// Offers the image that an OCI archive has under `name`. It listens in the network of the calling thread.
    ///
    /// # Errors
    /// What this host lacks, or what went wrong.
    pub async fn offering(archive: &Path, name: &str) -> Result<Self> {
        let registry = Self::start()?;
        registry.push(archive, name).await.context("cannot push to the registry")?;
        Ok(registry)
    }

    /// Its address: `127.0.0.1` and the port.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The name of what it offers.
    #[must_use]
    pub fn image(&self) -> String {
        format!("{}/{REPOSITORY}:{TAG}", self.host)
    }

    fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let config = directory.path().join("config.yml");
        let storage = directory.path().join("data");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: info}}\nhttp: {{addr: '127.0.0.1:0'}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}}}\n",
                storage.display()
            ),
        )?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "docker-registry", "serve"]).arg(config);
        command.env("PATH", search_path()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().context("cannot start docker-registry")?;
        let log = process.stderr.take();
        // From here on it is killed whatever happens.
        let mut registry = Self { host: String::new(), process, directory };
        registry.host = listening(log.context("its log is not piped")?)?;
        Ok(registry)
    }

    /// Puts an image there, as those do who build images.
    async fn push(&self, archive: &Path, name: &str) -> Result<()> {
        let layout = self.directory.path().join("layout");
        fs::create_dir(&layout)?;
        let unpacked = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&layout).status()?;
        ensure!(unpacked.success(), "cannot unpack {}", archive.display());
        let blob =
            |digest: &str| fs::read(layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:")));
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
        let manifests = index["manifests"].as_array().context("an index without manifests")?;
        let named = |manifest: &&Value| manifest["annotations"]["io.containerd.image.name"] == name;
        let descriptor = manifests.iter().find(named).context("no image of that name")?;
        let manifest = blob(descriptor["digest"].as_str().context("no digest")?)?;
        let content: Value = serde_json::from_slice(&manifest)?;
        let client = client()?;
        let blobs = content["layers"].as_array().into_iter().flatten().chain([&content["config"]]);
        for digest in blobs.map(|blob| blob["digest"].as_str().context("no digest")) {
            let digest = digest?;
            self.push_blob(&client, digest, blob(digest)?).await?;
        }
        let url = format!("http://{}/v2/{REPOSITORY}/manifests/{TAG}", self.host);
        let kind = content["mediaType"].as_str().context("no media type")?;
        client.put(url).header(CONTENT_TYPE, kind).body(manifest).send().await?.error_for_status()?;
        Ok(())
    }

    async fn push_blob(&self, client: &Client, digest: &str, content: Vec<u8>) -> Result<()> {
        let begun =
            client.post(format!("http://{}/v2/{REPOSITORY}/blobs/uploads/", self.host)).send().await?;
        let begun = begun.error_for_status()?;
        let location = begun.headers().get("Location").context("no place for a blob")?.to_str()?;
        let url = format!("{location}&digest={digest}");
        client.put(url).body(content).send().await?.error_for_status()?;
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and was waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The address that the log says it listens on. The log is read on, so that the registry never waits for a reader.
fn listening(log: impl std::io::Read + Send + 'static) -> Result<String> {
    let (said, heard) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            // Nobody hears it once the address is known.
            let _ = said.send(line);
        }
    });
    let mut all = String::new();
    loop {
        let line = heard.recv_timeout(DEADLINE).with_context(|| format!("it does not listen:\n{all}"))?;
        if let Some((_, rest)) = line.split_once("listening on ") {
            return Ok(rest.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect());
        }
        all += &line;
        all.push('\n');
    }
}
