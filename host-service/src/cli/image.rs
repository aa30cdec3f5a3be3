//! `image …`: acts on the runtime directly; no service needs to run.

use std::sync::Arc;

use host_config::Loaded;
use host_core::{
    registry::Context,
    runtime::{Image, Runtime},
};

use super::{args::ImageCommand, failure::Failure, output::Out, progress::Progress, status::bytes};
use crate::plugins;

pub(crate) async fn execute(command: ImageCommand, loaded: &Loaded, out: &mut Out) -> Result<(), Failure> {
    let runtime = runtime(loaded).await?;
    match command {
        ImageCommand::List(args) => list(runtime.as_ref(), args.json, out).await,
        ImageCommand::Load { file, name } => {
            let progress = Progress::new(format!("loading {}", file.display()));
            let mut names = runtime.load_image(&file).await?;
            if let Some(name) = name {
                let [image] = names.as_slice() else {
                    return Err(Failure::new(format!(
                        "loaded {} images, so that --name does not say which of them it names",
                        names.len()
                    )));
                };
                runtime.tag_image(image, &name).await?;
                names.push(name);
            }
            drop(progress);
            for name in names {
                out.line(format_args!("loaded {name}"))?;
            }
            Ok(())
        }
    }
}

/// The configured runtime, without a service around it.
pub(crate) async fn runtime(loaded: &Loaded) -> Result<Arc<dyn Runtime>, Failure> {
    let name = &loaded.settings.runtime.plugin;
    let registry = plugins::registry();
    let plugin = registry
        .runtimes
        .get(name)
        .ok_or_else(|| Failure::new(format!("there is no runtime plugin {name:?}")))?;
    let context = Context {
        state_dir: loaded.settings.paths.state.clone(),
        local: loaded.profile.is_local(),
    };
    Ok(plugin.build(&loaded.section("runtime", name), context).await?)
}

async fn list(runtime: &dyn Runtime, json: bool, out: &mut Out) -> Result<(), Failure> {
    let images = runtime.images().await?;
    if json {
        return Ok(out.json(&images)?);
    }
    Ok(out.table(
        &["NAME", "ID", "SIZE", "USER"],
        images.iter().flat_map(rows).collect(),
    )?)
}

/// One for each name.
fn rows(image: &Image) -> Vec<Vec<String>> {
    let named = |name: String| {
        let user = if image.user.is_empty() {
            "root"
        } else {
            &image.user
        };
        vec![
            name,
            short(&image.id).to_owned(),
            bytes(image.size_bytes),
            user.to_owned(),
        ]
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
