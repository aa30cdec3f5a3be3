//! No room.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use host_core::{
    ErrorKind, chain,
    runtime::{ContainerState, Network, Runtime},
};

use crate::{
    told::{follow, log, until},
    world::{World, bind, elsewhere, entries, eventually, exit, named, output, seen, spec, start},
};

/// A root of this size.
fn small(world: &World, bytes: u32) {
    let root = &world.config.root;
    fs::create_dir(root).unwrap();
    output("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "small", root.to_str().unwrap()]);
}

/// Takes all that is left.
fn fill(world: &World) -> PathBuf {
    let path = world.config.root.join("filler");
    let mut file = fs::File::create(&path).unwrap();
    for part in [64 << 10, 4096, 1] {
        while file.write_all(&vec![1; part]).is_ok() {}
    }
    path
}

#[tokio::test]
async fn an_image_that_does_not_fit_leaves_nothing() {
    let world = World::new();
    small(&world, 512 << 10);
    let runtime = world.open().await;
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/test-mandelbox.tar");
    let archive = std::env::var_os("HOST_TESTS_IMAGE").map_or(archive, PathBuf::from);
    let error = runtime.load_image(&archive).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{}", chain(&error));
    assert!(chain(&error).contains("No space left"), "{}", chain(&error));
    assert_eq!(runtime.images().await.unwrap(), []);
    for part in ["l", "tmp", "configs", "trash"] {
        assert_eq!(entries(&world.config.root.join("images").join(part)), Vec::<PathBuf>::new());
    }
    runtime.close().await.unwrap();
}

#[test]
fn a_container_that_does_not_fit_leaves_nothing_and_fits_afterwards() {
    for binary in [None, Some("crun")] {
        elsewhere(async || {
            let mut world = World::new();
            world.config.binary = binary.map(Into::into);
            // Its small files too.
            world.config.state = Some(world.config.root.clone());
            small(&world, 8 << 20);
            let runtime = world.with_images().await;
            let filler = fill(&world);
            let mut big = world.shell("big", "exit 3");
            big.network = Network::Bridge;
            let error = runtime.create(&big).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Exhausted, "{}", chain(&error));
            assert!(chain(&error).contains("No space left"), "{}", chain(&error));
            assert_eq!(runtime.inspect(&named("big")).await.unwrap(), None);
            world.is_clean().await;
            fs::remove_file(filler).unwrap();
            start(&runtime, &big).await;
            assert_eq!(exit(&runtime, "big").await.code, Some(3));
            runtime.remove(&named("big")).await.unwrap();
            world.is_clean().await;
            runtime.close().await.unwrap();
            world.is_untouched().await;
        });
    }
}

#[tokio::test]
async fn a_full_disk_stops_no_container_and_hides_no_end() {
    let mut world = World::new();
    world.config.state = Some(world.config.root.clone());
    small(&world, 8 << 20);
    let runtime = world.with_images().await;
    let words = world.path("words");
    fs::create_dir(&words).unwrap();
    let wait = |word: &str| format!("while [ ! -e /words/{word} ]; do sleep 0.02; done");
    let mut spec = world.shell(
        "writer",
        &format!(
            "echo begun; {}; seq 1 5000; : >/words/passed; {}; echo again; {}; exit 7",
            wait("full"),
            wait("free"),
            wait("end")
        ),
    );
    spec.mounts.push(bind(&words, "/words"));
    start(&runtime, &spec).await;
    until(&mut follow(&runtime, "writer").await, "begun\n").await;
    let filler = fill(&world);
    fs::write(words.join("full"), "").unwrap();
    let passed = || words.join("passed").exists().then_some(()).ok_or_else(|| "it is stuck".to_owned());
    eventually("it goes on", passed).await;
    assert_eq!(seen(&runtime, "writer").await.state, ContainerState::Running);
    fs::remove_file(&filler).unwrap();
    fs::write(words.join("free"), "").unwrap();
    until(&mut follow(&runtime, "writer").await, "again\n").await;
    let filler = fill(&world);
    fs::write(words.join("end"), "").unwrap();
    assert_eq!(exit(&runtime, "writer").await.code, Some(7));
    assert!(log(&runtime, "writer").await.ends_with("again\n"));
    // And it can be removed, which makes room.
    runtime.remove(&named("writer")).await.unwrap();
    fs::remove_file(filler).unwrap();
    world.is_clean().await;
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn a_service_can_open_on_a_full_disk_and_remove() {
    let mut world = World::new();
    world.config.state = Some(world.config.root.clone());
    small(&world, 8 << 20);
    let runtime = world.with_images().await;
    let mut running = world.shell("running", "sleep 1000");
    running.network = Network::Bridge;
    start(&runtime, &running).await;
    fill(&world);
    drop(runtime);
    let runtime = world.open().await;
    assert_eq!(seen(&runtime, "running").await.state, ContainerState::Running);
    runtime.remove(&named("running")).await.unwrap();
    world.is_clean().await;
    let error = runtime.create(&spec("none", "test/none:1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", chain(&error));
    runtime.close().await.unwrap();
}
