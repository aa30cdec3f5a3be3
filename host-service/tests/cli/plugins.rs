//! A plugin's way from `plugin new` into a host service.

use std::{fs, path::Path, process::Command};

use crate::support::{Ran, Scratch};

/// Output of a command that succeeds.
fn told(ran: Ran) -> String {
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.out
}

fn build(project: &Path, program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    // The projects' own builds, kept between runs.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugin-new");
    let output = command
        .args(arguments)
        .current_dir(project)
        .env("CARGO_TARGET_DIR", target)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .output();
    let ran = Ran::from(
        output.unwrap_or_else(|error| panic!("{program}, which builds projects, does not run: {error}")),
    );
    assert_eq!(ran.code, 0, "{program} {arguments:?}: {ran:?}");
}

fn does_what_it_must(scratch: &Scratch, library: &str) {
    let report = told(scratch.run(&["plugin", "check", library]));
    let suites = report.lines().filter(|line| line.ends_with(" 0 failed, 0 skipped")).count();
    assert_eq!(suites, 2, "in process and apart: {report}");
}

#[test]
fn a_new_plugin_in_c_builds_passes_and_is_used_until_somebody_changes_it() {
    let scratch = Scratch::trusted();
    told(scratch.run(&["plugin", "new", "mine", "--lang", "c"]));
    build(&scratch.path().join("mine"), "make", &[]);
    does_what_it_must(&scratch, "mine/libmine.so");

    told(scratch.run(&["plugin", "install", "mine/libmine.so", "--pin"]));
    let list: Vec<serde_json::Value> =
        serde_json::from_str(&told(scratch.run(&["plugin", "list", "--json"]))).unwrap();
    let mine = list.iter().find(|plugin| plugin["name"] == "mine").unwrap();
    assert_eq!((&mine["kinds"][0], &mine["error"]), (&"gpu".into(), &serde_json::Value::Null));
    let chosen = ["config", "check", "--set", "gpu.plugin=mine"];
    told(scratch.run(&chosen));

    let wrong = scratch.run(&["config", "check", "--set", "gpu.plugin=mine", "--set", "gpu.mine.devicez=2"]);
    assert_eq!(wrong.code, 78, "{wrong:?}");
    assert!(wrong.err.contains("mine.devicez"), "{}", wrong.err);

    let installed = scratch.path().join("plugins/libmine.so");
    let mut bytes = fs::read(&installed).unwrap();
    bytes.push(0);
    fs::write(&installed, bytes).unwrap();
    let refused = scratch.run(&chosen);
    assert_eq!(refused.code, 78, "{refused:?}");
    assert!(refused.err.contains("sha256"), "{}", refused.err);
}

#[test]
fn a_new_plugin_in_rust_builds_without_a_network_and_passes() {
    let scratch = Scratch::trusted();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    told(scratch.run(&["plugin", "new", "mine_too", "--lang", "rust", "--sdk", source.to_str().unwrap()]));
    let project = scratch.path().join("mine_too");
    // What was fetched for this workspace is what there is.
    fs::copy(source.join("Cargo.lock"), project.join("Cargo.lock")).unwrap();
    build(&project, env!("CARGO"), &["test", "--offline", "--quiet"]);
    build(&project, env!("CARGO"), &["build", "--offline", "--quiet"]);
    let library = concat!(env!("CARGO_TARGET_TMPDIR"), "/plugin-new/debug/libmine_too.so");
    does_what_it_must(&scratch, library);
}

#[test]
fn what_is_no_project_and_no_plugin_is_told() {
    let scratch = Scratch::new();
    fs::write(scratch.path().join("text.so"), "text").unwrap();
    for (wrong, says) in [
        (&["plugin", "check", "text.so"][..], "text.so"),
        (&["plugin", "check", "absent.so"], "absent.so"),
        (&["plugin", "install", "text.so"], "text.so"),
        (&["plugin", "new", "mine", "--lang", "rust", "--sdk", "."], "plugins/sdk"),
    ] {
        let ran = scratch.run(wrong);
        assert_eq!(ran.code, 1, "{wrong:?}: {ran:?}");
        assert!(ran.err.contains(says), "{wrong:?}: {}", ran.err);
    }
    assert_eq!(scratch.run(&["plugin", "new", "../up", "--lang", "c"]).code, 64);
    assert!(!scratch.path().join("plugins").exists());
}
