//! The harness's engines: that they do what an engine under test must, and that nothing of them stays behind.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use bollard::models::{ContainerCreateBody, HostConfig, PortBinding};
use bollard::query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use host_tests::engine::Engine;
use host_tests::wait::until;
use rustix::process::{Pid, Signal, kill_process};

use crate::traces::{Holder, no_trace, processes_of, test_engine, traces};

const DEADLINE: Duration = Duration::from_secs(20);

/// Starts a container that waits for a client which never comes, with one port published.
async fn run_container(engine: &Engine, name: &str) -> Result<()> {
    let port = PortBinding { host_ip: None, host_port: Some("40000".into()) };
    let host_config = HostConfig {
        binds: Some(vec!["/tmp:/fractal/resourceMappings:ro".into()]),
        port_bindings: Some([("32262/tcp".into(), Some(vec![port]))].into()),
        ..HostConfig::default()
    };
    let body = ContainerCreateBody {
        image: Some("test/mandelbox:current-build".into()),
        exposed_ports: Some(vec!["32262/tcp".into()]),
        host_config: Some(host_config),
        ..ContainerCreateBody::default()
    };
    let options = CreateContainerOptionsBuilder::default().name(name).build();
    engine.client().create_container(Some(options), body).await?;
    Ok(engine.client().start_container(name, None).await?)
}

async fn remove_container(engine: &Engine, name: &str) -> Result<()> {
    let force = RemoveContainerOptionsBuilder::default().force(true).build();
    Ok(engine.client().remove_container(name, Some(force)).await?)
}

async fn is_running(engine: &Engine, name: &str) -> Result<bool> {
    let container = engine.client().inspect_container(name, None).await?;
    Ok(container.state.and_then(|state| state.running).unwrap_or_default())
}

async fn answers(engine: &Engine) -> bool {
    let ping = tokio::time::timeout(Duration::from_millis(500), engine.client().ping());
    ping.await.is_ok_and(|answer| answer.is_ok())
}

fn directory_of(endpoint: &str) -> Result<PathBuf> {
    let socket = endpoint.strip_prefix("unix://").context("not a unix:// endpoint")?;
    Ok(Path::new(socket).parent().context("a socket without a directory")?.to_owned())
}

mod scratch {
    use super::*;

    #[tokio::test]
    async fn leaves_nothing_when_dropped_and_leads_home() -> Result<()> {
        let home = fs::read_link("/proc/thread-self/ns/net")?;
        let engine = Engine::scratch().await?;
        assert_ne!(fs::read_link("/proc/thread-self/ns/net")?, home);
        run_container(&engine, "box").await?;
        let directory = directory_of(&engine.endpoint())?;
        assert!(!traces(&directory).is_empty());
        drop(engine);
        assert_eq!(traces(&directory), Vec::<String>::new());
        assert_eq!(fs::read_link("/proc/thread-self/ns/net")?, home);
        Ok(())
    }

    #[tokio::test]
    async fn leaves_nothing_when_its_user_is_killed() -> Result<()> {
        let temporary = tempfile::tempdir()?;
        let mut user = Holder::start(&mut test_engine("scratch", temporary.path()))?;
        let directory = directory_of(&user.line()?)?;
        assert!(!traces(&directory).is_empty());
        drop(user);
        no_trace(&directory).await
    }

    #[tokio::test]
    async fn leaves_nothing_when_its_first_process_is_killed() -> Result<()> {
        let engine = Engine::scratch().await?;
        let directory = directory_of(&engine.endpoint())?;
        let world = fs::read_to_string(directory.join("world"))?.trim_end().parse()?;
        kill_process(Pid::from_raw(world).context("no process")?, Signal::KILL)?;
        no_trace(&directory).await
    }

    #[tokio::test]
    async fn leaves_no_process_when_its_guard_is_killed_and_the_next_one_cleans_up() -> Result<()> {
        let temporary = tempfile::tempdir()?;
        let mut user = Holder::start(&mut test_engine("scratch", temporary.path()))?;
        let directory = directory_of(&user.line()?)?;
        let processes = processes_of(&directory);
        let guard = processes.iter().find(|(_, line)| line.starts_with("bash") && line.contains("guard.sh"));
        kill_process(guard.context("no guard")?.0, Signal::KILL)?;
        drop(user);
        let gone = async || processes_of(&directory).is_empty().then_some(());
        until("end of all processes", DEADLINE, gone).await?;
        assert!(!traces(&directory).is_empty());

        let mut next = Holder::start(&mut test_engine("scratch", temporary.path()))?;
        next.line()?;
        assert_eq!(traces(&directory), Vec::<String>::new());
        next.end()
    }

    #[tokio::test]
    async fn killed_it_comes_back_without_its_containers() -> Result<()> {
        let engine = Engine::scratch().await?;
        run_container(&engine, "box").await?;
        engine.kill().await?;
        assert!(!answers(&engine).await);
        engine.start().await?;
        assert!(!is_running(&engine, "box").await?);
        Ok(())
    }

    #[tokio::test]
    async fn killed_under_live_restore_it_finds_its_containers_running() -> Result<()> {
        let engine = Engine::scratch_with(&["--live-restore"]).await?;
        run_container(&engine, "box").await?;
        let before = engine.client().inspect_container("box", None).await?.state.context("no state")?;
        engine.kill().await?;
        engine.start().await?;
        let after = engine.client().inspect_container("box", None).await?.state.context("no state")?;
        assert_eq!((after.running, after.pid), (Some(true), before.pid));
        assert_eq!(after.started_at, before.started_at);
        Ok(())
    }

    #[tokio::test]
    async fn restarts_and_still_has_its_images() -> Result<()> {
        let engine = Engine::scratch().await?;
        engine.restart().await?;
        run_container(&engine, "box").await?;
        assert!(is_running(&engine, "box").await?);
        Ok(())
    }

    #[tokio::test]
    async fn frozen_it_does_not_answer_and_thawed_it_does() -> Result<()> {
        let engine = Engine::scratch().await?;
        engine.freeze().await?;
        assert!(UnixStream::connect(engine.socket()).is_ok());
        assert!(!answers(&engine).await);
        engine.thaw().await?;
        assert!(answers(&engine).await);
        Ok(())
    }

    #[tokio::test]
    async fn two_of_them_publish_the_same_port() -> Result<()> {
        let one = Engine::scratch().await?;
        run_container(&one, "box").await?;
        let other = Engine::scratch().await?;
        run_container(&other, "box").await?;
        assert!(is_running(&one, "box").await? && is_running(&other, "box").await?);
        Ok(())
    }

    #[tokio::test]
    async fn is_clean_only_when_nothing_of_a_container_is_left() -> Result<()> {
        let engine = Engine::scratch().await?;
        engine.assert_clean().await?;
        run_container(&engine, "box").await?;
        let leftovers = engine.leftovers().await?.to_string();
        for kind in [
            "container /box",
            "process containerd-shim",
            "process docker-proxy",
            "mount",
            "interface",
            "group",
        ] {
            assert!(leftovers.contains(kind), "no {kind} in: {leftovers}");
        }
        remove_container(&engine, "box").await?;
        engine.assert_clean().await
    }

    #[tokio::test]
    async fn can_be_the_shared_one_of_others() -> Result<()> {
        let engine = Engine::scratch().await?;
        let temporary = tempfile::tempdir()?;
        let mut command = test_engine("shared", temporary.path());
        let mut user = Holder::start(command.env("HOST_TESTS_DOCKER", engine.endpoint()))?;
        assert_eq!(user.line()?, engine.endpoint());
        user.end()?;
        assert!(answers(&engine).await);
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn refuses_a_runtime_whose_threads_could_not_follow() {
        let error = Engine::scratch().await.expect_err("an engine for several threads");
        assert!(error.to_string().contains("plain #[tokio::test]"), "{error:#}");
    }
}

mod shared {
    use super::*;

    #[tokio::test]
    async fn is_one_for_all_processes_and_ends_with_the_last() -> Result<()> {
        let temporary = tempfile::tempdir()?;
        let mut one = Holder::start(&mut test_engine("shared", temporary.path()))?;
        let mut other = Holder::start(&mut test_engine("shared", temporary.path()))?;
        let endpoint = one.line()?;
        assert_eq!(other.line()?, endpoint);
        let directory = directory_of(&endpoint)?;
        one.end()?;
        assert!(UnixStream::connect(directory.join("docker.sock")).is_ok());
        other.end()?;
        no_trace(&directory).await
    }

    #[tokio::test]
    async fn lives_as_long_as_the_test_runner() -> Result<()> {
        let temporary = tempfile::tempdir()?;
        // A runner: it runs one test, whose engine must outlive it, and then waits for the end of its input.
        let mut runner = Command::new("bash");
        runner.arg("-c").arg("\"$0\" shared </dev/null && echo 'end of the test' && cat");
        runner.arg(env!("CARGO_BIN_EXE_test-engine")).env("TMPDIR", temporary.path()).env("NEXTEST", "1");
        let mut runner = Holder::start(&mut runner)?;
        let directory = directory_of(&runner.line()?)?;
        while runner.line()? != "end of the test" {}
        assert!(UnixStream::connect(directory.join("docker.sock")).is_ok());
        runner.end()?;
        no_trace(&directory).await
    }

    #[tokio::test]
    async fn has_the_images_and_cannot_be_killed() -> Result<()> {
        let engine = Engine::shared().await?;
        for name in ["browsers/chrome", "test/mandelbox", "test/exit-at-once", "test/symlink-attack"] {
            engine.client().inspect_image(&format!("{name}:current-build")).await.context(name)?;
        }
        let refusal = engine.kill().await.expect_err("a shared engine that could be killed");
        assert!(refusal.to_string().contains("scratch"), "{refusal:#}");
        Ok(())
    }

    #[tokio::test]
    async fn finds_containers_by_label() -> Result<()> {
        let engine = Engine::shared().await?;
        let name = format!("labelled-{}", std::process::id());
        let body = ContainerCreateBody {
            image: Some("test/mandelbox:current-build".into()),
            labels: Some([("harness".into(), name.clone())].into()),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        engine.client().create_container(Some(options), body).await?;
        let label = format!("harness={name}");
        let found = engine.containers_with_label(&label).await?;
        remove_container(&engine, &name).await?;
        assert_eq!(found.len(), 1);
        engine.assert_none_labelled(&label).await
    }
}
