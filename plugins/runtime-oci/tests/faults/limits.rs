//! Limits that only the kernel's own files tell whether they are in force, and the control groups that they are set by.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use host_core::runtime::{Limits, Runtime};

use crate::{
    told::log,
    world::{World, entries, exit, named, start},
};

const BYTES: u64 = 64 << 20;

/// The files of that name in the only container's control groups.
fn files(world: &World, name: &str) -> Vec<PathBuf> {
    let containers = world.groups().into_iter().flat_map(|group| entries(&group));
    containers.map(|container| container.join(name)).filter(|file| file.exists()).collect()
}

#[tokio::test]
async fn memory_is_not_stretched_by_swap() {
    let mut world = World::new();
    for binary in [None, Some("crun")] {
        world.config.binary = binary.map(Into::into);
        let runtime = world.with_images().await;
        let mut spec = world.shell("bounded", "exec sleep 1000");
        spec.limits = Limits { memory_bytes: Some(BYTES), ..Limits::default() };
        start(&runtime, &spec).await;
        // Of version 2, without the memory, and of version 1, with it.
        let swaps = [("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", BYTES)];
        let of = |(name, most): (&str, u64)| files(&world, name).into_iter().map(move |file| (file, most));
        let swaps: Vec<_> = swaps.into_iter().flat_map(of).collect();
        for (file, most) in &swaps {
            let said = fs::read_to_string(file).unwrap();
            assert_eq!(said.trim(), most.to_string(), "{binary:?}: {}", file.display());
        }
        if swaps.is_empty() {
            println!("lacking: a kernel that counts swap");
        }
        let limits = files(&world, "memory.max").into_iter().chain(files(&world, "memory.limit_in_bytes"));
        let said: Vec<_> = limits.map(|file| fs::read_to_string(file).unwrap()).collect();
        assert!(said.iter().any(|said| said.trim() == BYTES.to_string()), "{binary:?}: {said:?}");
        runtime.remove(&named("bounded")).await.unwrap();
        runtime.close().await.unwrap();
    }
    world.is_clean().await;
}

#[tokio::test]
async fn no_more_memory_can_be_locked_than_by_the_service() {
    let world = World::new();
    let runtime = world.with_images().await;
    let words = "ulimit -l; ulimit -H -l";
    start(&runtime, &world.shell("locker", words)).await;
    exit(&runtime, "locker").await;
    let own = Command::new("sh").args(["-c", words]).output().unwrap();
    assert_eq!(log(&runtime, "locker").await, String::from_utf8(own.stdout).unwrap());
    runtime.remove(&named("locker")).await.unwrap();
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn the_doctor_tells_which_control_groups_the_host_has() {
    let has = |file: &str| Path::new("/sys/fs/cgroup").join(file).exists();
    let expected = match (has("cgroup.controllers"), has("unified/cgroup.controllers")) {
        (true, _) => "version 2",
        (false, true) => "version 1, and version 2 beside it",
        (false, false) => "version 1",
    };
    let world = World::new();
    let runtime = world.open().await;
    let checks = runtime.examine().await;
    let told = checks.iter().find(|check| check.name == "control groups").unwrap();
    assert_eq!(told.found.split(", without").next(), Some(expected), "{told:?}");
    runtime.close().await.unwrap();
}
