//! Devices, plain and by CDI.

use std::fs;

use tempfile::TempDir;

use super::*;

/// The rules for devices after the usual ones.
fn rules(spec: &Value) -> &[Value] {
    let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
    assert_eq!(rules[0], json!({ "allow": false, "access": "rwm" }));
    &rules[12..]
}

fn device(host: &str, inside: &str, permissions: &str) -> Device {
    Device { host: host.into(), container: inside.into(), permissions: permissions.to_owned() }
}

#[test]
fn a_device_is_made_and_may_be_opened() {
    let directory = TempDir::new().unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
    let devices = vec![device(link.to_str().unwrap(), "/dev/a", "r"), device("/dev/full", "/dev/b", "wm")];
    let spec = built(&ContainerSpec { devices, ..container() });
    let nodes = &spec["linux"]["devices"];
    let numbers = |index: usize| {
        let node = &nodes[index];
        (node["path"].clone(), node["type"].clone(), node["major"].clone(), node["minor"].clone())
    };
    assert_eq!(numbers(0), (json!("/dev/a"), json!("c"), json!(1), json!(5)));
    assert_eq!(numbers(1), (json!("/dev/b"), json!("c"), json!(1), json!(7)));
    assert_eq!(nodes[0]["fileMode"], 0o666);
    assert_eq!(
        rules(&spec),
        [
            json!({ "allow": true, "type": "c", "major": 1, "minor": 5, "access": "r" }),
            json!({ "allow": true, "type": "c", "major": 1, "minor": 7, "access": "wm" }),
        ]
    );
    assert!(rules(&built(&container())).is_empty());
}

#[test]
fn a_directory_stands_for_the_devices_in_it() {
    if !Path::new("/dev/pts/ptmx").exists() {
        println!("skipped: /dev/pts is no file system of terminals");
        return;
    }
    let spec =
        built(&ContainerSpec { devices: vec![device("/dev/pts", "/dev/terminals", "rw")], ..container() });
    let nodes = spec["linux"]["devices"].as_array().unwrap();
    assert!(nodes.iter().any(|node| node["path"] == "/dev/terminals/ptmx"), "{nodes:?}");
}

#[test]
fn devices_that_cannot_be_given_are_refused_by_name() {
    let invalid = ErrorKind::Invalid;
    for (device, kind) in [
        (device("/dev/nonexistent", "/dev/a", "r"), invalid),
        (device("/etc/hostname", "/dev/a", "r"), invalid),
        (device("/etc", "/dev/a", "r"), invalid),
        (device("dev/zero", "/dev/a", "r"), invalid),
        (device("/dev/zero", "/dev/../a", "r"), invalid),
        (device("/dev/zero", "/a", "r"), ErrorKind::Unsupported),
        (device("/dev/zero", "/dev/a", ""), invalid),
        (device("/dev/zero", "/dev/a", "rr"), invalid),
        (device("/dev/zero", "/dev/a", "x"), invalid),
    ] {
        assert_eq!(
            refused(&ContainerSpec { devices: vec![device.clone()], ..container() }),
            kind,
            "{device:?}"
        );
    }
    let devices = vec![device("/dev/zero", "/dev/a", "r"), device("/dev/full", "/dev/a", "r")];
    assert_eq!(refused(&ContainerSpec { devices, ..container() }), invalid);
    let error = try_built(
        &ContainerSpec { devices: vec![device("/dev/nonexistent", "/dev/a", "r")], ..container() },
        &place(&cdi::Registry::default()),
    );
    assert!(error.unwrap_err().to_string().contains("/dev/nonexistent"));
}

/// A description of one GPU with every kind of edit.
fn described() -> (TempDir, cdi::Registry) {
    let directory = TempDir::new().unwrap();
    let specification = json!({
        "cdiVersion": "1.0.0", "kind": "v.com/gpu",
        "containerEdits": { "hooks": [
            { "hookName": "createContainer", "path": "/bin/hook", "args": ["hook", "x"], "env": ["A=1"], "timeout": 9 },
        ] },
        "devices": [{ "name": "0", "containerEdits": {
            "env": ["GPU=cdi", "A=cdi"],
            "deviceNodes": [
                { "path": "/dev/gpu0", "hostPath": "/dev/zero", "permissions": "rw", "fileMode": 0o600, "gid": 44 },
                { "path": "/dev/gpu1", "type": "c", "major": 195, "minor": 1 },
                { "path": "/dev/gpu-events", "type": "p" },
            ],
            "mounts": [{ "hostPath": "/lib/x.so", "containerPath": "/lib/x.so", "options": ["ro", "rprivate"] }],
            "additionalGids": [0, 44],
            "intelRdt": { "closID": "gpu" },
            "netDevices": [{ "hostInterfaceName": "ib0", "name": "net1" }],
        } }],
    });
    fs::write(directory.path().join("v.json"), specification.to_string()).unwrap();
    let registry = cdi::Registry::read(&[directory.path().to_owned()]);
    (directory, registry)
}

fn gpu(cdi: &[&str], devices: Vec<Device>) -> ContainerSpec {
    let request = DeviceRequest {
        driver: "nvidia".to_owned(),
        ids: vec!["GPU-1".to_owned()],
        capabilities: vec![vec!["gpu".to_owned()]],
    };
    let cdi = cdi.iter().map(|&name| name.to_owned()).collect();
    let attachment = Attachment { cdi, requests: vec![request], devices, env: BTreeMap::new() };
    ContainerSpec { gpu: Some(attachment), ..container() }
}

#[test]
fn every_edit_of_a_cdi_device_is_applied() {
    let (_directory, registry) = described();
    let container = gpu(&["v.com/gpu=0"], vec![device("/dev/full", "/dev/full", "r")]);
    let spec = try_built(&container, &place(&registry)).unwrap();
    assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "HOSTNAME=name", "A=cdi", "GPU=cdi"]));
    assert_eq!(spec["process"]["user"]["additionalGids"], json!([0, 44]));
    let nodes = &spec["linux"]["devices"];
    assert_eq!((&nodes[0]["path"], &nodes[0]["minor"]), (&json!("/dev/gpu0"), &json!(5)));
    assert_eq!((&nodes[0]["fileMode"], &nodes[0]["gid"]), (&json!(0o600), &json!(44)));
    assert_eq!(nodes[1], json!({ "path": "/dev/gpu1", "type": "c", "major": 195, "minor": 1 }));
    assert_eq!((&nodes[2]["path"], &nodes[2]["type"]), (&json!("/dev/gpu-events"), &json!("p")));
    // The plain devices are another form of the same.
    assert_eq!(nodes.as_array().unwrap().len(), 3);
    // None for the pipe.
    assert_eq!(
        rules(&spec).last().unwrap(),
        &json!({ "allow": true, "type": "c", "major": 195, "minor": 1, "access": "rwm" })
    );
    assert_eq!(mount_at(&spec, "/lib/x.so")["options"], json!(["ro", "rprivate", "rbind"]));
    assert_eq!(spec["linux"]["intelRdt"]["closID"], "gpu");
    assert_eq!(spec["linux"]["netDevices"], json!({ "ib0": { "name": "net1" } }));
    let hook = json!({ "path": "/bin/hook", "args": ["hook", "x"], "env": ["A=1"], "timeout": 9 });
    assert_eq!(spec["hooks"], json!({ "createContainer": [hook] }));
}

#[test]
fn a_gpu_is_given_in_the_best_form_that_there_is_or_not_at_all() {
    let missing = gpu(&["v.com/gpu=9"], vec![device("/dev/full", "/dev/full", "r")]);
    assert_eq!(built(&missing)["linux"]["devices"][0]["path"], "/dev/full");
    for (spec, named) in [(gpu(&["v.com/gpu=9"], vec![]), "v.com/gpu=9"), (gpu(&[], vec![]), "nvidia-ctk")] {
        let error = try_built(&spec, &place(&cdi::Registry::default())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(named), "{error}");
    }
    let (directory, _) = described();
    fs::copy(directory.path().join("v.json"), directory.path().join("w.json")).unwrap();
    let ambiguous = cdi::Registry::read(&[directory.path().to_owned()]);
    let error = try_built(&gpu(&["v.com/gpu=0"], vec![]), &place(&ambiguous)).unwrap_err();
    assert!(error.to_string().contains("w.json"), "{error}");
}
