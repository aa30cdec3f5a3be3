//! A supervisor that is killed, or hangs.

use std::{fs, path::Path, time::Duration};

use host_core::{
    ErrorKind,
    runtime::{ContainerChange, ContainerState, Exit, Network, Runtime},
};
use nix::sys::signal::{Signal, kill};

use crate::{
    engines::{runs, script},
    told::{events, log, next, next_exit},
    world::{LONG, World, eventually, exit, holder, named, seen, start, within},
};

/// Faster than anything that would wait for a hanging process to end by itself.
const SOON: Duration = Duration::from_secs(8);

#[tokio::test]
async fn killed_while_it_launches_it_leaves_nothing() {
    let mut world = World::new();
    world.config.binary = Some(script(&world, "create) sleep 1000 ;;"));
    let runtime = world.with_images().await;
    let spec = world.shell("launching", "true");
    let creation = runtime.create(&spec);
    let murder = async {
        runs(&world, "sleep 1000").await;
        kill(world.supervisor(), Signal::SIGKILL).unwrap();
    };
    let (created, ()) = within(SOON, "the creation", async { tokio::join!(creation, murder) }).await;
    let error = created.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(runtime.inspect(&named("launching")).await.unwrap(), None);
    world.is_clean().await;
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn killed_before_the_start_it_takes_the_container_with_it() {
    killed(false).await;
}

#[tokio::test]
async fn killed_while_the_container_runs_it_takes_it_along() {
    killed(true).await;
}

async fn killed(started: bool) {
    let world = World::new();
    let runtime = world.with_images().await;
    let mut events = events(&runtime).await;
    let mut spec = world.shell("orphan", "echo said; sleep 1000 & exec sleep 1000");
    spec.network = Network::Bridge;
    runtime.create(&spec).await.unwrap();
    assert_eq!(next(&mut events).await, ContainerChange::Created);
    if started {
        runtime.start(&named("orphan")).await.unwrap();
        assert_eq!(next(&mut events).await, ContainerChange::Started);
        let said = || fs::read_to_string(world.log("log")).unwrap_or_default();
        eventually("it speaks", || if said() == "said\n" { Ok(()) } else { Err(said()) }).await;
    }
    kill(world.supervisor(), Signal::SIGKILL).unwrap();
    let (exit, before) = next_exit(&mut events).await;
    assert_eq!((exit, before), (Exit::default(), vec![]));
    // Told of its end, nobody finds anything of it running.
    assert_eq!(world.processes(), Vec::<String>::new());
    assert_eq!(seen(&runtime, "orphan").await.state, ContainerState::Exited(exit));
    assert_eq!(log(&runtime, "orphan").await, if started { "said\n" } else { "" });
    assert_eq!(runtime.start(&named("orphan")).await.unwrap_err().kind(), ErrorKind::Conflict);
    runtime.stop(&named("orphan"), LONG).await.unwrap();
    within(SOON, "the removal", runtime.remove(&named("orphan"))).await.unwrap();
    assert_eq!(next(&mut events).await, ContainerChange::Removed);
    world.is_clean().await;
    runtime.close().await.unwrap();
    world.is_untouched().await;
}

#[tokio::test]
async fn one_that_hangs_does_not_keep_its_container_from_being_removed() {
    let world = World::new();
    let runtime = world.with_images().await;
    start(&runtime, &world.shell("frozen", "sleep 1000")).await;
    kill(world.supervisor(), Signal::SIGSTOP).unwrap();
    within(SOON, "the removal", runtime.remove(&named("frozen"))).await.unwrap();
    world.is_clean().await;
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn one_of_many_that_is_killed_harms_no_other() {
    let world = World::new();
    let runtime = world.with_images().await;
    for name in ["first", "second", "third"] {
        start(&runtime, &world.shell(name, "sleep 1000")).await;
    }
    let id = seen(&runtime, "second").await.id;
    let mut events = events(&runtime).await;
    let directory = world.state().join("containers").join(id.0);
    kill(supervisor_of(&directory), Signal::SIGKILL).unwrap();
    next_exit(&mut events).await;
    for name in ["first", "third"] {
        assert_eq!(seen(&runtime, name).await.state, ContainerState::Running);
    }
    for name in ["first", "second", "third"] {
        runtime.remove(&named(name)).await.unwrap();
    }
    world.is_clean().await;
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn those_that_wait_are_replaced_when_they_die_and_end_with_the_service() {
    let world = World::new();
    let runtime = world.with_images().await;
    let ready = || match world.others() {
        all if all.len() == world.config.ready => Ok(all),
        others => Err(format!("{others:?}")),
    };
    for spare in eventually("supervisors wait", ready).await {
        kill(spare, Signal::SIGKILL).unwrap();
    }
    start(&runtime, &world.shell("first", "exit 3")).await;
    assert_eq!(exit(&runtime, "first").await.code, Some(3));
    runtime.remove(&named("first")).await.unwrap();
    drop(runtime);
    let gone = || if world.others().is_empty() { Ok(()) } else { Err(format!("{:?}", world.others())) };
    eventually("nobody waits any more", gone).await;
    world.open().await.close().await.unwrap();
    world.is_untouched().await;
}

fn supervisor_of(directory: &Path) -> nix::unistd::Pid {
    holder(directory).unwrap()
}
