//! How a GPU, or anything else that is described by CDI, is given to a container.

use std::path::Path;

use cdi::{Edits, HookPoint};
use host_core::{PluginError, runtime::ContainerSpec};
use oci_spec::runtime::{
    Hook, HookBuilder, Hooks, HooksBuilder, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType, LinuxIntelRdt,
    LinuxIntelRdtBuilder, LinuxNetDeviceBuilder, Spec,
};

use super::{
    devices::{self, Given},
    incomplete, invalid, mounts, process, target, unsupported,
};

/// The best form that there is: by CDI, else by plain nodes. Docker's device requests alone are nothing that a runtime
/// without Docker can act on.
pub(super) fn attach(
    spec: &mut Spec,
    container: &ContainerSpec,
    registry: &cdi::Registry,
) -> Result<(), PluginError> {
    let Some(gpu) = &container.gpu else {
        return Ok(());
    };
    let resolved = (!gpu.cdi.is_empty()).then(|| registry.resolve(&gpu.cdi));
    match resolved {
        Some(Ok(edits)) => edits.iter().try_for_each(|edits| apply(spec, edits)),
        Some(Err(error)) if !gpu.devices.is_empty() => {
            tracing::warn!(%error, "the GPU is given without its libraries, as plain device nodes");
            add_devices(spec, devices::given(&gpu.devices)?)
        }
        _ if !gpu.devices.is_empty() => add_devices(spec, devices::given(&gpu.devices)?),
        Some(Err(error)) => Err(unsupported(format!(
            "the GPU cannot be given: {error}; have the vendor's tool write one, for example `nvidia-ctk cdi generate`"
        ))),
        None if !gpu.requests.is_empty() => Err(unsupported(
            "the GPU is only described by Docker's device requests, which this runtime cannot act on: describe it by \
             CDI, for example with `nvidia-ctk cdi generate`",
        )),
        None => Ok(()),
    }
}

/// In the order of the CDI specification's own implementation.
fn apply(spec: &mut Spec, edits: &Edits) -> Result<(), PluginError> {
    set_variables(spec, edits)?;
    let nodes: Result<Vec<_>, _> = edits.device_nodes.iter().map(node).collect();
    add_devices(spec, nodes?)?;
    add_net_devices(spec, edits)?;
    add_mounts(spec, edits)?;
    add_hooks(spec, edits)?;
    add_groups(spec, edits);
    if let (Some(linux), Some(rdt)) = (spec.linux_mut(), &edits.intel_rdt) {
        linux.set_intel_rdt(Some(intel_rdt(rdt)?));
    }
    Ok(())
}

fn set_variables(spec: &mut Spec, edits: &Edits) -> Result<(), PluginError> {
    let Some(process) = spec.process_mut() else {
        return Ok(());
    };
    let variables = process.env_mut().get_or_insert_default();
    for variable in &edits.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        process::set(variables, name, value)?;
    }
    Ok(())
}

/// Those that are there already get the new permissions besides.
fn add_devices(spec: &mut Spec, nodes: Vec<Given>) -> Result<(), PluginError> {
    let Some(linux) = spec.linux_mut() else {
        return Ok(());
    };
    let rules: Result<Vec<_>, _> = nodes.iter().filter_map(|node| devices::rule(node).transpose()).collect();
    let known = linux.devices().clone().unwrap_or_default();
    let mut all: Vec<_> = known.into_iter().map(|node| Given { node, permissions: String::new() }).collect();
    for node in nodes {
        devices::add(&mut all, node)?;
    }
    linux.set_devices(Some(all.into_iter().map(|given| given.node).collect()));
    if let Some(resources) = linux.resources_mut() {
        resources.devices_mut().get_or_insert_default().extend(rules?);
    }
    Ok(())
}

/// What the description leaves out is read from the host's node.
fn node(described: &cdi::DeviceNode) -> Result<Given, PluginError> {
    let path = &described.path;
    let mut node = match (described.kind.as_deref(), described.major, described.minor) {
        (Some("p"), ..) => numbered(path, LinuxDeviceType::P, 0, 0)?,
        (Some("b"), Some(major), Some(minor)) => numbered(path, LinuxDeviceType::B, major, minor)?,
        (Some("c" | "u"), Some(major), Some(minor)) => numbered(path, LinuxDeviceType::C, major, minor)?,
        _ => devices::node(described.on_host(), path)?,
    };
    if described.file_mode.is_some() {
        node.set_file_mode(described.file_mode);
    }
    if described.uid.is_some() {
        node.set_uid(described.uid);
    }
    if described.gid.is_some() {
        node.set_gid(described.gid);
    }
    let permissions = described.permissions.as_deref().filter(|given| !given.is_empty()).unwrap_or("rwm");
    Ok(Given { node, permissions: devices::permissions(permissions, path)?.to_owned() })
}

fn numbered(path: &Path, kind: LinuxDeviceType, major: i64, minor: i64) -> Result<LinuxDevice, PluginError> {
    let path = target("device", path)?;
    if !path.starts_with("/dev/") {
        return Err(unsupported(format!("device {} can only be put below /dev", path.display())));
    }
    LinuxDeviceBuilder::default().path(path).typ(kind).major(major).minor(minor).build().map_err(incomplete)
}

fn add_net_devices(spec: &mut Spec, edits: &Edits) -> Result<(), PluginError> {
    let Some(linux) = spec.linux_mut().as_mut().filter(|_| !edits.net_devices.is_empty()) else {
        return Ok(());
    };
    let mut all = linux.net_devices().clone().unwrap_or_default();
    for device in &edits.net_devices {
        let inside = LinuxNetDeviceBuilder::default().name(&*device.name).build().map_err(incomplete)?;
        all.insert(device.host_interface_name.clone(), inside);
    }
    linux.set_net_devices(Some(all));
    Ok(())
}

/// A mount of the container's at the same place gives way: the device would not work without its libraries.
fn add_mounts(spec: &mut Spec, edits: &Edits) -> Result<(), PluginError> {
    let all = spec.mounts_mut().get_or_insert_default();
    for described in &edits.mounts {
        let target = target("mount point", &described.container_path)?;
        let mut options: Vec<_> = described.options.iter().map(String::as_str).collect();
        let kind = described.kind.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("bind");
        if kind == "bind" && !options.iter().any(|&option| option == "bind" || option == "rbind") {
            options.push("rbind");
        }
        all.retain(|known| *known.destination() != target);
        all.push(mounts::mount(&target, kind, &described.host_path, &options)?);
    }
    Ok(())
}

fn add_hooks(spec: &mut Spec, edits: &Edits) -> Result<(), PluginError> {
    if edits.hooks.is_empty() {
        return Ok(());
    }
    let mut hooks = match spec.hooks() {
        Some(hooks) => hooks.clone(),
        None => HooksBuilder::default().build().map_err(incomplete)?,
    };
    for described in &edits.hooks {
        let hook = hook(described)?;
        at(&mut hooks, described.point).get_or_insert_default().push(hook);
    }
    spec.set_hooks(Some(hooks));
    Ok(())
}

fn at(hooks: &mut Hooks, point: HookPoint) -> &mut Option<Vec<Hook>> {
    match point {
        HookPoint::Prestart => hooks.prestart_mut(),
        HookPoint::CreateRuntime => hooks.create_runtime_mut(),
        HookPoint::CreateContainer => hooks.create_container_mut(),
        HookPoint::StartContainer => hooks.start_container_mut(),
        HookPoint::Poststart => hooks.poststart_mut(),
        HookPoint::Poststop => hooks.poststop_mut(),
    }
}

fn hook(described: &cdi::Hook) -> Result<Hook, PluginError> {
    if described.timeout.is_some_and(|seconds| seconds <= 0) {
        return Err(invalid(format!("the CDI hook {} has no time to run", described.path.display())));
    }
    let mut hook = HookBuilder::default()
        .path(&*described.path)
        .args(described.args.clone())
        .env(described.env.clone())
        .build()
        .map_err(incomplete)?;
    hook.set_timeout(described.timeout);
    Ok(hook)
}

/// [`super::apply_user`] keeps them.
fn add_groups(spec: &mut Spec, edits: &Edits) {
    let Some(process) = spec.process_mut() else {
        return;
    };
    let groups = process.user_mut().additional_gids_mut().get_or_insert_default();
    for gid in &edits.additional_gids {
        // Group 0 is everything that root's files keep from others: the specification has it ignored.
        if *gid != 0 && !groups.contains(gid) {
            groups.push(*gid);
        }
    }
}

fn intel_rdt(described: &cdi::IntelRdt) -> Result<LinuxIntelRdt, PluginError> {
    let mut rdt = LinuxIntelRdtBuilder::default().build().map_err(incomplete)?;
    rdt.set_clos_id(described.clos_id.clone())
        .set_l3_cache_schema(described.l3_cache_schema.clone())
        .set_mem_bw_schema(described.mem_bw_schema.clone())
        .set_schemata((!described.schemata.is_empty()).then(|| described.schemata.clone()))
        .set_enable_cmt(described.enable_cmt.then_some(true))
        .set_enable_mbm(described.enable_mbm.then_some(true))
        .set_enable_monitoring(described.enable_monitoring.then_some(true));
    Ok(rdt)
}
