//! What a service that died left on this host: records, containers, directories. A new one refuses to start over
//! them, and removes exactly them when told to.

use std::{fmt, time::Duration};

use host_core::{
    InstanceName, MandelboxId, PluginError,
    planner::LABEL_INSTANCE,
    runtime::{Container, Runtime, Selector},
};

use crate::{
    deadline::within,
    files::Root,
    records::{Record, Records},
};

/// Everything found.
#[derive(Debug, Default)]
pub struct Leftovers {
    records: Vec<Record>,
    containers: Vec<Container>,
    directories: Vec<MandelboxId>,
}

/// Why leftovers could not be found or removed.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    /// The engine.
    #[error("leftovers of an earlier host-service: the container engine refused")]
    Runtime(#[from] PluginError),
    /// The file system.
    #[error("leftovers of an earlier host-service: the file system refused")]
    Io(#[from] std::io::Error),
}

impl Leftovers {
    /// Looks for what an earlier service of this instance's name left. A container with this instance's label is one
    /// even without a record: records do not outlive a reboot, containers do.
    ///
    /// # Errors
    /// The engine or the file system cannot be read.
    pub async fn find(
        runtime: &dyn Runtime,
        records: &Records,
        root: &Root,
        instance: &InstanceName,
        limit: Duration,
    ) -> Result<Self, LeftoverError> {
        let selector = Selector::label(LABEL_INSTANCE, instance.as_str());
        let containers = within(limit, "listing containers", runtime.list(&selector)).await?;
        Ok(Self { records: records.all()?, containers, directories: root.present()? })
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.containers.is_empty() && self.directories.is_empty()
    }

    /// Removes exactly these, containers first, because the directories are mounted in them.
    ///
    /// # Errors
    /// The first that could not be removed; the others stay for another try.
    pub async fn purge(
        self,
        runtime: &dyn Runtime,
        records: &Records,
        root: &Root,
        limit: Duration,
    ) -> Result<(), LeftoverError> {
        for container in self.containers {
            within(limit, "removing a container", runtime.remove(&container.id.into())).await?;
        }
        for record in &self.records {
            // Its container may have lost its label, or never had this instance's: the name is ours all the same.
            within(limit, "removing a container", runtime.remove(&record.container.clone().into())).await?;
            root.remove(&record.id)?;
        }
        for id in &self.directories {
            root.remove(id)?;
        }
        for record in &self.records {
            records.remove(&record.id)?;
        }
        Ok(())
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for record in &self.records {
            writeln!(f, "  mandelbox {} (container {}, last step {})", record.id, record.container, record.stage)?;
        }
        for container in &self.containers {
            writeln!(f, "  container {} ({})", container.name, container.id.0)?;
        }
        for id in &self.directories {
            writeln!(f, "  directory of mandelbox {id}")?;
        }
        Ok(())
    }
}
