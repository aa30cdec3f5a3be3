//! The first process: what it runs, with which variables, and what it may do.

use std::collections::HashSet;

use host_core::{
    PluginError,
    runtime::{Attachment, Capability, ContainerSpec, Limits, Security},
};
use oci_spec::{
    image::Config,
    runtime::{
        Capability as OciCapability, LinuxCapabilities, LinuxCapabilitiesBuilder, PosixRlimit,
        PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, UserBuilder,
    },
};

use super::{AppArmor, Place, incomplete, invalid, list, unsupported};

/// The engines' own, for images that say none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Said, because the supervisor's own would be inherited.
const UMASK: u32 = 0o022;

pub(super) fn process(
    container: &ContainerSpec,
    image: Option<&Config>,
    place: &Place<'_>,
) -> Result<Process, PluginError> {
    // Root until the root file system tells who the image's user is. Its group is said again because libcontainer
    // leaves the supervisor's own groups in force when none is given.
    let user = UserBuilder::default()
        .uid(0u32)
        .gid(0u32)
        .umask(UMASK)
        .additional_gids([0])
        .build()
        .map_err(incomplete)?;
    let mut process = ProcessBuilder::default()
        .terminal(container.terminal)
        .user(user)
        .args(arguments(container, image)?)
        .env(environment(container, image, place)?)
        .cwd(format!("/{}", working_directory(image)?.trim_start_matches('/')))
        .capabilities(capabilities(&container.security)?)
        // The supervisor's own may be protected from the kernel's choice; what runs inside must not be.
        .oom_score_adj(0)
        .build()
        .map_err(incomplete)?;
    process
        .set_rlimits(resource_limits(&container.limits)?)
        // Either said or absent: with `false`, libcontainer would load the system call filter too late to be allowed to.
        .set_no_new_privileges(container.security.no_new_privileges.then_some(true))
        .set_apparmor_profile(apparmor(&container.security, &place.apparmor)?);
    Ok(process)
}

/// The image's entry point, then the given command or the image's own.
fn arguments(container: &ContainerSpec, image: Option<&Config>) -> Result<Vec<String>, PluginError> {
    let command = match container.command.as_slice() {
        [] => list(image, Config::cmd),
        given => given,
    };
    let arguments: Vec<String> = list(image, Config::entrypoint).iter().chain(command).cloned().collect();
    if arguments.iter().any(|argument| argument.contains('\0')) {
        return Err(invalid("an argument with a zero byte cannot be given to a program"));
    }
    match arguments.first() {
        Some(program) if !program.is_empty() => Ok(arguments),
        _ => Err(invalid(format!("{} says no program to run: give a command", container.image))),
    }
}

fn working_directory(image: Option<&Config>) -> Result<&str, PluginError> {
    let path = image.and_then(|config| config.working_dir().as_deref()).unwrap_or_default();
    if path.contains('\0') || path.split('/').any(|part| part == "..") {
        return Err(invalid(format!("the image's working directory {path:?} is no plain path")));
    }
    Ok(path)
}

/// Of two of the same name the later wins: the engines' usual ones, the image's, the container's, and last the GPU's,
/// which say which device the lease is for.
fn environment(
    container: &ContainerSpec,
    image: Option<&Config>,
    place: &Place<'_>,
) -> Result<Vec<String>, PluginError> {
    let mut variables = vec![format!("PATH={DEFAULT_PATH}"), format!("HOSTNAME={}", place.hostname)];
    if container.terminal {
        variables.push("TERM=xterm".to_owned());
    }
    for variable in list(image, Config::env) {
        // Without a value it sets nothing.
        let Some((name, value)) = variable.split_once('=') else {
            continue;
        };
        set(&mut variables, name, value)?;
    }
    for (name, value) in &container.env {
        set(&mut variables, name, value.expose())?;
    }
    for (name, value) in container.gpu.iter().flat_map(|Attachment { env, .. }| env) {
        set(&mut variables, name, value)?;
    }
    Ok(variables)
}

/// Sets a variable where it stands, or at the end.
pub(super) fn set(variables: &mut Vec<String>, name: &str, value: &str) -> Result<(), PluginError> {
    if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
        return Err(invalid(format!("{name:?} cannot be an environment variable")));
    }
    let variable = format!("{name}={value}");
    let same = |known: &&mut String| known.split_once('=').is_some_and(|(known, _)| known == name);
    match variables.iter_mut().find(same) {
        Some(known) => *known = variable,
        None => variables.push(variable),
    }
    Ok(())
}

/// Nothing is inheritable or ambient, as in the engines: only a program's own bits could raise what it has.
fn capabilities(security: &Security) -> Result<LinuxCapabilities, PluginError> {
    let given: HashSet<OciCapability> =
        security.capabilities.iter().map(capability).collect::<Result<_, _>>()?;
    LinuxCapabilitiesBuilder::default()
        .bounding(given.clone())
        .effective(given.clone())
        .permitted(given)
        .inheritable([])
        .ambient([])
        .build()
        .map_err(incomplete)
}

fn capability(capability: &Capability) -> Result<OciCapability, PluginError> {
    let name = capability.as_str();
    name.parse().map_err(|_| unsupported(format!("capability {name} is not known to this runtime")))
}

fn resource_limits(limits: &Limits) -> Result<Option<Vec<PosixRlimit>>, PluginError> {
    let Some(files) = limits.open_files else {
        return Ok(None);
    };
    let limit = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(files).hard(files);
    Ok(Some(vec![limit.build().map_err(incomplete)?]))
}

fn apparmor(security: &Security, host: &AppArmor) -> Result<Option<String>, PluginError> {
    match (&security.apparmor, host) {
        (Some(profile), AppArmor::Absent) => Err(unsupported(format!(
            "AppArmor is not enabled on this host, and security.apparmor asks for {profile}: leave it out"
        ))),
        (Some(profile), AppArmor::Enabled { .. }) => Ok(Some(profile.clone())),
        (None, AppArmor::Enabled { default }) => Ok(default.clone()),
        (None, AppArmor::Absent) => Ok(None),
    }
}
