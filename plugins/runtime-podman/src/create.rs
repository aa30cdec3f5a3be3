//! From a [`ContainerSpec`] to the body of the engine's create request. Pure, but for the file of a filter: what this
//! engine could not put into force is refused here, because the engine itself drops some of it silently.
//!
//! podman-api makes the body. What it cannot say, or says under a name that the engine ignores, is put right in
//! [`correct`].

use std::{
    collections::BTreeMap,
    fs::Permissions,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use engine_http::invalid;
use host_core::{
    ErrorKind, PluginError,
    runtime::{
        Attachment, ContainerSpec, Device, Limits, Mount, Network, PortMapping, Propagation, Result, Seccomp,
        Security, Tmpfs,
    },
};
use podman_api::{
    models::{ContainerMount, Namespace, PortMapping as EnginePort, PosixRlimit},
    opts::{ContainerCreateOpts, SystemdEnabled},
};
use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::{engine::Engine, error::unsupported, support::Support};

/// The kernel's own, for the quota of a limit.
const CPU_PERIOD_MICROS: u64 = 100_000;
/// Of a whole processor, for a microsecond in each period.
const NANOS_PER_QUOTA: u64 = 1_000_000_000 / CPU_PERIOD_MICROS;
/// Output kept per container; an application that prints for ever must not fill the host's disk.
const MOST_LOG_BYTES: u64 = 20 << 20;
/// What the engine sets where nobody says.
const MOST_PROCESSES: u64 = 1 << 20;

/// What to send, but for the image's name and the file of a filter.
pub(crate) fn body(spec: &ContainerSpec, support: &Support, cdi: &[PathBuf]) -> Result<Value> {
    body_with(spec, support, &|names| cdi::Registry::read(cdi).resolve(names).is_ok())
}

fn body_with(spec: &ContainerSpec, support: &Support, has_cdi: &dyn Fn(&[String]) -> bool) -> Result<Value> {
    let gpu = spec.gpu.clone().unwrap_or_default();
    let security = &spec.security;
    if security.apparmor.is_some() && !support.apparmor {
        return Err(unsupported("AppArmor is not enabled on this host", "security.apparmor"));
    }
    let mut devices: Vec<String> = spec.devices.iter().map(device).collect::<Result<_>>()?;
    devices.extend(attached(&gpu, has_cdi)?);
    let mut mounts: Vec<ContainerMount> = spec.mounts.iter().map(mount).collect::<Result<_>>()?;
    mounts.extend(spec.tmpfs.iter().map(tmpfs).collect::<Result<Vec<_>>>()?);
    let mut options = ContainerCreateOpts::builder()
        .name(spec.name.as_str())
        .env(environment(spec, &gpu)?)
        .labels(&spec.labels)
        .terminal(spec.terminal)
        .net_namespace(network(spec.network, support))
        .portmappings(ports(spec)?)
        .mounts(mounts)
        .shm_size(number("shm_bytes", spec.shm_bytes)?)
        .drop_capabilities(["ALL"])
        .add_capabilities(security.capabilities.iter().map(|capability| capability.as_str()))
        .r_limits(process_limits(&spec.limits, support))
        // The engine would give proxies from its own environment, and make room for what looks like an init system.
        .http_proxy(false)
        .systemd(SystemdEnabled::False);
    if !spec.command.is_empty() {
        options = options.command(&spec.command);
    }
    if let Some(profile) = &security.apparmor {
        options = options.apparmor_profile(profile);
    }
    if security.seccomp == Seccomp::Unconfined {
        options = options.seccomp_profile_path("unconfined");
    }
    let body = options.build().serialize().ok().and_then(|body| serde_json::from_str(&body).ok());
    let mut body: Value =
        body.ok_or_else(|| PluginError::new(ErrorKind::Internal, "a body that is no JSON"))?;
    body["devices"] = devices.into_iter().map(|path| json!({ "path": path })).collect();
    body["resource_limits"] = resources(&spec.limits, support)?;
    correct(&mut body, security, support);
    Ok(body)
}

/// What podman-api sends wrongly: `no_new_privilages`, which the engine does not know, and a log configuration of
/// another shape than the engine's.
fn correct(body: &mut Value, security: &Security, support: &Support) {
    body["no_new_privileges"] = security.no_new_privileges.into();
    if let Some(driver) = &support.log_files {
        body["log_configuration"] = json!({ "driver": driver, "size": MOST_LOG_BYTES });
    }
}

/// The engine reads a filter of system calls from a file, while it creates the container.
pub(crate) fn filter_file(security: &Security, engine: &Engine) -> Result<Option<NamedTempFile>> {
    let Seccomp::Profile(json) = &security.seccomp else {
        return Ok(None);
    };
    // The service's own directory cannot be entered by the user whose engine it is.
    let directory = if engine.support.rootless { std::env::temp_dir() } else { engine.scratch.clone() };
    let write = || -> io::Result<NamedTempFile> {
        let mut file = NamedTempFile::with_prefix_in("seccomp-", &directory)?;
        io::Write::write_all(&mut file, json.as_bytes())?;
        file.as_file().set_permissions(Permissions::from_mode(0o644))?;
        Ok(file)
    };
    let text = format!("cannot write the filter of system calls to {}", directory.display());
    write().map(Some).map_err(|error| PluginError::new(ErrorKind::Internal, text).with_source(error))
}

/// The GPU's variables win: they say which device the lease is for.
fn environment(spec: &ContainerSpec, gpu: &Attachment) -> Result<BTreeMap<String, String>> {
    let given = spec.env.iter().map(|(name, value)| (name.clone(), value.expose().to_owned()));
    let mut all: BTreeMap<String, String> = given.collect();
    all.extend(gpu.env.clone());
    for (name, value) in &all {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid(format!("{name:?} cannot be an environment variable")));
        }
    }
    Ok(all)
}

/// A user's engine knows itself how it reaches the network: slirp4netns until Podman 5, pasta since.
fn network(network: Network, support: &Support) -> Namespace {
    let mode = match network {
        Network::Bridge if support.rootless => "private",
        Network::Bridge => "bridge",
        Network::Host => "host",
        Network::None => "none",
    };
    Namespace { nsmode: Some(mode.to_owned()), value: None }
}

/// The engine would discard ports without a network of the container's own.
fn ports(spec: &ContainerSpec) -> Result<Vec<EnginePort>> {
    if spec.network != Network::Bridge && !spec.ports.is_empty() {
        return Err(invalid("ports can only be published with network = \"bridge\""));
    }
    Ok(spec.ports.iter().map(port).collect())
}

fn port(port: &PortMapping) -> EnginePort {
    EnginePort {
        container_port: Some(port.container),
        host_ip: Some(port.host_ip.to_string()),
        host_port: Some(port.host),
        protocol: Some(port.protocol.to_string()),
        range: None,
    }
}

fn mount(mount: &Mount) -> Result<ContainerMount> {
    let propagation = match mount.propagation {
        Propagation::Private => "rprivate",
        Propagation::Slave => "rslave",
        Propagation::Shared => "rshared",
    };
    let access = if mount.read_only { "ro" } else { "rw" };
    let options = ["rbind", propagation, access].map(str::to_owned);
    Ok(mounted("bind", text(&mount.source)?, text(&mount.target)?, options.into()))
}

/// As other engines make it: nothing of the image below it, and no programs on it.
fn tmpfs(tmpfs: &Tmpfs) -> Result<ContainerMount> {
    let options = ["rw", "noexec", "nosuid", "nodev", "notmpcopyup", "mode=1777"].map(str::to_owned);
    let size = format!("size={}", tmpfs.size_bytes);
    let options = options.into_iter().chain([size]).collect();
    Ok(mounted("tmpfs", "tmpfs".to_owned(), text(&tmpfs.target)?, options))
}

fn mounted(kind: &str, source: String, destination: String, options: Vec<String>) -> ContainerMount {
    ContainerMount {
        _type: Some(kind.to_owned()),
        source: Some(source),
        destination: Some(destination),
        options: Some(options),
        uid_mappings: None,
        gid_mappings: None,
    }
}

/// Host, container and permissions, which the engine takes apart at colons.
fn device(device: &Device) -> Result<String> {
    let (host, container) = (text(&device.host)?, text(&device.container)?);
    if host.contains(':') || container.contains(':') {
        return Err(invalid(format!(
            "{host} as {container} cannot be a device: podman splits it at a colon"
        )));
    }
    Ok(format!("{host}:{container}:{}", device.permissions))
}

/// The best of the forms that the engine can apply. Device requests are Docker's; a CDI name goes where devices go.
fn attached(gpu: &Attachment, has_cdi: &dyn Fn(&[String]) -> bool) -> Result<Vec<String>> {
    if !gpu.cdi.is_empty() && has_cdi(&gpu.cdi) {
        return Ok(gpu.cdi.clone());
    }
    if !gpu.devices.is_empty() {
        return gpu.devices.iter().map(device).collect();
    }
    if !gpu.cdi.is_empty() {
        return Err(unsupported(
            "no CDI specification on this host describes the device",
            &gpu.cdi.join(", "),
        ));
    }
    if !gpu.requests.is_empty() {
        return Err(unsupported(
            "podman knows no device requests",
            "a GPU without a CDI name or a device node",
        ));
    }
    Ok(Vec::new())
}

/// Soft and hard are the same, because Podman 4 takes one for the other. To one that is given the engine adds the other
/// as high as it goes, beyond what a host without `CAP_SYS_RESOURCE` allows.
fn process_limits(limits: &Limits, support: &Support) -> Vec<PosixRlimit> {
    let Some(files) = limits.open_files else {
        return Vec::new();
    };
    let limit =
        |kind: &str, most| PosixRlimit { type_: Some(kind.to_owned()), soft: Some(most), hard: Some(most) };
    let mut all = vec![limit("nofile", files)];
    if !support.rootless {
        let most = getrlimit(Resource::Nproc).maximum.unwrap_or(MOST_PROCESSES);
        all.push(limit("nproc", most.min(MOST_PROCESSES)));
    }
    all
}

/// As the OCI specification has them.
fn resources(limits: &Limits, support: &Support) -> Result<Value> {
    let mut all = json!({});
    if let Some(bytes) = limits.memory_bytes {
        needs(support, "memory", "memory_bytes")?;
        let bytes = number("memory_bytes", bytes)?;
        // The sum of memory and swap: equal means no swap.
        all["memory"] = json!({ "limit": bytes, "swap": bytes });
    }
    if let Some(shares) = limits.cpu_shares {
        needs(support, "cpu", "cpu_shares")?;
        all["cpu"]["shares"] = shares.into();
    }
    if let Some(nanos) = limits.nano_cpus {
        needs(support, "cpu", "nano_cpus")?;
        all["cpu"]["quota"] = number("nano_cpus", nanos / NANOS_PER_QUOTA)?.into();
        all["cpu"]["period"] = CPU_PERIOD_MICROS.into();
    }
    if let Some(pids) = limits.pids {
        needs(support, "pids", "pids")?;
        all["pids"]["limit"] = number("pids", pids)?.into();
    }
    Ok(all)
}

fn needs(support: &Support, controller: &str, limit: &str) -> Result<()> {
    if support.has(controller) {
        return Ok(());
    }
    let why = "podman has no such control group controller here; to a user's podman it must be delegated";
    Err(unsupported(why, &format!("limits.{limit}")))
}

fn number(what: &str, value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| invalid(format!("{what} = {value} is too large")))
}

fn text(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) if path.is_absolute() => Ok(text.to_owned()),
        _ => Err(invalid(format!("{} is no absolute path in UTF-8", path.display()))),
    }
}

#[cfg(test)]
mod tests;
