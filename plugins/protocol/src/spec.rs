//! A container's specification with its secrets: only here do they become bytes, on their way to the engine.

use std::collections::BTreeMap;

use host_core::{
    ContainerName, ImageRef,
    runtime::{
        Attachment, ContainerSpec, Device, EnvValue, Limits, Mount, Network, PortMapping, Security, Tmpfs,
    },
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::wire::Wire;

/// The fields of a [`ContainerSpec`]; what a later host adds has a default here.
#[derive(Serialize, Deserialize)]
#[serde(remote = "ContainerSpec")]
struct Fields {
    name: ContainerName,
    image: ImageRef,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default, with = "env")]
    env: BTreeMap<String, EnvValue>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    terminal: bool,
    #[serde(default)]
    network: Network,
    #[serde(default)]
    ports: Vec<PortMapping>,
    #[serde(default)]
    mounts: Vec<Mount>,
    #[serde(default)]
    tmpfs: Vec<Tmpfs>,
    #[serde(default)]
    shm_bytes: u64,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    gpu: Option<Attachment>,
    #[serde(default)]
    security: Security,
    #[serde(default)]
    limits: Limits,
}

/// To be written.
#[derive(Serialize)]
#[serde(transparent)]
pub(crate) struct Written<'a>(#[serde(serialize_with = "borrowed")] &'a ContainerSpec);

fn borrowed<S: Serializer>(spec: &&ContainerSpec, to: S) -> Result<S::Ok, S::Error> {
    Fields::serialize(spec, to)
}

/// As read.
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct Spec(#[serde(with = "Fields")] ContainerSpec);

impl<'a> Wire<'a, &'a ContainerSpec> for Spec {
    type Out = Written<'a>;

    fn write(spec: &'a ContainerSpec) -> Written<'a> {
        Written(spec)
    }

    fn lend(&'a self) -> &'a ContainerSpec {
        &self.0
    }
}

/// `{"plain": "…"}` or `{"secret": "…"}`: who reads it knows what must not be printed.
mod env {
    use super::*;

    #[derive(Serialize)]
    #[serde(rename_all = "lowercase")]
    enum Out<'a> {
        Plain(&'a str),
        Secret(&'a str),
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum In {
        Plain(String),
        Secret(SecretString),
    }

    pub(super) fn serialize<S: Serializer>(
        env: &BTreeMap<String, EnvValue>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_map(env.iter().map(|(name, value)| {
            let value = match value {
                EnvValue::Plain(value) => Out::Plain(value),
                EnvValue::Secret(value) => Out::Secret(value.expose_secret()),
            };
            (name, value)
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<String, EnvValue>, D::Error> {
        let read = |(name, value)| match value {
            In::Plain(value) => (name, EnvValue::Plain(value)),
            In::Secret(value) => (name, EnvValue::Secret(value)),
        };
        Ok(BTreeMap::<String, In>::deserialize(from)?.into_iter().map(read).collect())
    }
}
