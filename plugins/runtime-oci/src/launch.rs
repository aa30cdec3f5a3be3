//! Making a container: its image, its network, its directory, its specification, its supervisor.

use std::{
    fs::{self, DirBuilder, Permissions},
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use host_core::{
    PluginError,
    runtime::{ContainerSpec, Network, Propagation, Result},
};
use nix::sys::signal::Signal;
use oci_images::Unpacked;
use oci_spec::{image::ImageConfiguration, runtime::Spec};

use crate::{
    bundle::{self, AppArmor, Files, NetworkNamespace, Place, files},
    held::{Ear, Held, Link, connect, listen},
    place::{self, name},
    program::Spare,
    protocol::{Asked, Launch},
    runtime::{Containers, abandoned, failed, removed},
};

/// Stands for the network namespace that the supervisor is given; only it knows the descriptor.
const NETWORK: &str = "/proc/self/fd/1";

impl Containers {
    /// The container as it is before its start. What fails half-way is for [`Containers::dispose`]. Only the supervisor
    /// takes long; who removes the container does not wait for it.
    pub(crate) async fn launch(self: &Arc<Self>, held: &Arc<Held>, spec: &ContainerSpec) -> Result<Link> {
        let image = self.store.acquire(&spec.image, &held.id.0);
        // Both to their ends, whatever becomes of the other or of the launch: neither could be given back before it is taken.
        let (unpacked, network) = tokio::join!(image, self.network(held, spec.network));
        let (unpacked, network) = (unpacked?, network?);
        if let Some(signal) = stop_signal(&unpacked.config) {
            let _ = held.stop_signal.set(signal as i32);
        }
        let asked = self.prepare(held, spec, unpacked).await?;
        let starting = failed(format!("the supervisor of {} cannot be started", held.name));
        let (mut link, ear) = self.supervisor(held, network).await.map_err(starting)?;
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(ear.listen(self.hub.clone())));
        let made = held.leaving.run_until_cancelled(link.ask(&asked)).await;
        made.ok_or_else(|| removed(&held.name))?.map_err(|error| with_last_words(error, &held.directory))?;
        Ok(link)
    }

    /// All that is done to files before there is a process, where slow disks hold up nobody else.
    async fn prepare(
        self: &Arc<Self>,
        held: &Arc<Held>,
        spec: &ContainerSpec,
        image: Unpacked,
    ) -> Result<Asked> {
        let resolv_conf = match spec.network {
            Network::Bridge => self.networks.resolv_conf().await?,
            Network::None => String::new(),
            Network::Host => host_file("/etc/resolv.conf"),
        };
        let (containers, held, spec) = (self.clone(), held.clone(), spec.clone());
        let prepared = tokio::task::spawn_blocking(move || {
            let files = containers
                .furnish(&held, spec.network, &resolv_conf, &image)
                .map_err(failed(format!("the directory of {} cannot be made", held.name)))?;
            Ok(Asked::Launch(Box::new(Launch {
                id: held.id.0.clone(),
                spec: containers.bundle(&held, &spec, &image, files)?,
                user: bundle::image_user(&image.config).to_owned(),
                images: containers.root.images(),
                layers: image.layers,
                disk: held.disk.clone(),
                cgroup: held.cgroup.clone(),
                binary: containers.config.binary.clone(),
                shared_mounts: spec.mounts.iter().any(|mount| mount.propagation == Propagation::Shared),
                log_bytes: containers.config.log_bytes,
            })))
        });
        prepared.await.unwrap_or_else(|error| Err(abandoned(error)))
    }

    async fn supervisor(&self, held: &Arc<Held>, network: Option<OwnedFd>) -> io::Result<(Link, Ear)> {
        let log = place::create(&held.directory.join(name::OWN_LOG))?;
        let listener = listen(&held.directory)?;
        let assign = |spare: Spare| spare.assign(&held.directory, &listener, &log, network.as_ref());
        let mut tries = self.spares.tries();
        let child = loop {
            tries -= 1;
            match self.spares.take().await.and_then(assign) {
                Err(_) if tries > 0 => {}
                child => break child?,
            }
        };
        connect(held, Some(child)).await
    }

    /// A network namespace for it, unless it is to have the host's.
    async fn network(&self, held: &Held, network: Network) -> Result<Option<OwnedFd>> {
        match network {
            Network::Host => Ok(None),
            Network::None => oci_network::isolated().await.map(Some),
            Network::Bridge => {
                let taken = self.networks.take().await?;
                // The only place that sets it.
                let _ = held.address.set(taken.address);
                Ok(Some(taken.namespace))
            }
        }
    }

    /// The container's directory and what is in it from the beginning.
    fn furnish(
        &self,
        held: &Held,
        network: Network,
        resolv_conf: &str,
        image: &Unpacked,
    ) -> io::Result<Files> {
        let make = |path: &Path, mode| DirBuilder::new().recursive(true).mode(mode).create(path);
        let directory = &held.directory;
        make(directory, 0o700)?;
        // First of all, so that what a crash leaves can be told apart and taken down.
        place::write_json(&directory.join(name::CONTAINER), &held.description())?;
        for inner in [name::ETC, name::BUNDLE, name::ROOTFS] {
            make(&directory.join(inner), 0o700)?;
        }
        make(&held.disk.join(name::WORK), 0o700)?;
        let upper = held.disk.join(name::UPPER);
        make(&upper, 0o755)?;
        // It is the container's root directory, seen from inside.
        image.layers.first().map_or(Ok(()), |top| like(&upper, &self.root.images().join(top)))?;
        let hostname = hostname(held);
        let hosts = match network {
            Network::Bridge => files::hosts(&hostname, held.address.get().map(|address| (*address).into())),
            Network::None => files::hosts(&hostname, None),
            Network::Host => host_file("/etc/hosts"),
        };
        let file = |name, text: &str| readable(&directory.join(name::ETC).join(name), text);
        Ok(Files {
            hosts: file("hosts", &hosts)?,
            resolv_conf: file("resolv.conf", resolv_conf)?,
            hostname: file("hostname", &files::hostname(&hostname))?,
        })
    }

    fn bundle(&self, held: &Held, spec: &ContainerSpec, image: &Unpacked, files: Files) -> Result<Spec> {
        let wants_cdi = spec.gpu.as_ref().is_some_and(|gpu| !gpu.cdi.is_empty());
        let cdi = if wants_cdi { cdi::Registry::read(&self.config.cdi) } else { cdi::Registry::default() };
        let place = Place {
            // The supervisor knows better.
            rootfs: name::ROOTFS.into(),
            cgroups_path: held.cgroup.clone(),
            cgroups: self.layout.seen_inside(),
            counts_swap: self.layout.counts_swap(),
            hostname: hostname(held),
            network: match spec.network {
                Network::Host => NetworkNamespace::Host,
                Network::Bridge | Network::None => NetworkNamespace::Path(NETWORK.into()),
            },
            files,
            apparmor: apparmor(),
            cdi: &cdi,
        };
        bundle::spec(spec, &image.config, &place)
    }
}

/// What a supervisor wrote before it ended tells more than that it did.
fn with_last_words(error: PluginError, directory: &Path) -> PluginError {
    let words = fs::read_to_string(directory.join(name::OWN_LOG)).unwrap_or_default();
    if words.is_empty() {
        error
    } else {
        PluginError::new(error.kind(), format!("{error}: {}", words.trim()))
    }
}

/// The `STOPSIGNAL` of an image, by name or number.
fn stop_signal(image: &ImageConfiguration) -> Option<Signal> {
    let text = image.config().as_ref()?.stop_signal().as_deref()?;
    match text.parse::<i32>() {
        Ok(number) => Signal::try_from(number).ok(),
        Err(_) if text.starts_with("SIG") => text.parse().ok(),
        Err(_) => format!("SIG{text}").parse().ok(),
    }
}

/// As the engines do: the first half of the id.
fn hostname(held: &Held) -> String {
    held.id.0.chars().take(12).collect()
}

/// The host's own, for a container that shares its network.
fn host_file(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Gives a directory the owner and the mode of another.
fn like(directory: &Path, model: &Path) -> io::Result<()> {
    let model = fs::metadata(model)?;
    chown(directory, Some(model.uid()), Some(model.gid()))?;
    fs::set_permissions(directory, model.permissions())
}

/// A file that everybody inside may read.
fn readable(path: &Path, text: &str) -> io::Result<PathBuf> {
    let mut file = place::create(path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    Ok(path.to_owned())
}

/// AppArmor as this host has it now.
pub(crate) fn apparmor() -> AppArmor {
    let directory = Path::new("/sys/kernel/security/apparmor");
    if !directory.exists() {
        return AppArmor::Absent;
    }
    let loaded = fs::read_to_string(directory.join("profiles")).unwrap_or_default();
    AppArmor::Enabled { default: usual_profile(&loaded) }
}

/// The engines' profile, where one of them has loaded it: lines are `docker-default (enforce)`.
fn usual_profile(loaded: &str) -> Option<String> {
    let mut names = loaded.lines().filter_map(|line| line.split(' ').next());
    names.find(|name| *name == "docker-default").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_profile_is_taken_where_it_is_loaded() {
        let loaded = "/usr/bin/man (enforce)\ndocker-default (enforce)\nlsb_release (enforce)\n";
        assert_eq!(usual_profile(loaded).as_deref(), Some("docker-default"));
        for other in ["", "docker-default-2 (enforce)\n", "/usr/bin/man//docker-default (enforce)\n"] {
            assert_eq!(usual_profile(other), None);
        }
    }
}
