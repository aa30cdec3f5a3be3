//! The facts about an instance of EC2.

use std::time::Duration;

use host_config::InstanceSettings;
use host_core::{InstanceName, InvalidId, pubsub::InstanceFacts};
use tokio::time::Instant;

use super::{
    commit,
    imds::{Imds, ImdsError},
    tags::{self, TagError},
};

/// Why EC2 cannot tell who this host is. Each says what else can be done.
#[derive(Debug, thiserror::Error)]
pub enum Ec2Error {
    /// It was asked in vain.
    #[error(
        "instance.metadata = \"ec2\" found no facts within {within:?}; on a machine that is not EC2's, set \
         instance.metadata = \"static\" with instance.name, id, image_id, region, type and ip"
    )]
    NotFound {
        /// `instance.metadata_timeout`
        within: Duration,
        /// What came instead.
        source: ImdsError,
    },
    /// A fact that every instance has is missing.
    #[error(
        "the metadata service has no {path}; set instance.{setting}, or instance.metadata = \"static\" on a machine that \
         is not EC2's"
    )]
    Absent {
        /// Where it should be.
        path: &'static str,
        /// What can be set instead.
        setting: &'static str,
    },
    /// There is no name to be found in the database by.
    #[error(
        "this instance has no Name tag that could be read; allow tags in its metadata (aws ec2 \
         modify-instance-metadata-options --instance-metadata-tags enabled), or allow its profile ec2:DescribeTags, or set \
         instance.name"
    )]
    Nameless(#[source] Option<TagError>),
    /// A name that cannot be used.
    #[error("the Name tag cannot be a host's name; set instance.name")]
    Name(#[source] InvalidId),
}

/// Within `metadata_timeout`, whatever the metadata service does.
pub(super) async fn facts(instance: &InstanceSettings) -> Result<InstanceFacts, Ec2Error> {
    let within = instance.metadata_timeout;
    let not_found = |source| Ec2Error::NotFound { within, source };
    let imds = Imds::new(instance.metadata_endpoint.as_deref()).map_err(not_found)?;
    let source = Source { imds, instance, deadline: Instant::now() + within };
    // One after the other: the first tells whether there is anybody, and each takes a millisecond then.
    let cloud_id = source.fact(&instance.id, "instance-id", "id").await?;
    let image_id = source.fact(&instance.image_id, "ami-id", "image_id").await?;
    let instance_type = source.fact(&instance.instance_type, "instance-type", "type").await?;
    let region = source.fact(&instance.region, "placement/region", "region").await?;
    let ip = source.ip().await?;
    let name = source.name(&cloud_id, &region).await?;
    Ok(InstanceFacts { name, cloud_id, image_id, region, instance_type, ip, commit: commit(instance) })
}

struct Source<'a> {
    imds: Imds,
    instance: &'a InstanceSettings,
    deadline: Instant,
}

impl Source<'_> {
    async fn value(&self, path: &str) -> Result<Option<String>, Ec2Error> {
        let value = self.imds.get(&format!("meta-data/{path}"), self.deadline).await;
        let value =
            value.map_err(|source| Ec2Error::NotFound { within: self.instance.metadata_timeout, source })?;
        Ok(value.map(|value| value.trim().to_owned()))
    }

    async fn fact(
        &self,
        set: &Option<String>,
        path: &'static str,
        setting: &'static str,
    ) -> Result<String, Ec2Error> {
        match set {
            Some(set) => Ok(set.clone()),
            None => self.value(path).await?.ok_or(Ec2Error::Absent { path, setting }),
        }
    }

    /// The public one, or for clients inside the same network the private one.
    async fn ip(&self) -> Result<String, Ec2Error> {
        if let Some(set) = self.instance.ip {
            return Ok(set.to_string());
        }
        match self.value("public-ipv4").await? {
            Some(public) => Ok(public),
            None => {
                tracing::warn!("this instance has no public address; clients are told the private one");
                self.fact(&None, "local-ipv4", "ip").await
            }
        }
    }

    async fn name(&self, id: &str, region: &str) -> Result<InstanceName, Ec2Error> {
        if let Some(set) = &self.instance.name {
            return Ok(set.clone());
        }
        let name = match self.value("tags/instance/Name").await? {
            Some(name) => name,
            None => {
                let of = tags::Instance { id, region, endpoint: self.instance.ec2_endpoint.as_deref() };
                let name = tags::name(&self.imds, &of, self.deadline).await;
                name.map_err(|error| Ec2Error::Nameless(Some(error)))?.ok_or(Ec2Error::Nameless(None))?
            }
        };
        name.parse().map_err(Ec2Error::Name)
    }
}
