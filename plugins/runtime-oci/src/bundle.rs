//! From a [`ContainerSpec`] and its image to an OCI runtime specification: what goes into a bundle's `config.json`.
//!
//! The result is what Docker gives a container for the same specification, and is the same for every OCI runtime;
//! [`embedded::adapt`] then works around what libcontainer reads differently. Deciding is pure except that device
//! nodes and the sources of binds are looked at on the host. What cannot be put into force is refused here, because a
//! runtime drops some of it silently.
//!
//! Not in it, because others apply them: the name and the labels (the container's record), the published ports
//! (its network), and the image's user by name (it needs the root file system: [`resolve_user`]).

mod devices;
pub(crate) mod embedded;
pub(crate) mod files;
mod gpu;
mod kernel;
mod mounts;
mod process;
mod resources;
mod user;

use std::path::{Path, PathBuf};

use host_core::{
    ErrorKind, PluginError,
    runtime::{ContainerSpec, Network},
};
use oci_spec::{
    OciSpecError,
    image::{Config, ImageConfiguration},
    runtime::{RootBuilder, Spec, SpecBuilder},
};

pub(crate) use user::{apply_user, resolve_user};

/// The oldest version that has all that is used here: some runtimes take no later one.
const OCI_VERSION: &str = "1.0.2";

/// Where a container is to live, as far as its specification does not say.
#[derive(Debug, Clone)]
pub(crate) struct Place<'a> {
    /// Its root file system, relative to the bundle or absolute.
    pub(crate) rootfs: PathBuf,
    /// Its control group, absolute from the root of every hierarchy.
    pub(crate) cgroups_path: PathBuf,
    /// Control groups as the host has them.
    pub(crate) cgroups: Cgroups,
    /// Whether the kernel counts swap, so that a limit of memory can include it.
    pub(crate) counts_swap: bool,
    /// What it is called inside.
    pub(crate) hostname: String,
    /// Its network namespace.
    pub(crate) network: NetworkNamespace,
    /// Generated files, on the host.
    pub(crate) files: Files,
    /// AppArmor on this host.
    pub(crate) apparmor: AppArmor,
    /// The host's CDI devices.
    pub(crate) cdi: &'a cdi::Registry,
}

/// A container's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NetworkNamespace {
    /// One that is there already.
    Path(PathBuf),
    /// The host's.
    Host,
}

/// Generated files that are mounted over the image's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Files {
    /// For `/etc/resolv.conf`.
    pub(crate) resolv_conf: PathBuf,
    /// For `/etc/hosts`.
    pub(crate) hosts: PathBuf,
    /// For `/etc/hostname`.
    pub(crate) hostname: PathBuf,
}

/// Which control groups a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cgroups {
    /// A hierarchy per controller, mounted here on the host.
    V1(Vec<PathBuf>),
    /// One hierarchy.
    V2,
}

/// What the host has of AppArmor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AppArmor {
    /// Nothing.
    Absent,
    /// It is enabled, and this profile, if any, is for containers that ask for none.
    Enabled { default: Option<String> },
}

/// The whole specification, for root: [`apply_user`] comes after.
///
/// # Errors
/// `Invalid` when the container's or the image's specification is wrong, `Unsupported` when this host or this runtime
/// cannot apply something.
pub(crate) fn spec(
    container: &ContainerSpec,
    image: &ImageConfiguration,
    place: &Place<'_>,
) -> Result<Spec, PluginError> {
    check_network(container, place)?;
    let root = RootBuilder::default().path(&*place.rootfs).readonly(false).build().map_err(incomplete)?;
    let mut spec = SpecBuilder::default()
        .version(OCI_VERSION)
        .root(root)
        .hostname(&*place.hostname)
        .process(process::process(container, image.config().as_ref(), place)?)
        .mounts(mounts::all(container, place)?)
        .linux(kernel::linux(container, place)?)
        .build()
        .map_err(incomplete)?;
    // The builder's own defaults include annotations; ours must not, for some runtimes take orders from them.
    spec.set_annotations(None);
    gpu::attach(&mut spec, container, place.cdi)?;
    Ok(spec)
}

/// The `USER` of an image; empty is root.
pub(crate) fn image_user(image: &ImageConfiguration) -> &str {
    image.config().as_ref().and_then(|config| config.user().as_deref()).unwrap_or_default()
}

/// A container must never share the host's network because of a mistake here.
fn check_network(container: &ContainerSpec, place: &Place<'_>) -> Result<(), PluginError> {
    if container.network != Network::Bridge && !container.ports.is_empty() {
        return Err(invalid("ports can only be published with network = \"bridge\""));
    }
    if (container.network == Network::Host) != (place.network == NetworkNamespace::Host) {
        let text = format!("network {:?} was prepared as {:?}", container.network, place.network);
        return Err(PluginError::new(ErrorKind::Internal, text));
    }
    Ok(())
}

/// An absolute path without `..` or `.`, as the engines write it, which is neither the root nor outside of it.
fn target(what: &str, path: &Path) -> Result<PathBuf, PluginError> {
    use std::path::Component;
    let is_plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let normal: PathBuf = path.components().collect();
    if !path.is_absolute() || !is_plain || normal == Path::new("/") || path.to_str().is_none() {
        return Err(invalid(format!(
            "{what} {} is no absolute path below / in UTF-8, without ..",
            path.display()
        )));
    }
    Ok(normal)
}

fn invalid(message: impl Into<String>) -> PluginError {
    PluginError::new(ErrorKind::Invalid, message)
}

fn unsupported(message: impl Into<String>) -> PluginError {
    PluginError::new(ErrorKind::Unsupported, message)
}

/// Every builder has a default for everything, so that none of them fails.
fn incomplete(error: OciSpecError) -> PluginError {
    PluginError::new(ErrorKind::Internal, "the OCI specification cannot be built").with_source(error)
}

fn number(what: &str, value: u64) -> Result<i64, PluginError> {
    i64::try_from(value).map_err(|_| invalid(format!("{what} = {value} is too large")))
}

/// What the image says about the process, or nothing.
fn list<'a>(config: Option<&'a Config>, of: impl Fn(&'a Config) -> &'a Option<Vec<String>>) -> &'a [String] {
    config.and_then(|config| of(config).as_deref()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
