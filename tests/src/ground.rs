//! What a service runs its mandelboxes on, and what can be seen of them there without the service and without its plugin.
//!
//! | ground | runtime | looked at through |
//! |---|---|---|
//! | [`Engine`](crate::engine::Engine) | `docker`, `podman` | the engine's API, Docker's in both |
//! | [`OciHost`](crate::oci::OciHost) | `oci` | the host: files, processes, control groups, interfaces, packet filter |

use std::{fmt::Debug, path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use async_trait::async_trait;

use crate::{wait::until, world::Entrance};

const CLEAN_DEADLINE: Duration = Duration::from_secs(10);

/// What a service runs its mandelboxes on.
#[async_trait(?Send)]
pub trait Ground: Debug {
    /// The configuration, in TOML, with which the service of that name uses it.
    fn settings(&self, instance: &str) -> String;

    /// Where services have their directories, so that they go with the ground.
    fn directory(&self) -> PathBuf;

    /// The way to where services have to run, if that is not where the test is.
    fn entrance(&self) -> Option<Entrance> {
        None
    }

    /// An archive that each service has to load because they share no images.
    ///
    /// # Errors
    /// It cannot be made.
    fn archive(&self) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    /// The names of the containers, running or not, that are there for a service.
    ///
    /// # Errors
    /// They cannot be seen.
    async fn containers(&self, instance: &str) -> Result<Vec<String>>;

    /// Succeeds once no container of that service is left.
    ///
    /// # Errors
    /// When one still is after ten seconds.
    async fn assert_none(&self, instance: &str) -> Result<()> {
        let gone = async || self.containers(instance).await.is_ok_and(|found| found.is_empty()).then_some(());
        if until("end of all containers", CLEAN_DEADLINE, gone).await.is_err() {
            let left = self.containers(instance).await?;
            ensure!(left.is_empty(), "containers of {instance} are left: {left:?}");
        }
        Ok(())
    }
}
