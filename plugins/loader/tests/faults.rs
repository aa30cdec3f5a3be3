//! What a bad plugin comes to: a clear error, and never more than its own calls. Faults that end a process are tried in
//! a process of the plugin's own; in the host's they would be the host's.
#![cfg(test)]

mod world;

use std::{fs, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use host_core::{ErrorKind, PluginError, Retry, gpu::Gpu};
use serde_json::{Value, json};
use world::{World, built};

const BOTH: [&str; 2] = ["in-process", "process"];
/// On a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

async fn faulty(world: &World, section: Value) -> Result<Arc<dyn Gpu>, PluginError> {
    let plugin = world.loader().gpu("fault");
    tokio::time::timeout(PATIENCE, plugin.build(&section, World::context()))
        .await
        .expect("the plugin is ready or not, in time")
}

async fn call(gpu: &Arc<dyn Gpu>) -> Result<usize, PluginError> {
    let called = tokio::time::timeout(PATIENCE, gpu.enumerate()).await.expect("the call ends in time");
    called.map(|devices| devices.len())
}

/// Once its process is back.
async fn works_again(gpu: &Arc<dyn Gpu>) {
    let works = async {
        while gpu.stats().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, works).await.expect("the plugin works again");
}

#[tokio::test]
async fn a_panic_ends_its_call_and_nothing_else() {
    let world = World::with("fault");
    for isolation in BOTH {
        for fault in ["panic", "panic_after_await", "panic_in_drop"] {
            let gpu = faulty(&world, json!({ "isolation": isolation, "call": fault })).await.unwrap();
            for _ in 0..3 {
                let error = call(&gpu).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Internal);
                assert!(error.to_string().contains("panicked: on purpose"), "{error}");
                gpu.stats().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_panic_while_it_is_made_is_told() {
    let world = World::with("fault");
    for isolation in BOTH {
        let error = faulty(&world, json!({ "isolation": isolation, "init": "panic" })).await.unwrap_err();
        assert!(error.to_string().contains("panicked: on purpose"), "{isolation}: {error}");
    }
}

#[tokio::test]
async fn what_never_completes_or_blocks_a_thread_holds_up_nobody_else() {
    let world = World::with("fault");
    for isolation in BOTH {
        for fault in ["never", "block"] {
            let gpu = faulty(&world, json!({ "isolation": isolation, "call": fault })).await.unwrap();
            let given_up = tokio::time::timeout(Duration::from_millis(100), gpu.enumerate()).await;
            assert!(given_up.is_err(), "{fault} completed");
            let other = tokio::time::timeout(PATIENCE, gpu.stats()).await;
            other.expect("another call ends in time").unwrap();
        }
    }
}

#[tokio::test]
async fn a_process_that_dies_fails_its_calls_and_comes_back() {
    let world = World::with("fault");
    for (fault, told) in [
        ("segfault", "signal 11"),
        ("overflow", "signal"),
        ("abort", "signal 6"),
        ("exit", "exited with status 3"),
    ] {
        let gpu = faulty(&world, json!({ "isolation": "process", "call": fault })).await.unwrap();
        let error = call(&gpu).await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Later));
        assert!(error.to_string().contains(told), "{fault}: {error}");
        works_again(&gpu).await;
    }
}

#[tokio::test]
async fn a_process_that_dies_while_it_is_made_is_told() {
    let world = World::with("fault");
    let error = faulty(&world, json!({ "isolation": "process", "init": "segfault" })).await.unwrap_err();
    assert!(error.to_string().contains("signal 11"), "{error}");
}

#[tokio::test]
async fn one_that_dies_each_time_is_left_alone() {
    let world = World::with("fault");
    let gpu = faulty(&world, json!({ "isolation": "process", "call": "exit" })).await.unwrap();
    let broken = async {
        loop {
            let error = gpu.enumerate().await.unwrap_err();
            if error.to_string().contains("left alone") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, broken).await.expect("the circuit breaks");
}

#[tokio::test]
async fn an_error_keeps_kind_and_causes_across() {
    let world = World::with("fault");
    for isolation in BOTH {
        let gpu = faulty(&world, json!({ "isolation": isolation })).await.unwrap();
        let error = gpu.health().await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Denied, Retry::Never));
        assert_eq!(error.to_string(), "not allowed: the driver is gone");
    }
}

#[tokio::test]
async fn an_unknown_key_is_told_with_its_path() {
    let world = World::with("fault");
    for isolation in BOTH {
        let section = json!({ "isolation": isolation, "inner": { "valeu": 1 } });
        let error = faulty(&world, section).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let text = error.to_string();
        assert!(text.contains("fault.inner.valeu") && text.contains("`value`"), "{text}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_plugin_is_refused_and_says_why() {
    let whole = fs::read(built("fault")).unwrap();
    let mut foreign = whole.clone();
    // `e_machine`
    foreign[18] = if cfg!(target_arch = "x86_64") { 0xb7 } else { 0x3e };
    foreign[19] = 0;
    let text = String::from("#!/bin/sh\n").into_bytes();
    let cases = [
        (text, "no shared library"),
        (whole[..whole.len() / 2].to_vec(), "cut off"),
        (whole[..40].to_vec(), "cut off"),
        (foreign, "build it for this processor"),
        (fs::read("/proc/self/exe").unwrap(), "does not export hp_plugin_entry_v1"),
        (without_entry(&whole), "does not export hp_plugin_entry_v1"),
    ];
    let world = World::empty();
    for (bytes, told) in cases {
        world.put("fault", &bytes);
        for isolation in BOTH {
            let error = faulty(&world, json!({ "isolation": isolation })).await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains(told) && text.contains("libfault.so"), "{isolation}: {told}: {text}");
        }
    }
}

/// The symbol under another name of the same length.
fn without_entry(library: &[u8]) -> Vec<u8> {
    let (name, other) = (b"hp_plugin_entry_v1", b"hq_plugin_entry_v1");
    let mut bytes = library.to_vec();
    let mut at = 0;
    while let Some(place) = bytes[at..].windows(name.len()).position(|window| window == name) {
        at += place;
        bytes[at..at + name.len()].copy_from_slice(other);
    }
    bytes
}

#[tokio::test]
async fn another_major_of_the_interface_is_told() {
    let mut bytes = fs::read(built("fault")).unwrap();
    let name = b"hp_plugin_entry_v1";
    let mut at = 0;
    while let Some(place) = bytes[at..].windows(name.len()).position(|window| window == name) {
        at += place;
        bytes[at + name.len() - 1] = b'9';
    }
    let world = World::empty();
    world.put("fault", &bytes);
    let error = faulty(&world, json!({})).await.unwrap_err().to_string();
    assert!(error.contains("version 9 of the plugin ABI"), "{error}");
}

#[tokio::test]
async fn a_plugin_of_another_kind_or_name_is_told() {
    let world = World::with("fault");
    let error = world.loader().runtime("fault").build(&Value::Null, World::context()).await.unwrap_err();
    assert!(error.to_string().contains("implements gpu, not runtime"), "{error}");
    world.put("other", &fs::read(built("fault")).unwrap());
    let error = world.loader().gpu("other").build(&Value::Null, World::context()).await.unwrap_err();
    assert!(error.to_string().contains("calls itself \"fault\""), "{error}");
}

#[tokio::test]
async fn a_pin_is_held_to() {
    let world = World::with("fault");
    let (description, sha256) = world.loader().describe(&world.loader().file("fault")).unwrap();
    assert_eq!(description.name, "fault");
    faulty(&world, json!({ "sha256": sha256 })).await.unwrap();
    let error = faulty(&world, json!({ "sha256": "0".repeat(64) })).await.unwrap_err();
    assert!(error.to_string().contains(&sha256), "{error}");
    fs::write(world.loader().pin_file("fault"), format!("{}  libfault.so\n", "1".repeat(64))).unwrap();
    let error = faulty(&world, json!({})).await.unwrap_err();
    assert!(error.to_string().contains(&sha256), "{error}");
}

#[tokio::test]
async fn a_file_that_others_can_write_is_refused() {
    let world = World::with("fault");
    let path = world.loader().file("fault");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    for isolation in BOTH {
        let error = faulty(&world, json!({ "isolation": isolation })).await.unwrap_err();
        assert!(error.to_string().contains("chmod go-w"), "{error}");
    }
}

#[tokio::test]
async fn one_that_is_replaced_on_disk_goes_on_and_is_not_started_again_as_another() {
    let world = World::with("fault");
    let inside = faulty(&world, json!({})).await.unwrap();
    let apart = faulty(&world, json!({ "isolation": "process", "call": "exit" })).await.unwrap();
    let mut changed = fs::read(built("fault")).unwrap();
    changed.push(0);
    world.put("fault", &changed);
    inside.stats().await.unwrap();
    apart.stats().await.unwrap();
    apart.enumerate().await.unwrap_err();
    let told = async {
        loop {
            if apart.stats().await.unwrap_err().to_string().contains("pinned is") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("the new file is refused");
}
