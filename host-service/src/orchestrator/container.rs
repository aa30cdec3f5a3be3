//! What a mandelbox's container is made of.

use std::collections::BTreeMap;

use host_core::{
    ImageRef,
    planner::{LABEL_INSTANCE, LABEL_MANDELBOX, LABEL_RUN},
    runtime::{ContainerSpec, Device, EnvValue, Mount, Network, PortMapping, Propagation, Security},
    secret::AesKey,
};

use super::Shared;
use crate::{
    files::{Files, MAPPINGS_INSIDE, SOCKETS_INSIDE},
    mandelbox::{Mandelbox, State},
};

/// The `gpu_index` of a mandelbox on a host without GPUs.
pub(super) const NO_GPU: &str = "-1";

/// What a container is made from, beside the settings and the leases.
pub(super) struct Ingredients<'a> {
    pub files: &'a Files,
    pub image: &'a ImageRef,
    pub key: &'a AesKey,
}

/// From the settings and what the mandelbox has leased.
pub(super) fn spec(shared: &Shared, mandelbox: &Mandelbox, ingredients: &Ingredients<'_>) -> ContainerSpec {
    let Ingredients { files, image, key } = *ingredients;
    let settings = &shared.settings.mandelbox;
    let state = mandelbox.state();
    ContainerSpec {
        name: mandelbox.container.clone(),
        image: image.clone(),
        command: settings.command.clone(),
        env: environment(shared, mandelbox, &state, key),
        labels: labels(shared, mandelbox),
        terminal: settings.terminal,
        network: settings.network,
        ports: ports(shared, &state),
        mounts: mounts(shared, files),
        tmpfs: settings.tmpfs.iter().map(Into::into).collect(),
        shm_bytes: settings.limits.shm_bytes,
        devices: devices(shared),
        gpu: state.gpu.map(|gpu| gpu.attachment),
        security: Security {
            capabilities: settings.capabilities.clone(),
            no_new_privileges: settings.no_new_privileges,
            seccomp: shared.seccomp.clone(),
            apparmor: settings.apparmor.clone(),
        },
        limits: settings.limits.into(),
    }
}

fn environment(
    shared: &Shared,
    mandelbox: &Mandelbox,
    state: &State,
    key: &AesKey,
) -> BTreeMap<String, EnvValue> {
    let settings = &shared.settings.mandelbox;
    let gpu = state.gpu.as_ref().map_or_else(|| NO_GPU.to_owned(), |gpu| gpu.index.to_string());
    let named = [
        (&settings.env.aes_key, EnvValue::Secret(key.expose().into())),
        (&settings.env.id, EnvValue::Plain(mandelbox.id().to_string())),
        (&settings.env.tty, EnvValue::Plain(state.tty.unwrap_or_default().to_string())),
        (&settings.env.gpu_index, EnvValue::Plain(gpu)),
        (&settings.env.environment, EnvValue::Plain(shared.profile.to_string())),
    ];
    let mut env = settings.environment.clone();
    if state.gpu.is_none() {
        // CUDA's base images say `all`, which the NVIDIA runtime would obey.
        env.insert("NVIDIA_VISIBLE_DEVICES".to_owned(), "void".into());
    }
    env.extend(named.into_iter().filter_map(|(name, value)| Some((name.clone()?, value))));
    env
}

fn labels(shared: &Shared, mandelbox: &Mandelbox) -> BTreeMap<String, String> {
    [
        (LABEL_MANDELBOX, mandelbox.id().as_str()),
        (LABEL_INSTANCE, shared.facts.name.as_str()),
        (LABEL_RUN, shared.run.as_str()),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn ports(shared: &Shared, state: &State) -> Vec<PortMapping> {
    let settings = &shared.settings.mandelbox;
    if settings.network != Network::Bridge {
        return Vec::new();
    }
    let published = state.ports.iter().map(|&(inside, host)| PortMapping {
        host_ip: settings.publish_ip,
        host,
        container: inside.port,
        protocol: inside.protocol,
    });
    published.collect()
}

/// The mandelbox's own directories, then the configured ones; optional ones only where the host has them.
fn mounts(shared: &Shared, files: &Files) -> Vec<Mount> {
    let own = [(files.mappings(), MAPPINGS_INSIDE), (files.sockets(), SOCKETS_INSIDE)];
    let own = own.map(|(source, target)| Mount {
        source,
        target: target.into(),
        read_only: false,
        propagation: Propagation::Private,
    });
    let configured = &shared.settings.mandelbox.mounts;
    let there = configured.iter().filter(|mount| !mount.optional || mount.source.exists());
    own.into_iter().chain(there.map(Into::into)).collect()
}

fn devices(shared: &Shared) -> Vec<Device> {
    let configured = &shared.settings.mandelbox.devices;
    configured.iter().filter(|device| !device.optional || device.host.exists()).map(Into::into).collect()
}
