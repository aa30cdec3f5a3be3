use host_core::runtime::EnvValue;

use super::*;
use crate::support::tests::everything;

fn spec() -> ContainerSpec {
    ContainerSpec {
        name: "box".parse().unwrap(),
        image: "a/b:c".parse().unwrap(),
        command: Vec::new(),
        env: BTreeMap::new(),
        labels: BTreeMap::new(),
        terminal: false,
        network: Network::Bridge,
        ports: Vec::new(),
        mounts: Vec::new(),
        tmpfs: Vec::new(),
        shm_bytes: 0,
        devices: Vec::new(),
        gpu: None,
        security: Security::default(),
        limits: Limits::default(),
    }
}

fn sent(spec: &ContainerSpec) -> Value {
    body_with(spec, &everything(), &|_| true).unwrap()
}

fn gpu() -> Attachment {
    Attachment {
        cdi: vec!["nvidia.com/gpu=0".to_owned()],
        requests: vec![host_core::runtime::DeviceRequest {
            driver: "nvidia".to_owned(),
            ids: vec!["GPU-1".to_owned()],
            capabilities: vec![vec!["gpu".to_owned()]],
        }],
        devices: vec![Device::same("/dev/nvidia0")],
        env: [("NVIDIA_VISIBLE_DEVICES".to_owned(), "GPU-1".to_owned())].into(),
    }
}

fn given(gpu: Attachment, is_described: bool) -> Result<Value> {
    let spec = ContainerSpec { gpu: Some(gpu), ..spec() };
    Ok(body_with(&spec, &everything(), &|_| is_described)?["devices"].clone())
}

#[test]
fn a_gpu_is_given_in_the_best_form_that_this_host_knows() {
    assert_eq!(given(gpu(), true).unwrap(), json!([{ "path": "nvidia.com/gpu=0" }]));
    assert_eq!(given(gpu(), false).unwrap(), json!([{ "path": "/dev/nvidia0:/dev/nvidia0:rwm" }]));
}

#[test]
fn a_gpu_that_cannot_be_given_is_not_silently_left_out() {
    let only_cdi = Attachment { requests: vec![], devices: vec![], ..gpu() };
    let only_requests = Attachment { cdi: vec![], devices: vec![], ..gpu() };
    for gpu in [only_cdi, only_requests] {
        assert_eq!(given(gpu, false).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn the_gpus_variable_is_sent_once_and_wins() {
    let env =
        [("NVIDIA_VISIBLE_DEVICES", EnvValue::from("all")), ("KEY", EnvValue::Secret("hunter2".into()))];
    let env = env.map(|(name, value)| (name.to_owned(), value)).into();
    let sent = sent(&ContainerSpec { env, gpu: Some(gpu()), ..spec() });
    assert_eq!(sent["env"], json!({ "KEY": "hunter2", "NVIDIA_VISIBLE_DEVICES": "GPU-1" }));
}

#[test]
fn what_the_engine_would_take_for_something_else_is_refused() {
    let variable = |name: &str| ContainerSpec { env: [(name.to_owned(), "x".into())].into(), ..spec() };
    let device = |path: &str| ContainerSpec { devices: vec![Device::same(path)], ..spec() };
    for spec in [variable(""), variable("A=B"), variable("A\0"), device("/dev/a:b"), device("dev/a")] {
        let error = body_with(&spec, &everything(), &|_| true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{spec:?}");
    }
}

#[test]
fn what_cannot_be_put_into_force_is_refused() {
    let limit = |limits| ContainerSpec { limits, ..spec() };
    let none = Limits::default();
    let security = Security { apparmor: Some("docker-custom".to_owned()), ..Security::default() };
    for spec in [
        limit(Limits { memory_bytes: Some(1), ..none }),
        limit(Limits { pids: Some(1), ..none }),
        limit(Limits { cpu_shares: Some(1), ..none }),
        limit(Limits { nano_cpus: Some(1), ..none }),
        ContainerSpec { security, ..spec() },
    ] {
        assert!(body_with(&spec, &everything(), &|_| true).is_ok());
        let error = body_with(&spec, &Support::default(), &|_| true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{spec:?}");
    }
}

/// podman-api has these under other names or in another shape.
#[test]
fn what_podman_api_sends_wrongly_is_put_right() {
    let security = Security { no_new_privileges: true, ..Security::default() };
    let sent = sent(&ContainerSpec { security, ..spec() });
    assert_eq!(sent["no_new_privileges"], true);
    assert_eq!(sent["log_configuration"], json!({ "driver": "k8s-file", "size": MOST_LOG_BYTES }));
}

#[test]
fn limits_are_sent_as_the_engine_reads_them() {
    let limits = Limits {
        memory_bytes: Some(1 << 30),
        cpu_shares: Some(512),
        nano_cpus: Some(250_000_000),
        pids: Some(40),
        open_files: Some(321),
    };
    let sent = sent(&ContainerSpec { limits, ..spec() });
    let expected = json!({
        "memory": { "limit": 1 << 30, "swap": 1 << 30 },
        "cpu": { "shares": 512, "quota": 25_000, "period": 100_000 },
        "pids": { "limit": 40 },
    });
    assert_eq!(sent["resource_limits"], expected);
    assert_eq!(sent["r_limits"][0], json!({ "type": "nofile", "soft": 321, "hard": 321 }));
    // The engine would raise it beyond what this host allows.
    assert_eq!(sent["r_limits"][1]["type"], "nproc");
}

#[test]
fn nothing_is_added_that_was_not_asked_for() {
    let sent = sent(&spec());
    assert_eq!(sent["cap_drop"], json!(["ALL"]));
    for nothing in ["cap_add", "devices", "mounts", "portmappings", "r_limits"] {
        assert_eq!(sent[nothing], json!([]), "{nothing}");
    }
    assert_eq!(sent["resource_limits"], json!({}));
    assert_eq!((&sent["httpproxy"], &sent["systemd"]), (&json!(false), &json!("false")));
    assert!(sent.get("command").is_none() && sent.get("seccomp_profile_path").is_none());
}
