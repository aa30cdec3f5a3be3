//! A user's Podman: the same, without control groups.
#![cfg(test)]

use std::{
    collections::BTreeMap, fs, net::Ipv4Addr, os::unix::fs::PermissionsExt, path::Path, time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use host_core::{
    ErrorKind,
    runtime::{
        ContainerChange, ContainerRef, ContainerSpec, ContainerState, Exit, Feature, Limits, LogOptions,
        Mount, Network, PortMapping, Propagation, Protocol, Runtime, RuntimeEvent, Seccomp, Security,
        Selector,
    },
};
use host_tests::{engine::Engine, wait::until};
use runtime_podman::{Config, PodmanRuntime};

const DEADLINE: Duration = Duration::from_secs(30);
const PORT: u16 = 30_123;

fn spec(files: &Path) -> ContainerSpec {
    ContainerSpec {
        name: "of-a-user".parse().unwrap(),
        image: "test/mandelbox:current-build".parse().unwrap(),
        command: Vec::new(),
        env: BTreeMap::new(),
        labels: BTreeMap::new(),
        terminal: false,
        network: Network::Bridge,
        ports: vec![PortMapping {
            host_ip: Ipv4Addr::LOCALHOST.into(),
            host: PORT,
            container: 32262,
            protocol: Protocol::Tcp,
        }],
        mounts: vec![Mount {
            source: files.to_owned(),
            target: "/fractal/resourceMappings".into(),
            read_only: false,
            propagation: Propagation::Private,
        }],
        tmpfs: Vec::new(),
        shm_bytes: 1 << 20,
        devices: Vec::new(),
        gpu: None,
        security: Security {
            no_new_privileges: true,
            seccomp: Seccomp::Profile(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#.to_owned()),
            ..Security::default()
        },
        limits: Limits { open_files: Some(1000), ..Limits::default() },
    }
}

mod scratch {
    use super::*;

    #[tokio::test]
    async fn a_users_podman_runs_what_needs_no_control_groups_and_refuses_the_rest() -> Result<()> {
        let engine = Engine::scratch_rootless_podman().await?;
        let config = Config { endpoint: engine.endpoint().parse()?, ..Config::default() };
        let podman = PodmanRuntime::connect(config, "/nonexistent".into()).await?;
        let features = podman.features();
        ensure!(features.contains(&Feature::Isolation) && !features.contains(&Feature::Limits));

        let files = tempfile::tempdir()?;
        fs::set_permissions(files.path(), fs::Permissions::from_mode(0o777))?;
        fs::write(files.path().join(".ready"), "")?;
        let spec = spec(files.path());
        let name: ContainerRef = spec.name.clone().into();
        let limits = Limits { memory_bytes: Some(64 << 20), ..Limits::default() };
        let refused = podman.create(&ContainerSpec { limits, ..spec.clone() }).await;
        ensure!(refused.err().map(|error| error.kind()) == Some(ErrorKind::Unsupported));

        let mut events = podman.events(&Selector::default()).await?;
        podman.create(&spec).await?;
        podman.start(&name).await?;
        let answer = until("answer from inside", DEADLINE, async || {
            facts(PORT).await.filter(|answer| answer.contains("no_new_privs"))
        });
        let facts = answer.await?;
        ensure!(facts.contains(r#""no_new_privs":1"#) && facts.contains(r#""seccomp":2"#), "{facts}");
        podman.stop(&name, DEADLINE).await?;
        let state = podman.inspect(&name).await?.context("no container")?.state;
        ensure!(state == ContainerState::Exited(Exit { code: Some(0), oom: false }), "{state:?}");
        let log: Vec<_> = podman.logs(&name, LogOptions::default()).await?.try_collect().await?;
        ensure!(String::from_utf8(log.concat())?.contains("takes its client"));
        podman.remove(&name).await?;

        let mut told = Vec::new();
        while told.last() != Some(&ContainerChange::Removed) {
            match tokio::time::timeout(DEADLINE, events.next()).await?.context("the events ended")?? {
                RuntimeEvent::Container(event) => told.push(event.change),
                RuntimeEvent::Gap => {}
            }
        }
        ensure!(told.len() == 4 && told[0] == ContainerChange::Created, "{told:?}");
        Ok(())
    }
}

/// What the application says of itself, if it does.
async fn facts(port: u16) -> Option<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
    stream
        .write_all(b"GET /facts.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}
