//! What only a real Docker engine shows: its end, its silence, and what it keeps of a specification.
#![cfg(test)]

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use host_core::{
    ContainerName, ErrorKind,
    runtime::{ContainerRef, ContainerSpec, Limits, Network, Runtime, Security, Selector},
};
use host_tests::engine::Engine;
use runtime_docker::{Config, DockerRuntime};

const DEADLINE: Duration = Duration::from_secs(30);

async fn connect(engine: &Engine, timeout: Duration) -> Result<DockerRuntime> {
    let endpoint = engine.endpoint().parse()?;
    Ok(DockerRuntime::connect(Config { endpoint, timeout }).await?)
}

fn spec(name: &str) -> ContainerSpec {
    ContainerSpec {
        name: name.parse().unwrap(),
        image: "test/mandelbox:current-build".parse().unwrap(),
        command: Vec::new(),
        env: BTreeMap::new(),
        labels: BTreeMap::new(),
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

fn named(name: &str) -> ContainerRef {
    name.parse::<ContainerName>().unwrap().into()
}

mod scratch {
    use super::*;

    #[tokio::test]
    async fn a_killed_engine_ends_the_events_and_is_unavailable_until_it_is_back() -> Result<()> {
        let engine = Engine::scratch().await?;
        let docker = connect(&engine, DEADLINE).await?;
        let mut events = docker.events(&Selector::default()).await?;
        engine.kill().await?;
        let last = tokio::time::timeout(DEADLINE, events.next()).await?.context("no error")?;
        ensure!(last.is_err_and(|error| error.kind() == ErrorKind::Unavailable));
        ensure!(events.next().await.is_none());
        let health = docker.health().await;
        ensure!(health.is_err_and(|error| error.kind() == ErrorKind::Unavailable));

        engine.start().await?;
        docker.health().await?;
        drop(docker.events(&Selector::default()).await?);
        Ok(())
    }

    #[tokio::test]
    async fn a_frozen_engine_costs_a_look_up_its_deadline_and_nothing_more() -> Result<()> {
        let engine = Engine::scratch().await?;
        let docker = connect(&engine, Duration::from_millis(300)).await?;
        engine.freeze().await?;
        for _ in 0..3 {
            let looked = tokio::time::timeout(DEADLINE, docker.inspect(&named("absent"))).await?;
            ensure!(looked.is_err_and(|error| error.kind() == ErrorKind::Timeout));
        }
        engine.thaw().await?;
        docker.health().await?;
        ensure!(docker.inspect(&named("absent")).await?.is_none());
        Ok(())
    }

    /// The engine gets the request, and the caller gives up before the engine has even looked at it. Removal and creation
    /// then race within the engine, so once is not enough.
    #[tokio::test]
    async fn a_creation_given_up_does_not_come_back_after_its_removal() -> Result<()> {
        let engine = Engine::scratch().await?;
        let docker = connect(&engine, DEADLINE).await?;
        for round in 0..10 {
            let (given_up, other) = (format!("given-up-{round}"), format!("other-{round}"));
            engine.freeze().await?;
            let spec = spec(&given_up);
            let patience = Duration::from_millis(100);
            ensure!(tokio::time::timeout(patience, docker.create(&spec)).await.is_err());
            let name = named(&given_up);
            let both = futures::future::join(docker.remove(&name), engine.thaw());
            let (removed, thawed) = tokio::time::timeout(DEADLINE, both).await?;
            removed?;
            thawed?;
            // Creating one more takes the engine longer than what it had begun before.
            let other = ContainerSpec { name: other.parse()?, ..spec };
            docker.create(&other).await?;
            ensure!(docker.inspect(&name).await?.is_none(), "{given_up} came back");
        }
        Ok(())
    }
}

/// The test mandelbox does not tell these two from inside.
#[tokio::test]
async fn limits_of_files_and_processors_arrive() -> Result<()> {
    let engine = Engine::shared().await?;
    let docker = connect(&engine, DEADLINE).await?;
    let name = format!("limits-{}", std::process::id());
    let limits = Limits { nano_cpus: Some(250_000_000), open_files: Some(321), ..Limits::default() };
    docker.create(&ContainerSpec { limits, ..spec(&name) }).await?;
    let kept = engine.client().inspect_container(&name, None).await;
    docker.remove(&named(&name)).await?;
    let host = kept?.host_config.context("a container without a host configuration")?;
    ensure!(host.nano_cpus == Some(250_000_000), "{:?}", host.nano_cpus);
    let files = host.ulimits.unwrap_or_default();
    let files = files.first().context("no limit of files")?;
    ensure!((files.soft, files.hard) == (Some(321), Some(321)), "{files:?}");
    Ok(())
}
