//! Many at once, on the same things.

use std::{fs, time::Duration};

use futures::future::join_all;
use host_core::{
    ErrorKind, PluginError,
    runtime::{ContainerState, Network, Runtime, Selector},
};
use nix::sys::signal::{Signal, kill};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use runtime_oci::OciRuntime;
use tokio::time::Instant;

use crate::world::{World, holder, named, seen, start};

#[tokio::test]
async fn a_name_is_taken_until_its_container_is_gone() {
    let world = World::new();
    let runtime = world.with_images().await;
    let spec = world.shell("contested", "sleep 1000");
    start(&runtime, &spec).await;
    // So that the removal takes its time.
    kill(world.supervisor(), Signal::SIGSTOP).unwrap();
    let contested = async {
        tokio::task::yield_now().await;
        let error = runtime.create(&spec).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(error.to_string().contains("contested"), "{error}");
    };
    let name = named("contested");
    let (removed, ()) = tokio::join!(runtime.remove(&name), contested);
    removed.unwrap();
    start(&runtime, &spec).await;
    runtime.remove(&named("contested")).await.unwrap();
    world.is_clean().await;
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn of_many_that_want_a_name_one_gets_it() {
    let world = World::new();
    let runtime = world.with_images().await;
    let spec = world.shell("wanted", "sleep 1000");
    let made = join_all((0..8).map(|_| runtime.create(&spec))).await;
    let refused: Vec<_> = made.iter().filter_map(|one| one.as_ref().err()).collect();
    assert_eq!(refused.len(), 7);
    assert!(refused.iter().all(|error| error.kind() == ErrorKind::Conflict), "{refused:?}");
    let name = named("wanted");
    let started = join_all((0..8).map(|_| runtime.start(&name))).await;
    assert!(started.iter().all(Result::is_ok), "{started:?}");
    let removed = join_all((0..8).map(|_| runtime.remove(&name))).await;
    assert!(removed.iter().all(Result::is_ok), "{removed:?}");
    world.is_clean().await;
    runtime.close().await.unwrap();
}

/// One of those who do as they like. Whatever is refused must be so for a reason that the others can be.
async fn whim(runtime: &OciRuntime, world: &World, mut dice: SmallRng) {
    for _ in 0..25 {
        let name = format!("box-{}", dice.random_range(0..4));
        let container = named(&name);
        let outcome = match dice.random_range(0..9) {
            0..3 => {
                let ends = ["sleep 1000", "exit 3", "trap '' TERM; while :; do sleep 0.1; done"];
                let mut spec = world.shell(&name, ends[dice.random_range(0..ends.len())]);
                spec.network = if dice.random() { Network::Bridge } else { Network::None };
                runtime.create(&spec).await.map(drop)
            }
            3..5 => runtime.start(&container).await,
            5 => runtime.stop(&container, Duration::from_millis(dice.random_range(0..30))).await,
            6 => {
                // Removed in the middle of its launch.
                let spec = world.shell(&name, "sleep 1000");
                let patience = Duration::from_millis(dice.random_range(0..40));
                let created = tokio::time::timeout(patience, runtime.create(&spec)).await;
                runtime.remove(&container).await.unwrap();
                created.unwrap_or_else(|_| Err(PluginError::new(ErrorKind::NotFound, "given up"))).map(drop)
            }
            7 => {
                // A caller who gives up.
                let patience = Duration::from_millis(dice.random_range(0..20));
                tokio::time::timeout(patience, runtime.remove(&container)).await.unwrap_or(Ok(()))
            }
            _ => runtime.remove(&container).await,
        };
        if let Err(error) = outcome {
            let expected =
                matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound | ErrorKind::Unavailable);
            assert!(expected, "{name}: {}", host_core::chain(&error));
        }
        runtime.list(&Selector::default()).await.unwrap();
    }
}

#[tokio::test]
async fn whatever_is_done_at_once_nothing_is_left_in_the_end() {
    let seed = std::env::var("OCI_FAULTS_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random::<u64>);
    println!("OCI_FAULTS_SEED={seed}");
    let world = World::new();
    let runtime = world.with_images().await;
    join_all((0..6).map(|number| whim(&runtime, &world, SmallRng::seed_from_u64(seed.wrapping_add(number)))))
        .await;
    for number in 0..4 {
        runtime.remove(&named(&format!("box-{number}"))).await.unwrap();
    }
    assert_eq!(runtime.list(&Selector::default()).await.unwrap(), []);
    world.is_clean().await;
    runtime.close().await.unwrap();
    world.is_untouched().await;
}

/// Kilobytes of a process that it shares with nobody, and its part of what it shares.
fn pss_kb(pid: nix::unistd::Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn fifty_at_once_come_and_go() {
    const MANY: usize = 50;
    let world = World::new();
    let runtime = world.with_images().await;
    let specs: Vec<_> = (0..MANY)
        .map(|number| {
            let mut spec = world.shell(&format!("many-{number}"), "exec sleep 1000");
            spec.network = Network::Bridge;
            spec
        })
        .collect();
    let begun = Instant::now();
    join_all(specs.iter().map(|spec| start(&runtime, spec))).await;
    let (started, supervisors) = (begun.elapsed(), world.containers());
    let memory: u64 = supervisors.iter().map(|path| pss_kb(holder(path).unwrap())).sum();
    println!("{MANY} started in {started:?}; a supervisor takes {} kB", memory / MANY as u64);
    for spec in &specs {
        assert_eq!(seen(&runtime, spec.name.as_str()).await.state, ContainerState::Running);
    }
    let begun = Instant::now();
    let names: Vec<_> = specs.iter().map(|spec| named(spec.name.as_str())).collect();
    let removed = join_all(names.iter().map(|name| runtime.remove(name))).await;
    println!("removed in {:?}", begun.elapsed());
    assert!(removed.iter().all(Result::is_ok), "{removed:?}");
    world.is_clean().await;
    runtime.close().await.unwrap();
    world.is_untouched().await;
}
