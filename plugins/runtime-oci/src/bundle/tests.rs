use std::collections::BTreeMap;

use host_core::runtime::{
    Attachment, Device, DeviceRequest, EnvValue, Limits, Mount, PortMapping, Propagation, Protocol, Seccomp,
    Security, Tmpfs,
};
use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};
use serde_json::{Value, json};

use super::*;

mod devices;

fn container() -> ContainerSpec {
    ContainerSpec {
        name: "box".parse().unwrap(),
        image: "a/b:c".parse().unwrap(),
        command: Vec::new(),
        env: BTreeMap::new(),
        labels: [("org.kata.annotation".to_owned(), "x".to_owned())].into(),
        terminal: false,
        network: Network::Bridge,
        ports: Vec::new(),
        mounts: Vec::new(),
        tmpfs: Vec::new(),
        shm_bytes: 1 << 20,
        devices: Vec::new(),
        gpu: None,
        security: Security::default(),
        limits: Limits::default(),
    }
}

fn image(env: &[&str], entrypoint: &[&str], cmd: &[&str], directory: &str) -> ImageConfiguration {
    let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let config = ConfigBuilder::default()
        .env(owned(env))
        .entrypoint(owned(entrypoint))
        .cmd(owned(cmd))
        .working_dir(directory)
        .user("www")
        .build()
        .unwrap();
    ImageConfigurationBuilder::default().config(config).build().unwrap()
}

fn place(cdi: &cdi::Registry) -> Place<'_> {
    let file = |name: &str| PathBuf::from(format!("/host/{name}"));
    Place {
        rootfs: "rootfs".into(),
        cgroups_path: "/host-service/1".into(),
        cgroups: Cgroups::V2,
        counts_swap: true,
        hostname: "name".to_owned(),
        network: NetworkNamespace::Path("/run/netns/1".into()),
        files: Files { resolv_conf: file("resolv.conf"), hosts: file("hosts"), hostname: file("hostname") },
        apparmor: AppArmor::Absent,
        cdi,
    }
}

fn try_built(container: &ContainerSpec, place: &Place<'_>) -> Result<Value, PluginError> {
    let image = image(&["PATH=/bin", "A=image", "JUNK"], &["/init"], &["serve"], "/srv/");
    Ok(serde_json::to_value(spec(container, &image, place)?).unwrap())
}

fn built(container: &ContainerSpec) -> Value {
    try_built(container, &place(&cdi::Registry::default())).unwrap()
}

fn refused(container: &ContainerSpec) -> ErrorKind {
    try_built(container, &place(&cdi::Registry::default())).unwrap_err().kind()
}

fn mount_at<'a>(spec: &'a Value, target: &str) -> &'a Value {
    let found = spec["mounts"].as_array().unwrap().iter().find(|mount| mount["destination"] == target);
    found.unwrap_or_else(|| panic!("nothing is mounted at {target}"))
}

fn targets(spec: &Value) -> Vec<&str> {
    let mounts = spec["mounts"].as_array().unwrap().iter();
    mounts.map(|mount| mount["destination"].as_str().unwrap()).collect()
}

#[test]
fn the_process_is_what_docker_makes_of_the_image() {
    let spec = built(&container());
    assert_eq!(spec["ociVersion"], "1.0.2");
    assert_eq!(spec["root"], json!({ "path": "rootfs", "readonly": false }));
    assert_eq!(spec["hostname"], "name");
    // A runtime would take orders from annotations.
    assert_eq!(spec.get("annotations"), None);
    let nothing: [u8; 0] = [];
    assert_eq!(
        spec["process"],
        json!({
            "terminal": false,
            "user": { "uid": 0, "gid": 0, "umask": 0o022, "additionalGids": [0] },
            "args": ["/init", "serve"],
            "env": ["PATH=/bin", "HOSTNAME=name", "A=image"],
            "cwd": "/srv/",
            "capabilities": {
                "bounding": nothing, "effective": nothing, "permitted": nothing, "inheritable": nothing,
                "ambient": nothing,
            },
            "oomScoreAdj": 0,
        })
    );
    assert_eq!(image_user(&image(&[], &[], &[], "")), "www");
}

#[test]
fn a_command_replaces_the_images_and_keeps_its_entry_point() {
    let spec = built(&ContainerSpec { command: vec!["other".to_owned()], ..container() });
    assert_eq!(spec["process"]["args"], json!(["/init", "other"]));
    let registry = cdi::Registry::default();
    let error = super::spec(&container(), &image(&[], &[], &[], ""), &place(&registry)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let relative = super::spec(&container(), &image(&[], &["a"], &[], "srv"), &place(&registry)).unwrap();
    assert_eq!(relative.process().as_ref().unwrap().cwd(), Path::new("/srv"));
    assert!(super::spec(&container(), &image(&[], &["a"], &[], "/a/../.."), &place(&registry)).is_err());
}

#[test]
fn the_later_of_two_variables_wins_and_the_gpus_last() {
    let env = [("A", "container"), ("GPU", "all"), ("PATH", "/x")];
    let env = env.map(|(name, value)| (name.to_owned(), EnvValue::from(value))).into();
    let gpu = Attachment { env: [("GPU".to_owned(), "1".to_owned())].into(), ..Attachment::default() };
    let spec = built(&ContainerSpec { env, gpu: Some(gpu), terminal: true, ..container() });
    assert_eq!(spec["process"]["terminal"], true);
    assert_eq!(
        spec["process"]["env"],
        json!(["PATH=/x", "HOSTNAME=name", "TERM=xterm", "A=container", "GPU=1"])
    );
    for name in ["", "A=B", "A\0"] {
        let env = [(name.to_owned(), "x".into())].into();
        assert_eq!(refused(&ContainerSpec { env, ..container() }), ErrorKind::Invalid, "{name:?}");
    }
}

#[test]
fn security_is_as_said() {
    let security = Security {
        capabilities: ["KILL", "SYS_NICE"].map(|name| name.parse().unwrap()).into(),
        no_new_privileges: true,
        seccomp: Seccomp::Unconfined,
        apparmor: None,
    };
    let spec = built(&ContainerSpec { security: security.clone(), ..container() });
    for set in ["bounding", "effective", "permitted"] {
        let mut has: Vec<_> = spec["process"]["capabilities"][set].as_array().unwrap().clone();
        has.sort_by_key(Value::to_string);
        assert_eq!(has, ["CAP_KILL", "CAP_SYS_NICE"], "{set}");
    }
    assert_eq!(spec["process"]["noNewPrivileges"], true);
    assert_eq!(spec["linux"].get("seccomp"), None);
    assert_eq!(built(&container())["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");

    let security = Security { apparmor: Some("mine".to_owned()), ..security };
    let confined = ContainerSpec { security, ..container() };
    assert_eq!(refused(&confined), ErrorKind::Unsupported);
    let registry = cdi::Registry::default();
    let apparmor = AppArmor::Enabled { default: Some("usual".to_owned()) };
    let host = Place { apparmor, ..place(&registry) };
    assert_eq!(try_built(&confined, &host).unwrap()["process"]["apparmorProfile"], "mine");
    assert_eq!(try_built(&container(), &host).unwrap()["process"]["apparmorProfile"], "usual");
}

#[test]
fn limits_are_translated() {
    let limits = Limits {
        memory_bytes: Some(64 << 20),
        cpu_shares: Some(256),
        nano_cpus: Some(1_500_000_000),
        pids: Some(40),
        open_files: Some(1000),
    };
    let limited = ContainerSpec { limits, ..container() };
    let spec = built(&limited);
    let resources = &spec["linux"]["resources"];
    assert_eq!(resources["memory"], json!({ "limit": 64 << 20, "swap": 64 << 20 }));
    assert_eq!(resources["cpu"], json!({ "shares": 256, "quota": 150_000, "period": 100_000 }));
    assert_eq!(resources["pids"], json!({ "limit": 40 }));
    let files = json!([{ "type": "RLIMIT_NOFILE", "soft": 1000, "hard": 1000 }]);
    assert_eq!(spec["process"]["rlimits"], files);

    let registry = cdi::Registry::default();
    let without_swap = Place { counts_swap: false, ..place(&registry) };
    let spec = try_built(&limited, &without_swap).unwrap();
    assert_eq!(spec["linux"]["resources"]["memory"], json!({ "limit": 64 << 20 }));

    for (nano_cpus, memory_bytes) in [(Some(1), None), (None, Some(u64::MAX))] {
        let limits = Limits { nano_cpus, memory_bytes, ..Limits::default() };
        assert_eq!(refused(&ContainerSpec { limits, ..container() }), ErrorKind::Invalid, "{limits:?}");
    }
    let none = Limits { memory_bytes: Some(0), pids: Some(0), ..Limits::default() };
    let spec = built(&ContainerSpec { limits: none, ..container() });
    let members: Vec<_> = spec["linux"]["resources"].as_object().unwrap().keys().collect();
    assert_eq!(members, ["devices"]);
}

#[test]
fn namespaces_follow_the_network_and_the_control_groups() {
    let kinds = |spec: &Value| {
        let all = spec["linux"]["namespaces"].as_array().unwrap().iter();
        all.map(|namespace| namespace["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let spec = built(&container());
    assert_eq!(kinds(&spec), ["pid", "ipc", "uts", "mount", "network", "cgroup"]);
    assert_eq!(spec["linux"]["namespaces"][4]["path"], "/run/netns/1");
    assert_eq!(spec["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"], "0");

    let registry = cdi::Registry::default();
    let v1 = Cgroups::V1(vec!["/sys/fs/cgroup/cpu,cpuacct".into(), "/sys/fs/cgroup/memory".into()]);
    let place = Place { network: NetworkNamespace::Host, cgroups: v1, ..place(&registry) };
    let host = ContainerSpec { network: Network::Host, ..container() };
    let spec = try_built(&host, &place).unwrap();
    assert_eq!(kinds(&spec), ["pid", "ipc", "uts", "mount"]);
    assert_eq!(spec["linux"].get("sysctl"), None);
    let read_only = spec["linux"]["readonlyPaths"].as_array().unwrap();
    for name in ["cpu,cpuacct", "memory", "systemd"] {
        assert!(read_only.contains(&json!(format!("/sys/fs/cgroup/{name}"))), "{name} can be written");
    }
    // Never by mistake.
    assert_eq!(try_built(&container(), &place).unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(refused(&host), ErrorKind::Internal);
}

#[test]
fn ports_need_a_network_of_their_own() {
    let port = PortMapping { host_ip: [0, 0, 0, 0].into(), host: 1, container: 2, protocol: Protocol::Tcp };
    let spec = ContainerSpec { network: Network::None, ports: vec![port], ..container() };
    assert_eq!(refused(&spec), ErrorKind::Invalid);
}

#[test]
fn the_usual_mounts_are_dockers() {
    let spec = built(&container());
    assert_eq!(
        targets(&spec),
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/sys",
            "/sys/fs/cgroup",
            "/dev/mqueue",
            "/dev/shm",
            "/etc/resolv.conf",
            "/etc/hostname",
            "/etc/hosts"
        ]
    );
    assert_eq!(
        mount_at(&spec, "/dev/shm")["options"],
        json!(["nosuid", "noexec", "nodev", "mode=1777", "size=1048576"])
    );
    assert_eq!(
        mount_at(&spec, "/etc/hosts"),
        &json!({ "destination": "/etc/hosts", "type": "bind", "source": "/host/hosts", "options": ["rbind", "rprivate", "ro"] })
    );
    let spec = built(&ContainerSpec { shm_bytes: 0, ..container() });
    assert_eq!(mount_at(&spec, "/dev/shm")["options"][4], "size=67108864");
}

fn bind(target: &str, read_only: bool, propagation: Propagation) -> Mount {
    Mount { source: "/tmp".into(), target: target.into(), read_only, propagation }
}

#[test]
fn a_containers_mounts_come_from_the_root_down_and_replace_the_usual() {
    let spec = built(&ContainerSpec {
        mounts: vec![
            bind("/run/a/b", true, Propagation::Slave),
            bind("/etc/hosts", false, Propagation::Shared),
            bind("/dev/shm/", false, Propagation::Private),
        ],
        tmpfs: vec![Tmpfs { target: "/run".into(), size_bytes: 50 }],
        ..container()
    });
    let targets = targets(&spec);
    let at = |target: &str| targets.iter().position(|known| *known == target).unwrap();
    assert!(at("/run") < at("/run/a/b"));
    assert_eq!(targets.iter().filter(|target| **target == "/etc/hosts").count(), 1);
    assert_eq!(targets.iter().filter(|target| **target == "/dev/shm").count(), 1);
    assert_eq!(mount_at(&spec, "/run/a/b")["options"], json!(["rbind", "rslave", "ro", "rro"]));
    assert_eq!(mount_at(&spec, "/etc/hosts")["options"], json!(["rbind", "rshared"]));
    assert_eq!(mount_at(&spec, "/dev/shm")["options"], json!(["rbind", "rprivate"]));
    assert_eq!(
        mount_at(&spec, "/run")["options"],
        json!(["noexec", "nosuid", "nodev", "rprivate", "size=50"])
    );
}

#[test]
fn mounts_that_cannot_be_are_refused() {
    let missing = Mount { source: "/nonexistent/source".into(), ..bind("/a", false, Propagation::Private) };
    assert_eq!(refused(&ContainerSpec { mounts: vec![missing], ..container() }), ErrorKind::Invalid);
    for target in ["/", "a", "/a/../b", "/proc", "/proc/self", "/dev", "/sys", ""] {
        let mounts = vec![bind(target, false, Propagation::Private)];
        assert_eq!(refused(&ContainerSpec { mounts, ..container() }), ErrorKind::Invalid, "{target:?}");
    }
    let tmpfs = |size_bytes| Tmpfs { target: "/a".into(), size_bytes };
    let twice = ContainerSpec {
        mounts: vec![bind("/a/", false, Propagation::Private)],
        tmpfs: vec![tmpfs(1)],
        ..container()
    };
    assert_eq!(refused(&twice), ErrorKind::Invalid);
    // No size would be no limit.
    assert_eq!(refused(&ContainerSpec { tmpfs: vec![tmpfs(0)], ..container() }), ErrorKind::Invalid);
}
