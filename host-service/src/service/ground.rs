//! The directories that this service works in, and what an earlier one left there.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;
use host_config::Settings;
use host_core::{InstanceName, runtime::Runtime};

use super::RunOptions;
use crate::{
    files::{Owner, Root},
    leftovers::Leftovers,
    records::Records,
};

/// The directories that this service works in, and its alone. Dropping it removes them as far as nothing is in them.
pub(super) struct Ground {
    pub(super) root: Root,
    pub(super) records: Arc<Records>,
    /// A certificate made by itself is worth nothing to anybody once the service is gone.
    certificate: Option<PathBuf>,
}

impl Ground {
    pub(super) fn open(settings: &Settings) -> anyhow::Result<Self> {
        let records = Arc::new(Records::open(&settings.paths.state)?);
        let owner = Owner { uid: settings.mandelbox.uid, gid: settings.mandelbox.gid };
        let root = Root::open(&settings.paths.root, owner).inspect_err(|_| records.close());
        let root =
            root.with_context(|| format!("paths.root {} cannot be used", settings.paths.root.display()))?;
        let generated = settings.http.certificate.is_none();
        let certificate = generated.then(|| settings.paths.state.join("tls"));
        Ok(Self { root, records, certificate })
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some(certificate) = &self.certificate {
            // There is none where the start failed early.
            let _ = std::fs::remove_dir_all(certificate);
        }
        self.root.close();
        self.records.close();
    }
}

/// Removes what an earlier service left, or refuses to start over it.
pub(super) async fn clear_leftovers(
    runtime: &dyn Runtime,
    ground: &Ground,
    name: &InstanceName,
    settings: &Settings,
    options: RunOptions,
) -> anyhow::Result<()> {
    let limit = settings.mandelbox.timeouts.remove;
    let Ground { root, records, .. } = ground;
    let leftovers = Leftovers::find(runtime, records, root, name, limit).await?;
    if leftovers.is_empty() {
        return Ok(());
    }
    anyhow::ensure!(
        options.purge_leftovers,
        "an earlier host-service left this behind:\n{leftovers}look at it, then remove exactly this with \
         `host-service run --purge-leftovers`"
    );
    tracing::warn!(leftovers = %leftovers, "removing what an earlier host-service left");
    Ok(leftovers.purge(runtime, records.clone(), root.clone(), limit).await?)
}
