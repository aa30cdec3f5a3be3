//! The state file: what it keeps, and what happens when it is not one.
#![cfg(test)]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::StreamExt;
use host_core::{
    ErrorKind, PluginError, chain,
    pubsub::{Allocation, Heartbeat, InstanceFacts, InstanceStatus, MandelboxStatus, PubSub, Registered},
    registry::{Context, Role},
};
use serde_json::json;

fn facts(commit: &str) -> InstanceFacts {
    InstanceFacts {
        name: "host-1".parse().unwrap(),
        cloud_id: "i-1".to_owned(),
        image_id: "ami-1".to_owned(),
        region: "us-east-1".to_owned(),
        instance_type: "g4dn.xlarge".to_owned(),
        ip: "192.0.2.1".to_owned(),
        commit: commit.to_owned(),
    }
}

fn allocation(id: &str) -> Allocation {
    Allocation {
        id: id.parse().unwrap(),
        user: "user-1".parse().unwrap(),
        session: "session-1".parse().unwrap(),
        app: Some("browsers/chrome".parse().unwrap()),
    }
}

/// As the host builds it, with `state.json` in this directory.
async fn start(directory: &Path) -> Result<Arc<dyn PubSub>, PluginError> {
    let context = Context { state_dir: directory.to_owned(), local: true, role: Role::Service };
    let section = json!({"file": "state.json"});
    pubsub_memory::plugin().build(&section, context).await
}

fn names(directory: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| PathBuf::from(entry.unwrap().file_name())).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_restarted_host_finds_its_mandelboxes_and_may_register_again() {
    let directory = tempfile::tempdir().unwrap();
    let host = facts("aaaaaaa").name;
    let pubsub = start(directory.path()).await.unwrap();
    pubsub.register(&facts("aaaaaaa"), &Heartbeat::default()).await.unwrap();
    pubsub.allocate(&host, &allocation("a")).await.unwrap();
    pubsub.allocate(&host, &allocation("b")).await.unwrap();
    let b = allocation("b").id;
    pubsub.set_status(&host, &b, MandelboxStatus::Running).await.unwrap();
    pubsub.mark_draining(&host).await.unwrap();
    let before = pubsub.watch(&host).await.unwrap().next().await.unwrap().unwrap();
    drop(pubsub);

    let pubsub = start(directory.path()).await.unwrap();
    let mut watch = pubsub.watch(&host).await.unwrap();
    let after = watch.next().await.unwrap().unwrap();
    assert_eq!(after.mandelboxes, before.mandelboxes);
    assert_eq!(after.instance, Some(InstanceStatus::PreConnection), "the drain ended with its process");
    let answer = pubsub.register(&facts("bbbbbbb"), &Heartbeat::default()).await.unwrap();
    assert_eq!(answer, Registered::Active);
    let registered = watch.next().await.unwrap().unwrap();
    assert_eq!(registered.instance, Some(InstanceStatus::Active));
}

#[tokio::test]
async fn a_host_that_ended_well_leaves_no_rows() {
    let directory = tempfile::tempdir().unwrap();
    let host = facts("aaaaaaa").name;
    let pubsub = start(directory.path()).await.unwrap();
    pubsub.register(&facts("aaaaaaa"), &Heartbeat::default()).await.unwrap();
    pubsub.allocate(&host, &allocation("a")).await.unwrap();
    pubsub.unregister(&host).await.unwrap();
    drop(pubsub);
    let pubsub = start(directory.path()).await.unwrap();
    let state = pubsub.watch(&host).await.unwrap().next().await.unwrap().unwrap();
    assert_eq!(state.instance, None);
    assert!(state.mandelboxes.is_empty());
}

#[tokio::test]
async fn the_file_is_private_and_nothing_else_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let victim = directory.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    symlink(&victim, directory.path().join("state.json.new")).unwrap();
    let pubsub = start(directory.path()).await.unwrap();
    pubsub.register(&facts("aaaaaaa"), &Heartbeat::default()).await.unwrap();
    pubsub.allocate(&facts("").name, &allocation("a")).await.unwrap();
    drop(pubsub);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched", "a link was followed");
    let expected: Vec<PathBuf> = ["state.json", "state.json.lock", "victim"].map(PathBuf::from).into();
    assert_eq!(names(directory.path()), expected);
    for name in &expected[..2] {
        let mode = fs::metadata(directory.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name:?}");
    }
}

#[tokio::test]
async fn a_second_process_is_kept_away_until_the_first_has_ended() {
    let directory = tempfile::tempdir().unwrap();
    let first = start(directory.path()).await.unwrap();
    let error = start(directory.path()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("in use by another host service"), "{error}");
    drop(first);
    start(directory.path()).await.unwrap();
}

#[tokio::test]
async fn what_is_not_a_state_file_is_refused_with_the_remedy_and_left_alone() {
    let row = json!({
        "id": "a", "user": "u", "session": "s", "app": null, "status": "RUNNING", "created_ms": 1,
    });
    let bad_status = json!({
        "id": "a", "user": "u", "session": "s", "app": null, "status": "DANCING", "created_ms": 1,
    });
    for (text, reasons) in [
        (String::new(), ["repair it, or move it away", "EOF"]),
        ("{\"format\": 1, \"mandelb".to_owned(), ["repair it, or move it away", "line 1"]),
        (json!({"format": 2, "x": 1}).to_string(), ["has format 2", "run the version that wrote it"]),
        (json!({"format": 1}).to_string(), ["move it away", "missing field `mandelboxes`"]),
        (
            json!({"format": 1, "mandelboxes": {"h": [row], "g": [row]}}).to_string(),
            ["move it away", "mandelbox a is in it twice"],
        ),
        (json!({"format": 1, "mandelboxes": {"h": [bad_status]}}).to_string(), ["move it away", "DANCING"]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        fs::write(&path, &text).unwrap();
        let error = start(directory.path()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
        let told = chain(&error);
        assert!(reasons.iter().all(|reason| told.contains(reason)), "{text}: {told}");
        assert!(told.contains(path.to_str().unwrap()), "{told}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "it was changed");
    }
}

#[tokio::test]
async fn a_missing_directory_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let error = start(&directory.path().join("absent")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("does its directory exist"), "{error}");
}

#[tokio::test]
async fn a_disk_that_cannot_be_written_costs_only_the_memory() {
    let directory = tempfile::tempdir().unwrap();
    let host = facts("").name;
    let pubsub = start(directory.path()).await.unwrap();
    fs::create_dir(directory.path().join("state.json.new")).unwrap();
    pubsub.register(&facts("aaaaaaa"), &Heartbeat::default()).await.unwrap();
    pubsub.allocate(&host, &allocation("a")).await.unwrap();
    let state = pubsub.watch(&host).await.unwrap().next().await.unwrap().unwrap();
    assert_eq!(state.mandelboxes.len(), 1);
    drop(pubsub);
    assert!(!directory.path().join("state.json").exists());
}

#[test]
fn an_unknown_key_is_refused() {
    let error = pubsub_memory::plugin().check(&json!({"flie": "x"})).unwrap_err();
    assert!(error.message.contains("flie"), "{error}");
}
