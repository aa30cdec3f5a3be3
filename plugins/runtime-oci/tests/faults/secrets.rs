//! A secret in the environment is for the application alone.

use std::{
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use host_core::runtime::{EnvValue, Runtime};

use crate::{
    told::{follow, log, until},
    world::{World, elsewhere, entries, holder, named},
};

const SECRET: &str = "the-cat-is-under-the-third-roof-tile";

/// Files below a directory that hold the secret.
fn telling(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in entries(directory) {
        let Ok(kind) = path.symlink_metadata().map(|metadata| metadata.file_type()) else { continue };
        if kind.is_dir() {
            found.extend(telling(&path));
        } else if kind.is_file() && !kind.is_fifo() && holds(&path) {
            found.push(path);
        }
    }
    found
}

fn holds(path: &Path) -> bool {
    let content = fs::read(path).unwrap_or_default();
    content.windows(SECRET.len()).any(|part| part == SECRET.as_bytes())
}

/// Nobody tells, neither on disk nor in what a list of processes shows, nor in the supervisor's own mounts.
fn nobody_tells(world: &World, when: &str) {
    assert_eq!(telling(&world.path("")), Vec::<PathBuf>::new(), "{when}");
    for container in world.containers() {
        let Some(supervisor) = holder(&container) else { continue };
        for file in ["cmdline", "environ"] {
            assert!(!holds(Path::new(&format!("/proc/{supervisor}/{file}"))), "{when}, in its {file}");
        }
        if world.config.binary.is_some() {
            // What another runtime keeps for itself, it keeps in memory.
            continue;
        }
        let within = container.strip_prefix("/").unwrap();
        let bundle = Path::new(&format!("/proc/{supervisor}/root")).join(within).join("bundle");
        assert_eq!(telling(&bundle), Vec::<PathBuf>::new(), "{when}");
    }
}

#[test]
fn it_is_nowhere_else() {
    for binary in [None, Some("crun")] {
        elsewhere(async || {
            let mut world = World::new();
            world.config.binary = binary.map(Into::into);
            let runtime = world.with_images().await;
            let mut spec = world.shell(
                "keeper",
                "[ \"$KEY\" = the-cat-is-\"under-the-third-roof-tile\" ] && echo knows; sleep 1000",
            );
            spec.command = spec
                .command
                .iter()
                .map(|word| word.replace("the-cat-is-\"under", "\"the-cat\"-is-\"under"))
                .collect();
            spec.env.insert("KEY".to_owned(), EnvValue::Secret(SECRET.into()));
            runtime.create(&spec).await.unwrap();
            nobody_tells(&world, "created");
            runtime.start(&named("keeper")).await.unwrap();
            until(&mut follow(&runtime, "keeper").await, "knows\n").await;
            nobody_tells(&world, "running");
            drop(runtime);
            let runtime = world.open().await;
            nobody_tells(&world, "taken over");
            runtime.stop(&named("keeper"), std::time::Duration::ZERO).await.unwrap();
            assert_eq!(log(&runtime, "keeper").await, "knows\n");
            nobody_tells(&world, "ended");
            runtime.remove(&named("keeper")).await.unwrap();
            nobody_tells(&world, "removed");
            world.is_clean().await;
            runtime.close().await.unwrap();
        });
    }
}

#[tokio::test]
async fn a_launch_that_fails_does_not_tell_it() {
    let mut world = World::new();
    let says = "create) cat $(dirname $complaints)/config.json >$complaints; exit 1 ;;";
    world.config.binary = Some(crate::engines::script(&world, says));
    let runtime = world.with_images().await;
    let mut spec = world.shell("keeper", "true");
    spec.env.insert("KEY".to_owned(), EnvValue::Secret(SECRET.into()));
    // An engine that repeats its input is beyond help in what it says; on disk it must not stay.
    runtime.create(&spec).await.unwrap_err();
    world.is_clean().await;
    nobody_tells(&world, "refused");
    runtime.close().await.unwrap();
}
