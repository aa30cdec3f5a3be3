use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
};

use host_config::AdminSettings;

use super::probe;
use crate::admin::{AdminServer, BindError};

#[tokio::test]
async fn nobody_else_may_use_the_socket() {
    let scratch = tempfile::tempdir().unwrap();
    let socket = scratch.path().join("made/for/it/admin.sock");
    let group = rustix::process::getegid().as_raw();
    let settings = AdminSettings { socket: socket.clone(), group: Some(group.to_string()) };
    let server = AdminServer::bind(&settings).unwrap();
    let found = fs::metadata(&socket).unwrap();
    assert_eq!((found.mode() & 0o7777, found.gid()), (0o660, group));
    let parent = fs::metadata(socket.parent().unwrap()).unwrap();
    assert_eq!(parent.permissions().mode() & 0o7777, 0o755);
    let names = |path: &std::path::Path| fs::read_dir(path).unwrap().count();
    assert_eq!(names(socket.parent().unwrap()), 1, "only the socket itself stays");
    drop(server);
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let scratch = tempfile::tempdir().unwrap();
    let settings = AdminSettings { socket: scratch.path().join("s"), group: None };
    drop(std::os::unix::net::UnixListener::bind(&settings.socket).unwrap());
    let first = AdminServer::bind(&settings).unwrap();
    let refused = || {
        let error = AdminServer::bind(&settings).unwrap_err();
        assert!(matches!(error, BindError::InUse(_)), "{error}");
    };
    refused();
    // Nobody accepts: what knocks stays in the queue until that is full.
    while probe(&settings.socket).is_ok() {}
    refused();
    let moved = scratch.path().join("moved");
    fs::rename(&settings.socket, &moved).unwrap();
    fs::write(&settings.socket, "precious").unwrap();
    let error = AdminServer::bind(&settings).unwrap_err();
    assert!(matches!(error, BindError::NotASocket(_)), "{error}");
    drop(first);
    assert!(settings.socket.exists(), "what is not ours stays");
}

#[tokio::test]
async fn a_path_that_no_client_could_use_is_told() {
    let settings = AdminSettings { socket: PathBuf::from(format!("/{}", "x".repeat(107))), group: None };
    let error = AdminServer::bind(&settings).unwrap_err();
    assert!(matches!(error, BindError::TooLong(_)), "{error}");
}

#[tokio::test]
async fn an_unknown_group_is_told() {
    let scratch = tempfile::tempdir().unwrap();
    let settings = AdminSettings { socket: scratch.path().join("s"), group: Some("no-such-group".into()) };
    let error = AdminServer::bind(&settings).unwrap_err();
    assert_eq!(error.to_string(), "admin.group: this host has no group \"no-such-group\"");
}
