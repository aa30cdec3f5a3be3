//! Which side sees what is mounted later on the other.

use std::{
    fs,
    path::{Path, PathBuf},
};

use host_core::{
    ErrorKind,
    runtime::{ContainerSpec, Propagation, Runtime, Seccomp},
};
use runtime_oci::OciRuntime;

use crate::{
    told::{follow, log, until},
    world::{World, bind, elsewhere, eventually, exit, named, output, seen, start},
};

/// Binds a directory of the host at `/bound`.
fn binding(world: &World, name: &str, propagation: Propagation, words: &str) -> (ContainerSpec, PathBuf) {
    let source = world.path(&format!("{name}-source"));
    fs::create_dir(&source).unwrap();
    let mut spec = world.shell(name, words);
    let mut mount = bind(&source, "/bound");
    mount.propagation = propagation;
    spec.mounts.push(mount);
    (spec, source)
}

/// Mounts a memory file system with a file in it.
fn mount(at: &Path) {
    fs::create_dir_all(at).unwrap();
    output("mount", &["-t", "tmpfs", "late", at.to_str().unwrap()]);
    fs::write(at.join("file"), "late").unwrap();
}

/// What a running container has at a path.
async fn inside(runtime: &OciRuntime, name: &str, path: &str) -> Option<String> {
    let pid = seen(runtime, name).await.pid.unwrap();
    fs::read_to_string(format!("/proc/{pid}/root/{path}")).ok()
}

#[test]
fn later_mounts_of_the_host_are_seen_through_a_slave_and_not_through_a_private_bind() {
    for binary in [None, Some("crun")] {
        elsewhere(async || {
            let mut world = World::new();
            world.config.binary = binary.map(PathBuf::from);
            let runtime = world.with_images().await;
            let (slave, slave_source) = binding(&world, "slave", Propagation::Slave, "exec sleep 1000");
            let (mut private, source) = binding(&world, "private", Propagation::Private, "exec sleep 1000");
            // Beside a slave, which must not open it.
            private.mounts.push(host_core::runtime::Mount {
                target: "/other".into(),
                ..slave.mounts.last().unwrap().clone()
            });
            start(&runtime, &slave).await;
            start(&runtime, &private).await;
            mount(&slave_source.join("late"));
            mount(&source.join("late"));
            assert_eq!(inside(&runtime, "slave", "bound/late/file").await.as_deref(), Some("late"));
            assert_eq!(inside(&runtime, "private", "other/late/file").await.as_deref(), Some("late"));
            assert_eq!(inside(&runtime, "private", "bound/late/file").await, None);
            for name in ["slave", "private"] {
                runtime.remove(&named(name)).await.unwrap();
            }
            world.is_clean().await;
            runtime.close().await.unwrap();
        });
    }
}

/// With the right to mount.
fn mounting(world: &World, propagation: Propagation) -> (ContainerSpec, PathBuf) {
    let words = "mkdir -p /bound/made && mount -t tmpfs made /bound/made && echo made >/bound/made/file; echo done $?; exec sleep 1000";
    let (mut spec, source) = binding(world, "mounting", propagation, words);
    spec.security.capabilities = ["SYS_ADMIN", "DAC_OVERRIDE"].map(|name| name.parse().unwrap()).into();
    spec.security.seccomp = Seccomp::Unconfined;
    (spec, source)
}

#[test]
fn mounts_made_inside_are_seen_outside_only_if_shared() {
    for binary in [None, Some("crun")] {
        for (propagation, visible) in
            [(Propagation::Shared, true), (Propagation::Slave, false), (Propagation::Private, false)]
        {
            elsewhere(async || {
                let mut world = World::new();
                world.config.binary = binary.map(PathBuf::from);
                let runtime = world.with_images().await;
                let (spec, source) = mounting(&world, propagation);
                // A file system of its own, as it has to be.
                let path = source.to_str().unwrap();
                output("mount", &["--bind", path, path]);
                let mounts = || fs::read_to_string("/proc/thread-self/mountinfo").unwrap().lines().count();
                let before = mounts();
                start(&runtime, &spec).await;
                until(&mut follow(&runtime, "mounting").await, "done 0\n").await;
                assert_eq!(inside(&runtime, "mounting", "bound/made/file").await.as_deref(), Some("made\n"));
                let outside = fs::read_to_string(source.join("made/file")).ok();
                assert_eq!(outside.is_some(), visible, "{propagation:?} with {binary:?}");
                assert_eq!(mounts() - before, usize::from(visible) * 2, "{propagation:?} with {binary:?}");
                runtime.remove(&named("mounting")).await.unwrap();
                world.is_clean().await;
                runtime.close().await.unwrap();
            });
        }
    }
}

#[tokio::test]
async fn what_cannot_be_shared_is_refused_with_a_remedy() {
    let world = World::new();
    let runtime = world.with_images().await;
    // On the same file system as the runtime's own directory.
    let (spec, source) = mounting(&world, Propagation::Shared);
    let error = runtime.create(&spec).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let text = error.to_string();
    assert!(text.contains(source.to_str().unwrap()) && text.contains("mount --bind"), "{text}");
    world.is_clean().await;

    // A mount, but not a shared one: nothing could be seen outside.
    let path = source.to_str().unwrap();
    output("mount", &["--bind", path, path]);
    output("mount", &["--make-private", path]);
    match runtime.create(&spec).await {
        Err(error) => assert!(error.to_string().contains(path), "{error}"),
        Ok(_) => {
            runtime.start(&named("mounting")).await.unwrap();
            until(&mut follow(&runtime, "mounting").await, "done 0\n").await;
            panic!("it was made, and outside is {:?}", fs::read_to_string(source.join("made/file")));
        }
    }
    world.is_clean().await;
    runtime.close().await.unwrap();
}

#[test]
fn read_only_is_all_below_it_too() {
    for binary in [None, Some("crun")] {
        elsewhere(async || {
            let mut world = World::new();
            world.config.binary = binary.map(PathBuf::from);
            let runtime = world.with_images().await;
            let (mut spec, source) = binding(
                &world,
                "reading",
                Propagation::Private,
                "cat /bound/below/file; for at in /bound /bound/below; do echo x >$at/new && echo written at $at; done; exit 0",
            );
            mount(&source.join("below"));
            let last = spec.mounts.len() - 1;
            spec.mounts[last].read_only = true;
            start(&runtime, &spec).await;
            assert_eq!(exit(&runtime, "reading").await.code, Some(0));
            let said = log(&runtime, "reading").await;
            assert!(said.starts_with("late") && !said.contains("written at"), "with {binary:?}: {said}");
            runtime.remove(&named("reading")).await.unwrap();
            world.is_clean().await;
            runtime.close().await.unwrap();
        });
    }
}

#[tokio::test]
async fn no_mount_of_a_container_is_seen_on_the_host() {
    let world = World::new();
    let runtime = world.with_images().await;
    let before = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    start(&runtime, &world.shell("hidden", "sleep 1000")).await;
    runtime.create(&world.shell("created", "sleep 1000")).await.unwrap();
    eventually("nothing changed", || {
        let now = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        if now == before { Ok(()) } else { Err(now) }
    })
    .await;
    for name in ["hidden", "created"] {
        runtime.remove(&named(name)).await.unwrap();
    }
    runtime.close().await.unwrap();
}
