//! From a [`ContainerSpec`] to the body of the engine's create request. Pure: what this engine could not put into
//! force is refused here, because the engine itself drops some of it silently or with a mere warning.

use std::path::Path;

use bollard::models::{
    ContainerCreateBody, DeviceMapping, DeviceRequest, HostConfig, HostConfigLogConfig, Mount as EngineMount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountType, PortBinding, PortMap, ResourcesUlimits,
};
use engine_http::invalid;
use host_core::{
    ErrorKind, PluginError,
    runtime::{
        Attachment, ContainerPort, ContainerSpec, Device, Limits, Mount, Network, PortMapping, Propagation,
        Result, Seccomp, Security, Tmpfs,
    },
};

use crate::{image::checked, support::Support};

/// What to send; the name travels in the query.
pub(crate) fn body(spec: &ContainerSpec, support: &Support) -> Result<ContainerCreateBody> {
    let gpu = spec.gpu.clone().unwrap_or_default();
    let mut host = HostConfig {
        network_mode: Some(network(spec.network).to_owned()),
        port_bindings: Some(port_bindings(spec)?),
        mounts: Some(spec.mounts.iter().map(mount).collect::<Result<_>>()?),
        tmpfs: Some(spec.tmpfs.iter().map(tmpfs).collect::<Result<_>>()?),
        shm_size: Some(number("shm_bytes", spec.shm_bytes)?),
        devices: Some(spec.devices.iter().map(device).collect::<Result<_>>()?),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(capabilities(&spec.security)),
        security_opt: Some(security_options(&spec.security, support)?),
        log_config: support.log_files.then(bounded_log),
        ..HostConfig::default()
    };
    apply_limits(&mut host, &spec.limits, support)?;
    attach(&mut host, &gpu, support)?;
    Ok(ContainerCreateBody {
        image: Some(checked(&spec.image)?.to_owned()),
        cmd: Some(spec.command.clone()).filter(|command| !command.is_empty()),
        env: Some(environment(spec, &gpu)?),
        labels: Some(spec.labels.clone().into_iter().collect()),
        tty: Some(spec.terminal),
        exposed_ports: Some(exposed_ports(&spec.ports)),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    })
}

/// Output kept per container; an application that prints for ever must not fill the host's disk. The engine's usual
/// driver stays, which an absent type means.
fn bounded_log() -> HostConfigLogConfig {
    let config = [("max-size", "10m"), ("max-file", "2")];
    let config = config.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    HostConfigLogConfig { typ: None, config: Some(config) }
}

/// The GPU's variables win: they say which device the lease is for.
fn environment(spec: &ContainerSpec, gpu: &Attachment) -> Result<Vec<String>> {
    let given = spec.env.iter().map(|(name, value)| (name, value.expose()));
    let given = given.filter(|(name, _)| !gpu.env.contains_key(*name));
    let leased = gpu.env.iter().map(|(name, value)| (name, value.as_str()));
    given
        .chain(leased)
        .map(|(name, value)| {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(invalid(format!("{name:?} cannot be an environment variable")));
            }
            Ok(format!("{name}={value}"))
        })
        .collect()
}

fn network(network: Network) -> &'static str {
    match network {
        Network::Bridge => "bridge",
        Network::Host => "host",
        Network::None => "none",
    }
}

fn port_name(port: &PortMapping) -> String {
    ContainerPort { port: port.container, protocol: port.protocol }.to_string()
}

/// The engine would discard ports without a network of the container's own.
fn port_bindings(spec: &ContainerSpec) -> Result<PortMap> {
    if spec.network != Network::Bridge && !spec.ports.is_empty() {
        return Err(invalid("ports can only be published with network = \"bridge\""));
    }
    let mut bindings = PortMap::new();
    for port in &spec.ports {
        let binding =
            PortBinding { host_ip: Some(port.host_ip.to_string()), host_port: Some(port.host.to_string()) };
        let of_port = bindings.entry(port_name(port)).or_default();
        of_port.get_or_insert_default().push(binding);
    }
    Ok(bindings)
}

/// Only exposed ports are published.
fn exposed_ports(ports: &[PortMapping]) -> Vec<String> {
    ports.iter().map(port_name).collect()
}

/// A mount, not a bind: the engine makes the missing source of a bind, as a directory of root's.
fn mount(mount: &Mount) -> Result<EngineMount> {
    let propagation = match mount.propagation {
        Propagation::Private => MountBindOptionsPropagationEnum::RPRIVATE,
        Propagation::Slave => MountBindOptionsPropagationEnum::RSLAVE,
        Propagation::Shared => MountBindOptionsPropagationEnum::RSHARED,
    };
    Ok(EngineMount {
        typ: Some(MountType::BIND),
        source: Some(text(&mount.source)?),
        target: Some(text(&mount.target)?),
        read_only: Some(mount.read_only),
        bind_options: Some(MountBindOptions {
            propagation: Some(propagation),
            ..MountBindOptions::default()
        }),
        ..EngineMount::default()
    })
}

fn tmpfs(tmpfs: &Tmpfs) -> Result<(String, String)> {
    Ok((text(&tmpfs.target)?, format!("size={}", tmpfs.size_bytes)))
}

fn device(device: &Device) -> Result<DeviceMapping> {
    Ok(DeviceMapping {
        path_on_host: Some(text(&device.host)?),
        path_in_container: Some(text(&device.container)?),
        cgroup_permissions: Some(device.permissions.clone()),
    })
}

fn capabilities(security: &Security) -> Vec<String> {
    let name = |capability: &host_core::runtime::Capability| capability.as_str().to_owned();
    security.capabilities.iter().map(name).collect()
}

fn security_options(security: &Security, support: &Support) -> Result<Vec<String>> {
    let mut options = Vec::new();
    match &security.seccomp {
        Seccomp::Default => {}
        Seccomp::Unconfined => options.push("seccomp=unconfined".to_owned()),
        Seccomp::Profile(json) => options.push(format!("seccomp={json}")),
    }
    if let Some(profile) = &security.apparmor {
        // Without AppArmor the engine ignores this, and the container would be unconfined.
        if !support.apparmor {
            return Err(unsupported("AppArmor is not enabled on this host", "security.apparmor"));
        }
        options.push(format!("apparmor={profile}"));
    }
    if security.no_new_privileges {
        options.push("no-new-privileges".to_owned());
    }
    Ok(options)
}

fn apply_limits(host: &mut HostConfig, limits: &Limits, support: &Support) -> Result<()> {
    if let Some(bytes) = limits.memory_bytes {
        needs(support.memory, "memory")?;
        let bytes = number("memory_bytes", bytes)?;
        host.memory = Some(bytes);
        // The sum of memory and swap: equal means no swap.
        host.memory_swap = Some(bytes);
    }
    if let Some(shares) = limits.cpu_shares {
        needs(support.cpu_shares, "cpu_shares")?;
        host.cpu_shares = Some(number("cpu_shares", shares)?);
    }
    if let Some(nano_cpus) = limits.nano_cpus {
        needs(support.cpu_quota, "nano_cpus")?;
        host.nano_cpus = Some(number("nano_cpus", nano_cpus)?);
    }
    if let Some(pids) = limits.pids {
        needs(support.pids, "pids")?;
        host.pids_limit = Some(number("pids", pids)?);
    }
    if let Some(files) = limits.open_files {
        let files = number("open_files", files)?;
        host.ulimits = Some(vec![ResourcesUlimits {
            name: Some("nofile".to_owned()),
            soft: Some(files),
            hard: Some(files),
        }]);
    }
    Ok(())
}

fn needs(has: bool, limit: &str) -> Result<()> {
    if has {
        return Ok(());
    }
    Err(unsupported("the kernel or this engine has no such cgroup controller", &format!("limits.{limit}")))
}

/// The best of the forms that the engine can apply.
fn attach(host: &mut HostConfig, gpu: &Attachment, support: &Support) -> Result<()> {
    if !gpu.cdi.is_empty() && support.cdi.has(&gpu.cdi) {
        host.device_requests = Some(vec![DeviceRequest {
            driver: Some("cdi".to_owned()),
            device_ids: Some(gpu.cdi.clone()),
            ..DeviceRequest::default()
        }]);
    } else if !gpu.requests.is_empty() {
        host.device_requests = Some(gpu.requests.iter().map(device_request).collect());
    } else if !gpu.devices.is_empty() {
        let devices = gpu.devices.iter().map(device).collect::<Result<Vec<_>>>()?;
        host.devices.get_or_insert_default().extend(devices);
    } else if !gpu.cdi.is_empty() {
        return Err(unsupported("this engine does not know the CDI device", &gpu.cdi.join(", ")));
    }
    Ok(())
}

fn device_request(request: &host_core::runtime::DeviceRequest) -> DeviceRequest {
    DeviceRequest {
        driver: Some(request.driver.clone()),
        device_ids: Some(request.ids.clone()),
        capabilities: Some(request.capabilities.clone()),
        ..DeviceRequest::default()
    }
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

fn unsupported(why: &str, what: &str) -> PluginError {
    PluginError::new(ErrorKind::Unsupported, format!("{what} cannot be applied: {why}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use host_core::runtime::EnvValue;

    use super::*;
    use crate::support::Cdi;

    fn everything() -> Support {
        Support {
            memory: true,
            pids: true,
            cpu_shares: true,
            cpu_quota: true,
            apparmor: true,
            log_files: true,
            platform: None,
            cdi: Cdi::Untold,
        }
    }

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

    fn host(spec: &ContainerSpec, support: &Support) -> HostConfig {
        body(spec, support).unwrap().host_config.unwrap()
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

    /// The driver of the device requests, and the devices.
    fn given(gpu: Attachment, cdi: Cdi) -> (Option<String>, Vec<String>) {
        let spec = ContainerSpec { gpu: Some(gpu), ..spec() };
        let host = host(&spec, &Support { cdi, ..everything() });
        let requests = host.device_requests.unwrap_or_default();
        let devices = host.devices.unwrap_or_default();
        (
            requests.into_iter().find_map(|request| request.driver),
            devices.into_iter().filter_map(|device| device.path_on_host).collect(),
        )
    }

    #[test]
    fn a_gpu_is_given_in_the_best_form_that_the_engine_knows() {
        let (all, mut no_requests) = (gpu(), gpu());
        assert_eq!(given(all.clone(), Cdi::Untold), (Some("cdi".to_owned()), vec![]));
        assert_eq!(given(all.clone(), Cdi::Off), (Some("nvidia".to_owned()), vec![]));
        // CDI is on, and this device is not described.
        assert_eq!(given(all, Cdi::Found([].into())), (Some("nvidia".to_owned()), vec![]));
        no_requests.requests.clear();
        assert_eq!(given(no_requests, Cdi::Off), (None, vec!["/dev/nvidia0".to_owned()]));
    }

    #[test]
    fn a_gpu_that_cannot_be_given_is_not_silently_left_out() {
        let only_cdi = Attachment { requests: vec![], devices: vec![], ..gpu() };
        let spec = ContainerSpec { gpu: Some(only_cdi), ..spec() };
        let without = Support { cdi: Cdi::Off, ..everything() };
        assert_eq!(body(&spec, &without).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn the_gpus_variable_is_sent_once_and_wins() {
        let env =
            [("NVIDIA_VISIBLE_DEVICES", EnvValue::from("all")), ("KEY", EnvValue::Secret("hunter2".into()))];
        let env = env.map(|(name, value)| (name.to_owned(), value)).into();
        let spec = ContainerSpec { env, gpu: Some(gpu()), ..spec() };
        let sent = body(&spec, &everything()).unwrap().env.unwrap();
        assert_eq!(sent, ["KEY=hunter2", "NVIDIA_VISIBLE_DEVICES=GPU-1"]);
    }

    #[test]
    fn a_variable_that_would_become_another_is_refused() {
        for name in ["", "A=B", "A\0"] {
            let env = [(name.to_owned(), EnvValue::from("x"))].into();
            let error = body(&ContainerSpec { env, ..spec() }, &everything()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{name:?}");
        }
    }

    #[test]
    fn what_cannot_be_put_into_force_is_refused() {
        let limit = |limits| ContainerSpec { limits, ..spec() };
        let none = Limits::default();
        let apparmor = Some("docker-custom".to_owned());
        for (without, spec) in [
            (Support { memory: false, ..everything() }, limit(Limits { memory_bytes: Some(1), ..none })),
            (Support { pids: false, ..everything() }, limit(Limits { pids: Some(1), ..none })),
            (Support { cpu_shares: false, ..everything() }, limit(Limits { cpu_shares: Some(1), ..none })),
            (Support { cpu_quota: false, ..everything() }, limit(Limits { nano_cpus: Some(1), ..none })),
            (
                Support { apparmor: false, ..everything() },
                ContainerSpec { security: Security { apparmor, ..Security::default() }, ..spec() },
            ),
        ] {
            assert!(body(&spec, &everything()).is_ok());
            assert_eq!(body(&spec, &without).unwrap_err().kind(), ErrorKind::Unsupported, "{without:?}");
        }
    }

    #[test]
    fn a_bind_has_its_propagation_and_an_absolute_path() {
        let bind = |source: &str, propagation| Mount {
            source: source.into(),
            target: "/x".into(),
            read_only: false,
            propagation,
        };
        for (propagation, sent) in [
            (Propagation::Private, MountBindOptionsPropagationEnum::RPRIVATE),
            (Propagation::Slave, MountBindOptionsPropagationEnum::RSLAVE),
            (Propagation::Shared, MountBindOptionsPropagationEnum::RSHARED),
        ] {
            let mount = mount(&bind("/x", propagation)).unwrap();
            assert_eq!(mount.bind_options.unwrap().propagation, Some(sent));
        }
        let error = mount(&bind("x", Propagation::Private)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }

    #[test]
    fn memory_is_limited_with_swap_included() {
        let limits = Limits { memory_bytes: Some(1 << 30), ..Limits::default() };
        let host = host(&ContainerSpec { limits, ..spec() }, &everything());
        assert_eq!((host.memory, host.memory_swap), (Some(1 << 30), Some(1 << 30)));
    }

    #[test]
    fn the_log_is_bounded_where_it_is_a_file() {
        let elsewhere = Support { log_files: false, ..everything() };
        assert_eq!(host(&spec(), &elsewhere).log_config, None);
        let config = host(&spec(), &everything()).log_config.unwrap();
        assert_eq!(config.typ, None, "the engine's usual driver");
        assert_eq!(config.config.unwrap()["max-size"], "10m");
    }

    #[test]
    fn nothing_is_added_that_was_not_asked_for() {
        let host = host(&spec(), &everything());
        assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
        assert_eq!(host.cap_add.unwrap(), [""; 0]);
        assert_eq!(host.security_opt.unwrap(), [""; 0]);
        assert_eq!((host.memory, host.pids_limit, host.ulimits), (None, None, None));
    }
}
