//! The test mandelbox's images in an engine.

use std::fs::{self, Metadata};
use std::path::Path;

use anyhow::{Context, Result};
use bollard::Docker;
use bollard::query_parameters::ImportImageOptionsBuilder;
use futures::TryStreamExt;

/// Loads the archive unless `mark` says that this very one has been loaded.
pub(super) async fn load_once(docker: &Docker, archive: &Path, mark: &Path) -> Result<()> {
    let version = archive.metadata().map(version).with_context(|| archive.display().to_string())?;
    if fs::read_to_string(mark).is_ok_and(|loaded| loaded == version) {
        return Ok(());
    }
    load(docker, archive).await?;
    Ok(fs::write(mark, version)?)
}

/// Loads the archive.
pub(super) async fn load(docker: &Docker, archive: &Path) -> Result<()> {
    let body = bollard::body_full(fs::read(archive).with_context(|| archive.display().to_string())?.into());
    let options = ImportImageOptionsBuilder::default().build();
    let answers: Result<Vec<_>, _> = docker.import_image(options, body, None).try_collect().await;
    answers.map(drop).context("cannot load the image")
}

fn version(metadata: Metadata) -> String {
    format!("{} bytes of {:?}", metadata.len(), metadata.modified().ok())
}
