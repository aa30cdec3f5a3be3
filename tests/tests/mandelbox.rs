//! The test mandelbox's images in a real engine, started as a host would, without a host.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use bollard::models::{ContainerCreateBody, ContainerState, DeviceMapping, HostConfig, PortBinding};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptions, RemoveContainerOptionsBuilder,
    StopContainerOptionsBuilder, WaitContainerOptions,
};
use futures::StreamExt;
use host_tests::engine::Engine;
use host_tests::wait::until;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

const DEADLINE: Duration = Duration::from_secs(20);
const MEMORY_BYTES: i64 = 64 << 20;
const PIDS: i64 = 50;
const SHM_BYTES: i64 = 32 << 20;

/// A container with a mapping directory. The engine and with it the container end with the test.
struct Mandelbox {
    engine: Engine,
    mappings: TempDir,
    name: &'static str,
}

impl Mandelbox {
    async fn start(image: &'static str) -> Result<Self> {
        let engine = Engine::scratch().await?;
        let mappings = tempfile::tempdir()?;
        fs::set_permissions(mappings.path(), Permissions::from_mode(0o755))?;
        let body = ContainerCreateBody {
            image: Some(format!("test/{image}:current-build")),
            env: Some(vec!["FRACTAL_MANDELBOX_ID=box-1".into(), "FRACTAL_AES_KEY=secret".into()]),
            exposed_ports: Some(vec!["32262/tcp".into(), "32263/udp".into(), "32273/tcp".into()]),
            tty: Some(true),
            host_config: Some(host_config(mappings.path())),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::default().name(image).build();
        engine.client().create_container(Some(options), body).await?;
        engine.client().start_container(image, None).await?;
        Ok(Self { engine, mappings, name: image })
    }

    /// Does the host's part: the files, then `.ready`, none of them through a link.
    fn make_ready(&self) -> Result<()> {
        for (name, content) in
            [("tty", "12"), ("gpu_index", "0"), ("timeout", "30"), ("config.json", "{}"), (".ready", "")]
        {
            fs::write(self.mappings.path().join("new"), content)?;
            fs::rename(self.mappings.path().join("new"), self.mappings.path().join(name))?;
        }
        Ok(())
    }

    async fn until_announced(&self) -> Result<()> {
        let announcement = self.mappings.path().join("done_sleeping_until_X_clients");
        until("announcement", DEADLINE, async || announcement.exists().then_some(())).await
    }

    async fn state(&self) -> Result<ContainerState> {
        let container = self.engine.client().inspect_container(self.name, None).await?;
        container.state.context("a container without a state")
    }

    /// The exit code, once there is one.
    async fn end(&self) -> Result<Option<i64>> {
        let mut wait = self.engine.client().wait_container(self.name, None::<WaitContainerOptions>);
        // A code other than 0 is an error to bollard, and the state has it anyway.
        let _code = tokio::time::timeout(DEADLINE, wait.next()).await?;
        Ok(self.state().await?.exit_code)
    }

    async fn stop(&self) -> Result<Option<i64>> {
        let grace = StopContainerOptionsBuilder::default().t(1).build();
        self.engine.client().stop_container(self.name, Some(grace)).await?;
        self.end().await
    }

    async fn remove(self) -> Result<()> {
        let force = RemoveContainerOptionsBuilder::default().force(true).build();
        self.engine.client().remove_container(self.name, Some(force)).await?;
        self.engine.assert_clean().await
    }
}

fn host_config(mappings: &Path) -> HostConfig {
    let port = |port: &str, on_host: &str| {
        let binding = PortBinding { host_ip: None, host_port: Some(on_host.into()) };
        (port.to_owned(), Some(vec![binding]))
    };
    let fuse = DeviceMapping {
        path_on_host: Some("/dev/fuse".into()),
        path_in_container: Some("/dev/fuse".into()),
        cgroup_permissions: Some("rwm".into()),
    };
    HostConfig {
        binds: Some(vec![format!("{}:/fractal/resourceMappings", mappings.display())]),
        port_bindings: Some(
            [port("32262/tcp", "4001"), port("32263/udp", "4002"), port("32273/tcp", "4003")].into(),
        ),
        cap_drop: Some(vec!["ALL".into()]),
        cap_add: Some(vec!["KILL".into()]),
        security_opt: Some(vec!["no-new-privileges".into()]),
        memory: Some(MEMORY_BYTES),
        memory_swap: Some(MEMORY_BYTES),
        pids_limit: Some(PIDS),
        shm_size: Some(SHM_BYTES),
        tmpfs: Some([("/run".into(), "size=1048576".into())].into()),
        devices: Some(vec![fuse]),
        ..HostConfig::default()
    }
}

/// Sends one request to a published port and returns the answer's body.
async fn request(port: u16, line: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(format!("{line} HTTP/1.1\r\nHost: box\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await??;
    Ok(answer.split_once("\r\n\r\n").context("an answer without an end of its head")?.1.to_owned())
}

/// The mount at a path in the container.
fn mount<'a>(facts: &'a Value, target: &str) -> Option<&'a Value> {
    facts["mounts"].as_array()?.iter().find(|mount| mount["target"] == target)
}

mod scratch {
    use super::*;

    #[tokio::test]
    async fn it_serves_its_ports_and_knows_its_confinement() -> Result<()> {
        let mandelbox = Mandelbox::start("mandelbox").await?;
        mandelbox.make_ready()?;
        mandelbox.until_announced().await?;

        let facts: Value = serde_json::from_str(&request(4003, "GET /facts.json").await?)?;
        let page = request(4001, "GET /").await?;
        assert!(page.contains("box-1") && !page.contains("secret"), "{page}");
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        socket.send_to(b"who?", "127.0.0.1:4002").await?;
        let mut answer = [0; 16];
        let length = tokio::time::timeout(DEADLINE, socket.recv(&mut answer)).await??;
        assert_eq!(&answer[..length], b"box-1");

        assert_eq!((&facts["id"], &facts["tty"], &facts["pid"]), (&"box-1".into(), &12.into(), &1.into()));
        assert_eq!(
            (&facts["aes_key"], &facts["aes_key_is_32_hex_digits"]),
            (&"secret".into(), &false.into())
        );
        assert_eq!((&facts["uid"], &facts["stdin_is_tty"]), (&0.into(), &true.into()));
        assert_eq!(
            (&facts["cap_eff"], &facts["cap_bnd"]),
            (&"0000000000000020".into(), &"0000000000000020".into())
        );
        assert_eq!((&facts["no_new_privs"], &facts["seccomp"]), (&1.into(), &2.into()));
        assert_eq!(
            (&facts["memory_limit_bytes"], &facts["pids_limit"]),
            (&MEMORY_BYTES.into(), &PIDS.into())
        );
        assert_eq!(mount(&facts, "/dev/shm").context("no /dev/shm")?["size_bytes"], SHM_BYTES);
        assert_eq!(mount(&facts, "/run").context("no /run")?["size_bytes"], 1 << 20);
        let fuse = serde_json::json!({ "path": "/dev/fuse", "opens": true });
        assert!(facts["devices"].as_array().context("no devices")?.contains(&fuse));
        mandelbox.remove().await
    }

    #[tokio::test]
    async fn its_limits_hold() -> Result<()> {
        let mandelbox = Mandelbox::start("mandelbox").await?;
        mandelbox.make_ready()?;
        mandelbox.until_announced().await?;
        let report: Value = serde_json::from_str(&request(4001, "POST /fork-bomb?n=1000").await?)?;
        let started = report["started"].as_i64().context("no count")?;
        assert!((1..PIDS).contains(&started), "{report}");
        assert_eq!(request(4001, "POST /oom").await?, "eating\n");
        assert_eq!(mandelbox.end().await?, Some(137));
        assert_eq!(mandelbox.state().await?.oom_killed, Some(true));
        mandelbox.remove().await
    }

    #[tokio::test]
    async fn it_heeds_sigterm_as_first_process() -> Result<()> {
        let mandelbox = Mandelbox::start("mandelbox").await?;
        mandelbox.make_ready()?;
        mandelbox.until_announced().await?;
        assert_eq!(mandelbox.stop().await?, Some(0));
        mandelbox.remove().await
    }

    #[tokio::test]
    async fn ignore_sigterm_must_be_killed() -> Result<()> {
        let mandelbox = Mandelbox::start("ignore-sigterm").await?;
        mandelbox.make_ready()?;
        mandelbox.until_announced().await?;
        assert_eq!(mandelbox.stop().await?, Some(137));
        mandelbox.remove().await
    }

    #[tokio::test]
    async fn exit_at_once_does() -> Result<()> {
        let mandelbox = Mandelbox::start("exit-at-once").await?;
        assert_eq!(mandelbox.end().await?, Some(1));
        mandelbox.remove().await
    }

    #[tokio::test]
    async fn never_ready_serves_without_announcing() -> Result<()> {
        let mandelbox = Mandelbox::start("never-ready").await?;
        mandelbox.make_ready()?;
        let page = async || request(4001, "GET /").await.ok();
        assert!(until("page", DEADLINE, page).await?.contains("box-1"));
        assert!(!mandelbox.mappings.path().join("done_sleeping_until_X_clients").exists());
        mandelbox.engine.client().kill_container("never-ready", None::<KillContainerOptions>).await?;
        mandelbox.remove().await
    }

    #[tokio::test]
    async fn slow_ready_serves_first_and_announces_later() -> Result<()> {
        let mandelbox = Mandelbox::start("slow-ready").await?;
        mandelbox.make_ready()?;
        let page = async || request(4001, "GET /").await.ok();
        until("page", DEADLINE, page).await?;
        assert!(!mandelbox.mappings.path().join("done_sleeping_until_X_clients").exists());
        mandelbox.until_announced().await?;
        mandelbox.remove().await
    }

    #[tokio::test]
    async fn symlink_attack_puts_links_in_the_way_of_a_host() -> Result<()> {
        let mandelbox = Mandelbox::start("symlink-attack").await?;
        let link = mandelbox.mappings.path().join("escape");
        until("links", DEADLINE, async || link.is_symlink().then_some(())).await?;
        for name in ["config.json", ".ready"] {
            let target = fs::read_link(mandelbox.mappings.path().join(name))?;
            assert_eq!(target, Path::new("/host-canary"));
        }
        mandelbox.make_ready()?;
        mandelbox.until_announced().await?;
        mandelbox.remove().await
    }
}
