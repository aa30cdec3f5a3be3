//! What a service that died left on this host: records, containers, directories. A new one refuses to start over
//! them, and removes exactly them when told to.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use host_core::{
    InstanceName, MandelboxId, PluginError,
    planner::LABEL_INSTANCE,
    runtime::{Container, Runtime, Selector},
};

use crate::{
    deadline::within,
    files::Root,
    orchestrator::blocking,
    records::{Record, Records},
};

/// Everything found.
#[derive(Debug, Default)]
pub struct Leftovers {
    records: Vec<Record>,
    containers: Vec<Container>,
    directories: Vec<MandelboxId>,
    unreadable: Vec<PathBuf>,
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
        let (records, unreadable) = records.all()?;
        Ok(Self { records, containers, directories: root.present()?, unreadable })
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
            && self.containers.is_empty()
            && self.directories.is_empty()
            && self.unreadable.is_empty()
    }

    /// Removes exactly these, containers first, because the directories are mounted in them. A record's container was
    /// found by its label, if there is one: a container of that name without it is somebody else's.
    ///
    /// # Errors
    /// The first that could not be removed; the others stay for another try.
    pub async fn purge(
        self,
        runtime: &dyn Runtime,
        records: Arc<Records>,
        root: Root,
        limit: Duration,
    ) -> Result<(), LeftoverError> {
        for container in self.containers {
            within(limit, "removing a container", runtime.remove(&container.id.into())).await?;
        }
        let removal = blocking(move || {
            self.directories.iter().try_for_each(|id| root.remove(id))?;
            self.records.iter().try_for_each(|record| root.remove_unmarked(&record.id))?;
            self.records.iter().try_for_each(|record| records.remove(&record.id))?;
            self.unreadable.iter().try_for_each(std::fs::remove_file)
        });
        Ok(removal.await?)
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for record in &self.records {
            writeln!(
                f,
                "  mandelbox {} (container {}, last step {})",
                record.id, record.container, record.stage
            )?;
        }
        for container in &self.containers {
            writeln!(f, "  container {} ({})", container.name, container.id.0)?;
        }
        for id in &self.directories {
            writeln!(f, "  directory of mandelbox {id}")?;
        }
        for path in &self.unreadable {
            writeln!(f, "  unreadable record {}", path.display())?;
        }
        Ok(())
    }
}
