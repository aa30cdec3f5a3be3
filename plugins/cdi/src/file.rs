//! One specification file: read within bounds, trusted only when nobody else can write it, and checked.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use serde::{Deserialize, de::IgnoredAny};

use crate::{
    edits::Edits,
    name::{QualifiedName, is_kind},
};

/// A node with eight GPUs and every way to cut them up is about 100 kB.
const LARGEST_BYTES: u64 = 4 << 20;

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("anybody may write it, and it decides what runs as root: `chmod o-w` it")]
    WorldWritable,
    #[error("group {0} may write it, and it decides what runs as root: `chmod g-w` it")]
    GroupWritable(u32),
    #[error("it belongs to user {0}, and it decides what runs as root: `chown root` it")]
    Foreign(u32),
    #[error("it is no regular file")]
    Irregular,
    #[error("it is larger than {LARGEST_BYTES} bytes")]
    TooLarge,
    #[error("{0}")]
    Malformed(String),
    #[error("its cdiVersion is {0:?}; versions 0.2 to 1.x are understood")]
    Version(String),
    #[error("its kind is {0:?} instead of vendor/class")]
    Kind(String),
    #[error("{0:?} cannot be a device's name")]
    Name(String),
    #[error("{0:?} is described twice in it")]
    Twice(String),
    #[error("{edits} cannot be applied: {why}")]
    Edits { edits: String, why: String },
}

/// A specification: devices of one kind.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Specification {
    cdi_version: String,
    pub(crate) kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: IgnoredAny,
    pub(crate) devices: Vec<Device>,
    #[serde(default)]
    pub(crate) container_edits: Edits,
}

/// One of its devices.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Device {
    pub(crate) name: String,
    #[serde(default, rename = "annotations")]
    _annotations: IgnoredAny,
    #[serde(default)]
    pub(crate) container_edits: Edits,
}

/// Reads a `.json` or `.yaml` file whole.
pub(crate) fn read(path: &Path) -> Result<Specification, Refusal> {
    // Before it is opened: opening a pipe would wait for its writer.
    if !fs::metadata(path)?.is_file() {
        return Err(Refusal::Irregular);
    }
    let file = File::open(path)?;
    must_be_trusted(&file.metadata()?)?;
    let mut text = String::new();
    // One byte more tells a file that is too large from one that just fits, whatever its metadata said.
    file.take(LARGEST_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST_BYTES {
        return Err(Refusal::TooLarge);
    }
    parse(&text, path.extension().is_some_and(|extension| extension == "json"))
}

/// Only root and the user of this process may decide what it runs.
pub(crate) fn must_be_trusted(metadata: &Metadata) -> Result<(), Refusal> {
    if metadata.mode() & 0o002 != 0 {
        return Err(Refusal::WorldWritable);
    }
    if metadata.mode() & 0o020 != 0 && metadata.gid() != 0 {
        return Err(Refusal::GroupWritable(metadata.gid()));
    }
    let owner = metadata.uid();
    let own = fs::metadata("/proc/self")?.uid();
    if owner != 0 && owner != own { Err(Refusal::Foreign(owner)) } else { Ok(()) }
}

pub(crate) fn parse(text: &str, is_json: bool) -> Result<Specification, Refusal> {
    let specification: Specification = if is_json {
        serde_json::from_str(text).map_err(|error| Refusal::Malformed(error.to_string()))?
    } else {
        // Without the excerpt that it would print over several lines.
        serde_saphyr::from_str(text)
            .map_err(|error| Refusal::Malformed(error.without_snippet().to_string()))?
    };
    check(&specification)?;
    Ok(specification)
}

fn check(specification: &Specification) -> Result<(), Refusal> {
    if !is_understood(&specification.cdi_version) {
        return Err(Refusal::Version(specification.cdi_version.clone()));
    }
    if !is_kind(&specification.kind) {
        return Err(Refusal::Kind(specification.kind.clone()));
    }
    check_edits("containerEdits of all", &specification.container_edits)?;
    let mut names = std::collections::BTreeSet::new();
    for device in &specification.devices {
        if QualifiedName::new(&specification.kind, &device.name).is_none() {
            return Err(Refusal::Name(device.name.clone()));
        }
        if !names.insert(&device.name) {
            return Err(Refusal::Twice(device.name.clone()));
        }
        check_edits(&device.name, &device.container_edits)?;
    }
    Ok(())
}

/// Later 1.x may only add members, and those that are not known here are refused by name.
fn is_understood(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(0)), Some(Ok(minor))) => (2..=8).contains(&minor),
        (Some(Ok(1)), Some(Ok(_))) => true,
        _ => false,
    }
}

fn check_edits(of: &str, edits: &Edits) -> Result<(), Refusal> {
    let refuse = |why: String| Err(Refusal::Edits { edits: format!("{of:?}"), why });
    let mut variables = edits.env.iter().chain(edits.hooks.iter().flat_map(|hook| &hook.env));
    if let Some(bad) = variables.find(|text| !is_variable(text)) {
        return refuse(format!("{bad:?} is no NAME=value"));
    }
    for node in &edits.device_nodes {
        if !node.path.is_absolute() || !node.on_host().is_absolute() {
            return refuse(format!("device node {:?} is no absolute path", node.path));
        }
        if !node.kind.as_deref().is_none_or(|kind| matches!(kind, "b" | "c" | "u" | "p")) {
            return refuse(format!("device node {:?} is of no type b, c, u or p", node.path));
        }
        if !node.permissions.as_deref().is_none_or(|given| given.chars().all(|one| "rwm".contains(one))) {
            return refuse(format!("the permissions of device node {:?} are not of rwm", node.path));
        }
    }
    for mount in &edits.mounts {
        if mount.host_path.as_os_str().is_empty() || !mount.container_path.is_absolute() {
            return refuse(format!("mount {:?} at {:?}", mount.host_path, mount.container_path));
        }
    }
    if let Some(hook) = edits.hooks.iter().find(|hook| !hook.path.is_absolute()) {
        return refuse(format!("hook {:?} is no absolute path", hook.path));
    }
    let mut interfaces = edits.net_devices.iter();
    if interfaces.any(|device| device.name.is_empty() || device.host_interface_name.is_empty()) {
        return refuse("a net device has no name".to_owned());
    }
    Ok(())
}

fn is_variable(text: &str) -> bool {
    text.split_once('=').is_some_and(|(name, _)| !name.is_empty()) && !text.contains('\0')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What `nvidia-ctk cdi generate` writes, shortened.
    const YAML: &str = r#"
---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
    - name: "0"
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
            - path: /dev/dri/card1
              hostPath: /dev/dri/card1
              fileMode: 432
              permissions: rw
containerEdits:
    env:
        - NVIDIA_VISIBLE_DEVICES=void
    hooks:
        - hookName: createContainer
          path: /usr/bin/nvidia-cdi-hook
          args: [nvidia-cdi-hook, create-symlinks, --link, "../libnvidia.so.1::/usr/lib"]
          env: [NVIDIA_CTK_DEBUG=false]
    mounts:
        - hostPath: /usr/lib/libcuda.so.1
          containerPath: /usr/lib/libcuda.so.1
          options: [ro, nosuid, nodev, rbind, rprivate]
"#;

    #[test]
    fn a_vendors_yaml_is_read() {
        let specification = parse(YAML, false).unwrap();
        assert_eq!(specification.kind, "nvidia.com/gpu");
        let nodes = &specification.devices[0].container_edits.device_nodes;
        assert_eq!(nodes[1].file_mode, Some(0o660));
        let hook = &specification.container_edits.hooks[0];
        assert_eq!(hook.point, crate::HookPoint::CreateContainer);
        assert_eq!(hook.args[1], "create-symlinks");
        assert_eq!(specification.container_edits.mounts[0].options[0], "ro");
    }

    fn json(devices: &str) -> String {
        format!(r#"{{"cdiVersion":"1.0.0","kind":"v.com/c","devices":[{devices}]}}"#)
    }

    #[test]
    fn every_edit_of_the_specification_is_known() {
        let device = r#"{"name":"a","annotations":{"k":"v"},"containerEdits":{
            "env":["A=1"],"additionalGids":[44],
            "deviceNodes":[{"path":"/dev/a","type":"c","major":1,"minor":2,"uid":3,"gid":4}],
            "netDevices":[{"hostInterfaceName":"eth9","name":"net1"}],
            "hooks":[{"hookName":"prestart","path":"/bin/x","timeout":5}],
            "intelRdt":{"closID":"c","l3CacheSchema":"L3:0=f","memBwSchema":"MB:0=5","enableCMT":true,
                        "enableMBM":true,"schemata":["L3:0=f"],"enableMonitoring":true}}}"#;
        let edits = parse(&json(device), true).unwrap().devices.remove(0).container_edits;
        assert_eq!(edits.additional_gids, [44]);
        assert_eq!(edits.net_devices[0].name, "net1");
        assert!(edits.intel_rdt.unwrap().enable_monitoring);
    }

    #[test]
    fn what_is_not_understood_is_refused_and_named() {
        for (device, named) in [
            (r#"{"name":"a","containerEdits":{"novelties":[]}}"#, "novelties"),
            (r#"{"name":"-a"}"#, "-a"),
            (r#"{"name":"a"},{"name":"a"}"#, "twice"),
            (r#"{"name":"a","containerEdits":{"env":["A"]}}"#, "NAME=value"),
            (r#"{"name":"a","containerEdits":{"deviceNodes":[{"path":"dev/a"}]}}"#, "absolute"),
            (r#"{"name":"a","containerEdits":{"deviceNodes":[{"path":"/dev/a","type":"d"}]}}"#, "type"),
            (r#"{"name":"a","containerEdits":{"deviceNodes":[{"path":"/a","permissions":"x"}]}}"#, "rwm"),
            (r#"{"name":"a","containerEdits":{"mounts":[{"hostPath":"/a"}]}}"#, "mount"),
            (r#"{"name":"a","containerEdits":{"hooks":[{"hookName":"never","path":"/a"}]}}"#, "never"),
            (r#"{"name":"a","containerEdits":{"hooks":[{"hookName":"poststop","path":"a"}]}}"#, "absolute"),
        ] {
            let refusal = parse(&json(device), true).unwrap_err().to_string();
            assert!(refusal.contains(named), "{named} is not in {refusal:?}");
        }
        for version in ["", "0.1.0", "0.9.0", "2.0.0", "one"] {
            let text = json("").replace("1.0.0", version);
            assert!(matches!(parse(&text, true), Err(Refusal::Version(_))), "{version:?} was accepted");
        }
    }

    #[test]
    fn a_document_that_grows_out_of_itself_is_refused() {
        let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let before = format!("*a{}", level - 1);
            text.push_str(&format!("a{level}: &a{level} [{}]\n", [before.as_str(); 9].join(",")));
        }
        assert!(parse(&text, false).is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_the_readers_panic(text in "\\PC{0,200}|[-a-z:\\[\\]{}\",& *\n]{0,200}") {
            let _ = parse(&text, true).is_ok();
            let _ = parse(&text, false).is_ok();
        }
    }
}
