//! `image …`: acts on the runtime directly; no service needs to run.

use std::{collections::BTreeSet, path::Path};

use host_config::Loaded;
use host_core::{
    ImageRef,
    registry::Role,
    runtime::{Image, Runtime},
};
use indicatif::HumanBytes;

use super::{args::ImageCommand, failure::Failure, output::Out, progress::Progress};
use crate::plugins;

pub(crate) async fn execute(command: ImageCommand, loaded: &Loaded, out: &mut Out) -> Result<(), Failure> {
    let name = &loaded.settings.runtime.plugin;
    let runtime =
        plugins::build(&plugins::registry(loaded).runtimes, "runtime", name, loaded, Role::Tool).await?;
    match command {
        ImageCommand::List(args) => list(runtime.as_ref(), args.json, out).await,
        ImageCommand::Load { file, name } => load(runtime.as_ref(), &file, name, out).await,
    }
}

async fn load(
    runtime: &dyn Runtime,
    file: &Path,
    name: Option<ImageRef>,
    out: &mut Out,
) -> Result<(), Failure> {
    let progress = Progress::new(format!("loading {}", file.display()));
    let mut names = runtime.load_image(file).await?;
    if let Some(name) = name {
        let image = only(runtime, &names).await?;
        runtime.tag_image(&image, &name).await?;
        names.push(name);
    }
    drop(progress);
    for name in names {
        out.line(format_args!("loaded {name}"))?;
    }
    Ok(())
}

/// The one image that all of these name.
async fn only(runtime: &dyn Runtime, names: &[ImageRef]) -> Result<ImageRef, Failure> {
    let mut ids = BTreeSet::new();
    for name in names {
        ids.extend(runtime.image(name).await?.map(|image| image.id));
    }
    match (ids.len(), names.first()) {
        (1, Some(name)) => Ok(name.clone()),
        (count, _) => Err(Failure::new(format!(
            "the archive held {count} images, which are loaded; --name wants exactly one"
        ))),
    }
}

async fn list(runtime: &dyn Runtime, json: bool, out: &mut Out) -> Result<(), Failure> {
    let images = runtime.images().await?;
    if json {
        return Ok(out.json(&images)?);
    }
    Ok(out.table(&["NAME", "ID", "SIZE", "USER"], images.iter().flat_map(rows).collect())?)
}

/// One for each name.
fn rows(image: &Image) -> Vec<Vec<String>> {
    let named = |name: String| {
        let user = if image.user.is_empty() { "root" } else { &image.user };
        vec![name, short(&image.id).to_owned(), HumanBytes(image.size_bytes).to_string(), user.to_owned()]
    };
    match image.names.as_slice() {
        [] => vec![named("-".to_owned())],
        names => names.iter().map(|name| named(name.to_string())).collect(),
    }
}

/// As the engines show it: twelve digits of the hash.
fn short(id: &str) -> &str {
    let hash = id.strip_prefix("sha256:").unwrap_or(id);
    hash.get(..12).unwrap_or(hash)
}
