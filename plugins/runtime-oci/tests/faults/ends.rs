//! How containers end, and what ends with them.

use std::{fs, time::Duration};

use host_core::{
    ErrorKind,
    runtime::{ContainerChange, ContainerState, Exit, Limits, Runtime},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    image::Image,
    told::{events, follow, log, next, next_exit, until},
    world::{World, eventually, exit, host_programs, named, seen, spec, start, tools_layer},
};

#[tokio::test]
async fn its_grandchildren_die_with_it() {
    let world = World::new();
    let runtime = world.with_images().await;
    start(
        &runtime,
        &world.shell(
            "family",
            "for i in 1 2 3; do (setsid sh -c 'trap \"\" TERM; sleep 1000' &) ; done; echo born; exit 0",
        ),
    )
    .await;
    assert_eq!(exit(&runtime, "family").await.code, Some(0));
    // Told of its end, nobody finds any of them.
    assert_eq!(world.processes().iter().filter(|process| process.contains("sleep")).count(), 0);
    eventually("its supervisor ends", || match world.processes() {
        none if none.is_empty() => Ok(()),
        some => Err(format!("{some:?}")),
    })
    .await;
    runtime.remove(&named("family")).await.unwrap();
    world.is_clean().await;
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn a_signal_is_told_as_128_more() {
    let world = World::new();
    let runtime = world.with_images().await;
    start(&runtime, &world.shell("killed", "exec sleep 1000")).await;
    let pid = seen(&runtime, "killed").await.pid.unwrap();
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    assert_eq!(exit(&runtime, "killed").await, Exit { code: Some(137), oom: false });
    // Reads where nothing is.
    start(&runtime, &world.shell("fault", "exec perl -e 'unpack(\"p\", pack(\"Q\", 8))'")).await;
    assert_eq!(exit(&runtime, "fault").await, Exit { code: Some(139), oom: false });
    for name in ["killed", "fault"] {
        runtime.remove(&named(name)).await.unwrap();
    }
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn forks_end_at_its_limit() {
    let world = World::new();
    let runtime = world.with_images().await;
    let mut spec = world.shell(
        "rabbits",
        "perl -e 'for (1..200) { my $pid = fork; if (!defined $pid) { print \"refused after $_\\n\"; last } \
         if (!$pid) { sleep 1000; exit } } '; exit 2",
    );
    spec.limits = Limits { pids: Some(20), ..Limits::default() };
    start(&runtime, &spec).await;
    assert_eq!(exit(&runtime, "rabbits").await.code, Some(2));
    let said = log(&runtime, "rabbits").await;
    let after: u32 = said.trim().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(after <= 20, "{said}");
    runtime.remove(&named("rabbits")).await.unwrap();
    world.is_clean().await;
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn a_child_without_memory_is_told_of_and_the_container_goes_on() {
    let world = World::new();
    let runtime = world.with_images().await;
    let mut events = events(&runtime).await;
    let mut spec =
        world.shell("parent", "perl -e '$x = \"x\" x (1 << 28)'; echo survived $?; sleep 1000 & wait");
    spec.limits = Limits { memory_bytes: Some(32 << 20), ..Limits::default() };
    start(&runtime, &spec).await;
    let mut followed = follow(&runtime, "parent").await;
    until(&mut followed, "survived 137\n").await;
    for expected in [ContainerChange::Created, ContainerChange::Started, ContainerChange::Oom] {
        assert_eq!(next(&mut events).await, expected);
    }
    assert_eq!(seen(&runtime, "parent").await.state, ContainerState::Running);
    // That it is killed later has nothing to do with memory.
    runtime.stop(&named("parent"), Duration::ZERO).await.unwrap();
    assert_eq!(next_exit(&mut events).await, (Exit { code: Some(137), oom: false }, vec![]));
    runtime.remove(&named("parent")).await.unwrap();
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn the_first_process_without_memory_ends_it() {
    let world = World::new();
    let runtime = world.with_images().await;
    let mut events = events(&runtime).await;
    let mut spec = world.shell("hungry", "exec perl -e '$x = \"x\" x (1 << 28)'");
    spec.limits = Limits { memory_bytes: Some(32 << 20), ..Limits::default() };
    start(&runtime, &spec).await;
    let (end, told) = next_exit(&mut events).await;
    assert_eq!(end, Exit { code: Some(137), oom: true });
    assert!(told.contains(&ContainerChange::Oom), "{told:?}");
    runtime.remove(&named("hungry")).await.unwrap();
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn groups_made_inside_go_too() {
    // As an application does that has its own control groups writable.
    let world = World::new();
    let runtime = world.with_images().await;
    start(&runtime, &world.shell("nested", "sleep 1000")).await;
    for group in world.groups() {
        for container in crate::world::entries(&group).iter().filter(|path| path.is_dir()) {
            fs::create_dir_all(container.join("inner/most")).unwrap();
        }
    }
    runtime.remove(&named("nested")).await.unwrap();
    world.is_clean().await;
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_says_so() {
    let world = World::new();
    let runtime = world.with_images().await;
    let layer = tools_layer()
        .file("fit", 0o700, "#!/bin/sh\nexit 3\n")
        .file("unfit", 0o644, "#!/bin/sh\n")
        .file("garbage", 0o755, "\u{7f}ELF but only to look at")
        .file("interpreted", 0o755, "#!/interpreter/that/is/not/there\n");
    world.load(&runtime, Image::new("test/programs:1", layer)).await;
    let program = |path: &str| {
        let mut spec = spec("program", "test/programs:1");
        spec.mounts = host_programs();
        spec.command = vec![path.to_owned()];
        spec
    };
    for (path, complaint) in
        [("/unfit", "Permission denied"), ("/absent", "No such file"), ("absent", "No such file")]
    {
        let error = runtime.create(&program(path)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{path}: {error}");
        let told = host_core::chain(&error);
        assert!(told.contains(path) && told.contains(complaint), "{told}");
    }
    for (path, code, said) in [
        ("/fit", 3, ""),
        ("/garbage", 126, "Exec format error"),
        ("/interpreted", 127, "No such file or directory"),
    ] {
        start(&runtime, &program(path)).await;
        assert_eq!(exit(&runtime, "program").await.code, Some(code), "{path}");
        let log = log(&runtime, "program").await;
        assert!(log.contains(said) && (said.is_empty() || log.contains(path)), "{path}: {log}");
        runtime.remove(&named("program")).await.unwrap();
    }
    world.is_clean().await;
    runtime.close().await.unwrap();
}
