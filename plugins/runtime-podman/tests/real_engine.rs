//! What only a real Podman shows: its end, its silence, and what becomes of the wire where it is put right.
#![cfg(test)]

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use host_core::{
    ContainerName, ErrorKind,
    runtime::{
        ContainerRef, ContainerSpec, ContainerState, Device, Limits, Mount, Network, Propagation, Runtime,
        Seccomp, Security, Selector,
    },
};
use host_tests::engine::Engine;
use runtime_podman::{Config, PodmanRuntime};

const DEADLINE: Duration = Duration::from_secs(30);

async fn connect(engine: &Engine, timeout: Duration) -> Result<PodmanRuntime> {
    let endpoint = engine.endpoint().parse()?;
    let scratch = engine.socket().parent().context("a socket without a directory")?.to_owned();
    Ok(PodmanRuntime::connect(Config { endpoint, timeout, ..Config::default() }, scratch).await?)
}

/// The application waits in a directory that is never ready.
fn spec(engine: &Engine, name: &str) -> ContainerSpec {
    let mount = Mount {
        source: engine.socket().parent().unwrap().to_owned(),
        target: "/fractal/resourceMappings".into(),
        read_only: true,
        propagation: Propagation::Private,
    };
    ContainerSpec {
        name: format!("{name}-{}", std::process::id()).parse().unwrap(),
        image: "test/mandelbox:current-build".parse().unwrap(),
        command: Vec::new(),
        env: BTreeMap::new(),
        labels: BTreeMap::new(),
        terminal: false,
        network: Network::None,
        ports: Vec::new(),
        mounts: vec![mount],
        tmpfs: Vec::new(),
        shm_bytes: 1 << 20,
        devices: Vec::new(),
        gpu: None,
        security: Security::default(),
        limits: Limits::default(),
    }
}

fn named(spec: &ContainerSpec) -> ContainerRef {
    spec.name.clone().into()
}

/// A file of the first process's in /proc, while the container runs.
async fn process_file(
    engine: &Engine,
    podman: &PodmanRuntime,
    spec: &ContainerSpec,
    file: &str,
) -> Result<String> {
    podman.create(spec).await?;
    podman.start(&named(spec)).await?;
    let seen = podman.inspect(&named(spec)).await?.context("no container")?;
    let process = seen.pid.context("no process")?;
    let path = engine.seen_outside(Path::new(&format!("/proc/{process}/{file}")));
    let text = std::fs::read_to_string(path);
    podman.remove(&named(spec)).await?;
    Ok(text?)
}

/// The value of a line `name: value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim_start_matches(':').trim())
}

mod scratch {
    use super::*;

    #[tokio::test]
    async fn a_killed_engine_ends_the_events_and_its_containers_run_on() -> Result<()> {
        let engine = Engine::scratch_podman().await?;
        let podman = connect(&engine, DEADLINE).await?;
        let spec = spec(&engine, "runs-on");
        podman.create(&spec).await?;
        podman.start(&named(&spec)).await?;
        let before = podman.inspect(&named(&spec)).await?;
        let mut events = podman.events(&Selector::default()).await?;
        engine.kill().await?;
        let last = tokio::time::timeout(DEADLINE, events.next()).await?.context("no error")?;
        ensure!(last.is_err_and(|error| error.kind() == ErrorKind::Unavailable));
        ensure!(events.next().await.is_none());
        let health = podman.health().await;
        ensure!(health.is_err_and(|error| error.kind() == ErrorKind::Unavailable));

        engine.start().await?;
        let after = podman.inspect(&named(&spec)).await?;
        ensure!(before == after, "{before:?} became {after:?}");
        podman.remove(&named(&spec)).await?;
        engine.assert_clean().await
    }

    #[tokio::test]
    async fn a_frozen_engine_costs_a_look_up_its_deadline_and_a_given_up_creation_does_not_come_back()
    -> Result<()> {
        let engine = Engine::scratch_podman().await?;
        let podman = connect(&engine, DEADLINE).await?;
        let impatient = connect(&engine, Duration::from_secs(3)).await?;
        engine.freeze().await?;
        let absent: ContainerRef = "absent".parse::<ContainerName>()?.into();
        let all = Selector::default();
        let both = futures::future::join(impatient.inspect(&absent), impatient.events(&all));
        let (looked, subscribed) = tokio::time::timeout(DEADLINE, both).await?;
        ensure!(looked.is_err_and(|error| error.kind() == ErrorKind::Timeout));
        ensure!(subscribed.err().map(|error| error.kind()) == Some(ErrorKind::Timeout));

        let given_up = spec(&engine, "given-up");
        let patience = Duration::from_millis(100);
        ensure!(tokio::time::timeout(patience, podman.create(&given_up)).await.is_err());
        let name = named(&given_up);
        let (removed, thawed) = futures::future::join(podman.remove(&name), engine.thaw()).await;
        removed?;
        thawed?;
        // Creating one more takes the engine longer than what it had begun before.
        podman.create(&spec(&engine, "other")).await?;
        ensure!(podman.inspect(&name).await?.is_none(), "it came back");
        Ok(())
    }
}

/// podman-api sends the time under a name that the engine ignores, which would then take ten seconds.
#[tokio::test]
async fn the_grace_of_a_stop_arrives() -> Result<()> {
    let engine = Engine::shared_podman().await?;
    let podman = connect(&engine, DEADLINE).await?;
    let spec = ContainerSpec { command: vec!["ignore-sigterm".to_owned()], ..spec(&engine, "grace") };
    podman.create(&spec).await?;
    podman.start(&named(&spec)).await?;
    let begun = tokio::time::Instant::now();
    podman.stop(&named(&spec), Duration::from_secs(1)).await?;
    let took = begun.elapsed();
    let state = podman.inspect(&named(&spec)).await?.map(|seen| seen.state);
    podman.remove(&named(&spec)).await?;
    ensure!(matches!(state, Some(ContainerState::Exited(_))), "{state:?}");
    ensure!(took < Duration::from_secs(8), "it took {took:?}");
    Ok(())
}

/// podman-api misspells it; the kernel tells whether it came true.
#[tokio::test]
async fn privileges_that_are_not_to_grow_do_not() -> Result<()> {
    let engine = Engine::shared_podman().await?;
    let podman = connect(&engine, DEADLINE).await?;
    for (said, seen) in [(true, "1"), (false, "0")] {
        let security = Security { no_new_privileges: said, ..Security::default() };
        let status = process_file(
            &engine,
            &podman,
            &ContainerSpec { security, ..spec(&engine, "privileges") },
            "status",
        )
        .await?;
        ensure!(field(&status, "NoNewPrivs") == Some(seen), "said {said}:\n{status}");
    }
    Ok(())
}

/// Podman 4 takes the soft limit for the hard one, and adds a limit of processes that this host may not allow.
#[tokio::test]
async fn limits_of_files_arrive_as_soft_and_hard() -> Result<()> {
    let engine = Engine::shared_podman().await?;
    let podman = connect(&engine, DEADLINE).await?;
    let limits = Limits { open_files: Some(321), ..Limits::default() };
    let table =
        process_file(&engine, &podman, &ContainerSpec { limits, ..spec(&engine, "files") }, "limits").await?;
    let files = field(&table, "Max open files").context("no limit of files")?;
    let values: Vec<_> = files.split_whitespace().take(2).collect();
    ensure!(values == ["321", "321"], "{files}");
    Ok(())
}

/// The engine wants a file.
#[tokio::test]
async fn a_filter_of_system_calls_arrives_and_leaves_no_file() -> Result<()> {
    let engine = Engine::shared_podman().await?;
    let podman = connect(&engine, DEADLINE).await?;
    let profile =
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["reboot"],"action":"SCMP_ACT_ERRNO"}]}"#;
    let security = Security { seccomp: Seccomp::Profile(profile.to_owned()), ..Security::default() };
    let spec = ContainerSpec { security, ..spec(&engine, "filtered") };
    let status = process_file(&engine, &podman, &spec, "status").await?;
    ensure!(field(&status, "Seccomp") == Some("2"), "{status}");
    let directory = engine.socket().parent().context("a socket without a directory")?;
    let mut left = std::fs::read_dir(directory)?.flatten();
    ensure!(!left.any(|file| file.file_name().to_string_lossy().starts_with("seccomp-")));
    Ok(())
}

/// podman-api's shape of the log's bounds is not the engine's; whoever writes the log is told them.
#[tokio::test]
async fn the_bound_of_the_log_arrives() -> Result<()> {
    let engine = Engine::shared_podman().await?;
    let podman = connect(&engine, DEADLINE).await?;
    let spec = spec(&engine, "bounded");
    let id = podman.create(&spec).await?;
    podman.start(&named(&spec)).await?;
    let processes = std::fs::read_dir(engine.seen_outside(Path::new("/proc")))?.flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let lines: Vec<_> = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).collect();
    podman.remove(&named(&spec)).await?;
    let is_writer = |line: &&String| line.contains("conmon") && line.contains(&id.0);
    let writer = lines.iter().find(is_writer).with_context(|| lines.join("\n"))?;
    ensure!(writer.contains("--log-size-max 20971520"), "{writer}");
    Ok(())
}

/// Only what was said may be done with a device that is not among those which every container has.
#[tokio::test]
async fn a_devices_permissions_arrive() -> Result<()> {
    let engine = Engine::shared_podman().await?;
    let podman = connect(&engine, DEADLINE).await?;
    let device = Device { permissions: "r".to_owned(), ..Device::same("/dev/loop-control") };
    if !device.host.exists() {
        println!("skipped: this host lacks {}", device.host.display());
        return Ok(());
    }
    let spec = ContainerSpec { devices: vec![device], ..spec(&engine, "device") };
    podman.create(&spec).await?;
    let kept = engine.client().inspect_container(spec.name.as_str(), None).await;
    podman.remove(&named(&spec)).await?;
    let devices = kept?.host_config.and_then(|host| host.devices).unwrap_or_default();
    let seen: Vec<_> = devices.iter().filter_map(|device| device.path_in_container.as_deref()).collect();
    ensure!(seen == ["/dev/loop-control"], "{devices:?}");
    Ok(())
}

#[tokio::test]
async fn an_unknown_cdi_device_is_refused_before_anything_is_made() -> Result<()> {
    let engine = Engine::shared_podman().await?;
    let podman = connect(&engine, DEADLINE).await?;
    let gpu = host_core::runtime::Attachment {
        cdi: vec!["vendor.example/absent=0".to_owned()],
        ..Default::default()
    };
    let spec = ContainerSpec { gpu: Some(gpu), ..spec(&engine, "absent-gpu") };
    let created = podman.create(&spec).await;
    ensure!(created.err().map(|error| error.kind()) == Some(ErrorKind::Unsupported));
    ensure!(podman.inspect(&named(&spec)).await?.is_none());
    Ok(())
}
