//! External runtimes that fail in every way.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use host_core::{
    ErrorKind, PluginError, chain,
    runtime::{ContainerState, Network, Runtime},
};

use crate::world::{LONG, World, elsewhere, eventually, exit, named, seen, start, within};

const SOON: Duration = Duration::from_secs(8);

/// A runtime that is asked for `--version`, as every one is, and otherwise does as `cases` say.
pub(crate) fn script(world: &World, cases: &str) -> PathBuf {
    let path = world.path("engine");
    // The command is the first word that is none of the options before it.
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo scripted 1 && exit\nroot=$2; complaints=$4; shift 4; command=$1\n\
         case $command in\n{cases}\nesac\n"
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// crun, but for what `cases` say.
fn almost(world: &World, cases: &str) -> PathBuf {
    script(world, &format!("{cases}\n*) exec crun --root \"$root\" --log \"$complaints\" \"$@\" ;;"))
}

/// Returns once there is such a process.
pub(crate) async fn runs(world: &World, words: &str) {
    eventually(&format!("{words:?} runs"), || {
        let processes = world.processes();
        let found = processes.iter().any(|process| process.contains(words));
        found.then_some(()).ok_or_else(|| format!("{processes:#?}"))
    })
    .await;
}

fn refused(cases: &str) -> (PluginError, PathBuf) {
    elsewhere(async || {
        let mut world = World::new();
        let engine = script(&world, cases);
        world.config.binary = Some(engine.clone());
        let runtime = world.with_images().await;
        let mut spec = world.shell("refused", "true");
        spec.network = Network::Bridge;
        let error = within(SOON, "the creation", runtime.create(&spec)).await.unwrap_err();
        assert_eq!(runtime.inspect(&named("refused")).await.unwrap(), None);
        world.is_clean().await;
        runtime.close().await.unwrap();
        world.is_untouched().await;
        (error, engine)
    })
}

fn names(error: &PluginError, engine: &Path, more: &str) {
    let text = chain(error);
    assert!(text.contains(engine.to_str().unwrap()) && text.contains(more), "{text:?} lacks {more:?}");
}

#[test]
fn one_that_fails_is_named_with_what_it_said() {
    let (error, engine) = refused("create) echo the moon is full >$complaints; exit 3 ;;");
    names(&error, &engine, "the moon is full");
    names(&error, &engine, "exit status: 3");
    assert_eq!(error.kind(), ErrorKind::Internal);
}

#[test]
fn one_that_fails_in_silence_is_named() {
    let (error, engine) = refused("create) exit 1 ;;");
    names(&error, &engine, "it does not say why");
}

#[test]
fn one_that_names_no_process_is_refused() {
    let (error, engine) = refused("create) exit 0 ;;");
    names(&error, &engine, "named no process of its own");
}

#[test]
fn one_that_names_a_process_that_is_none_is_refused() {
    for pid in ["0", "-1", "nonsense", "1", "2147483647"] {
        let case =
            format!("create) while [ $# -gt 0 ]; do [ $1 = --pid-file ] && echo {pid} >$2; shift; done ;;");
        let (error, _) = refused(&case);
        assert_eq!(error.kind(), ErrorKind::Internal, "{pid}: {error}");
    }
}

#[tokio::test]
async fn one_that_left_processes_behind_loses_them() {
    // In the control group of the container, as an engine that dies half-way leaves them.
    let cases = "create) for at in /sys/fs/cgroup/pids /sys/fs/cgroup; do [ -e $at/cgroup.procs ] || continue; \
         for id; do :; done; mkdir -p $at/$PARENT/$id; setsid sleep 1000 & echo $! >$at/$PARENT/$id/cgroup.procs; exit 4; done ;;";
    let mut world = World::new();
    let parent = world.config.cgroup_parent.to_str().unwrap().trim_start_matches('/').to_owned();
    world.config.binary = Some(script(&world, &cases.replace("$PARENT", &parent)));
    let runtime = world.with_images().await;
    let error = runtime.create(&world.shell("half", "true")).await.unwrap_err();
    assert!(chain(&error).contains("exit status: 4"), "{}", chain(&error));
    world.is_clean().await;
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn one_that_is_missing_is_named_at_once() {
    let mut world = World::new();
    world.config.binary = Some(world.path("nowhere"));
    let error = world.try_open().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    names(&error, &world.path("nowhere"), "runtime.oci.binary");
}

#[tokio::test]
async fn one_that_vanishes_is_named() {
    let mut world = World::new();
    let engine = script(&world, "");
    world.config.binary = Some(engine.clone());
    let runtime = world.with_images().await;
    fs::remove_file(&engine).unwrap();
    let error = runtime.create(&world.shell("lost", "true")).await.unwrap_err();
    names(&error, &engine, "not installed");
    world.is_clean().await;
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn a_launch_that_hangs_is_aborted_by_removal() {
    let mut world = World::new();
    world.config.binary = Some(script(&world, "create) trap '' TERM; sleep 1000; sleep 1000 ;;"));
    let runtime = world.with_images().await;
    let mut spec = world.shell("hanging", "true");
    spec.network = Network::Bridge;
    let removal = async {
        let hangs = || world.processes().iter().any(|process| process.contains("sleep 1000"));
        eventually("the launch hangs", || {
            hangs().then_some(()).ok_or_else(|| format!("{:?}", world.processes()))
        })
        .await;
        assert_eq!(seen(&runtime, "hanging").await.state, ContainerState::Created);
        within(SOON, "the removal", runtime.remove(&named("hanging"))).await.unwrap();
        assert_eq!(runtime.inspect(&named("hanging")).await.unwrap(), None);
    };
    let (created, ()) = tokio::join!(runtime.create(&spec), removal);
    assert_eq!(created.unwrap_err().kind(), ErrorKind::NotFound);
    world.is_clean().await;
    runtime.close().await.unwrap();
    world.is_untouched().await;
}

#[tokio::test]
async fn a_caller_who_gives_up_on_a_hanging_launch_can_remove_it_by_name() {
    let mut world = World::new();
    world.config.binary = Some(script(&world, "create) sleep 1000 ;;"));
    let runtime = world.with_images().await;
    let spec = world.shell("given-up", "true");
    let given_up = tokio::time::timeout(Duration::from_millis(500), runtime.create(&spec)).await;
    assert!(given_up.is_err());
    within(SOON, "the removal", runtime.remove(&named("given-up"))).await.unwrap();
    world.is_clean().await;
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn a_start_that_hangs_is_aborted_by_removal() {
    let mut world = World::new();
    world.config.binary = Some(almost(&world, "start) sleep 1000 ;;"));
    let runtime = world.with_images().await;
    runtime.create(&world.shell("stuck", "true")).await.unwrap();
    let name = named("stuck");
    let removal = async {
        eventually("the start hangs", || {
            let processes = world.processes();
            processes
                .iter()
                .any(|process| process.contains(" start "))
                .then_some(())
                .ok_or_else(|| format!("{processes:?}"))
        })
        .await;
        within(SOON, "the removal", runtime.remove(&name)).await.unwrap();
    };
    let (started, ()) = tokio::join!(runtime.start(&name), removal);
    started.unwrap_err();
    world.is_clean().await;
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn a_start_that_fails_is_told_and_undone_by_removal() {
    let mut world = World::new();
    let engine = almost(&world, "start) echo no start today >$complaints; exit 5 ;;");
    world.config.binary = Some(engine.clone());
    let runtime = world.with_images().await;
    runtime.create(&world.shell("unlucky", "true")).await.unwrap();
    let error = runtime.start(&named("unlucky")).await.unwrap_err();
    names(&error, &engine, "no start today");
    runtime.remove(&named("unlucky")).await.unwrap();
    world.is_clean().await;
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn an_end_is_told_even_if_nothing_is_deleted_or_killed() {
    let mut world = World::new();
    world.config.binary = Some(almost(&world, "delete|kill) exit 6 ;;"));
    let runtime = world.with_images().await;
    start(&runtime, &world.shell("kept", "exit 9")).await;
    assert_eq!(exit(&runtime, "kept").await.code, Some(9));
    runtime.remove(&named("kept")).await.unwrap();
    start(&runtime, &world.shell("asked", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done"))
        .await;
    eventually("it can be asked", || {
        let log = fs::read_to_string(world.log("log")).unwrap();
        if log.contains("ready") { Ok(()) } else { Err(log) }
    })
    .await;
    within(SOON, "the stop", runtime.stop(&named("asked"), LONG)).await.unwrap();
    assert_eq!(exit(&runtime, "asked").await.code, Some(3));
    runtime.remove(&named("asked")).await.unwrap();
    world.is_clean().await;
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn a_deletion_that_hangs_does_not_keep_the_container() {
    let mut world = World::new();
    world.config.binary = Some(almost(&world, "delete) sleep 1000 ;;"));
    let runtime = world.with_images().await;
    start(&runtime, &world.shell("undeleted", "sleep 1000")).await;
    within(SOON, "the removal", runtime.remove(&named("undeleted"))).await.unwrap();
    world.is_clean().await;
    runtime.close().await.unwrap();
}
