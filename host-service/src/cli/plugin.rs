//! `plugin …`: plugins in shared libraries; no service needs to run.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use host_config::Loaded;
use host_core::{chain, registry::Plugins};
use host_plugin_loader::{Description, Loader};
use serde::Serialize;

use super::{
    args::PluginCommand,
    failure::Failure,
    output::{GREEN, Out},
};
use crate::plugins;

mod check;
mod new;

pub(crate) fn execute(
    command: PluginCommand,
    load: impl FnOnce() -> Result<Loaded, Failure>,
    out: &mut Out,
) -> Result<(), Failure> {
    match command {
        PluginCommand::List(args) => list(&plugins::loader(&load()?), args.json, out),
        PluginCommand::Check(args) => check::check(&args, &load()?, out),
        PluginCommand::New(args) => new::new(&args, out),
        PluginCommand::Install { file, pin } => install(&plugins::loader(&load()?), &file, pin, out),
    }
}

/// One line of `plugin list`.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    kinds: Vec<String>,
    version: Option<String>,
    /// `None` for one that is compiled in.
    file: Option<PathBuf>,
    /// Why it cannot be loaded.
    error: Option<String>,
}

fn list(loader: &Loader, json: bool, out: &mut Out) -> Result<(), Failure> {
    let mut all = compiled_in();
    for file in loader.files()? {
        all.push(match loader.describe(&file) {
            Ok((description, _)) => Listed {
                name: description.name.clone(),
                kinds: kinds(&description),
                version: Some(description.version),
                file: Some(file),
                error: None,
            },
            Err(error) => Listed {
                name: name_of(&file),
                kinds: Vec::new(),
                version: None,
                file: Some(file),
                error: Some(chain(&error)),
            },
        });
    }
    if json {
        return Ok(out.json(&all)?);
    }
    let row = |listed: Listed| {
        let from = listed.file.map_or_else(|| "built in".to_owned(), |file| file.display().to_string());
        let state = listed.error.unwrap_or_else(|| "ok".to_owned());
        vec![listed.name, listed.kinds.join(", "), listed.version.unwrap_or_default(), from, state]
    };
    Ok(out.table(&["NAME", "KIND", "VERSION", "FROM", "STATE"], all.into_iter().map(row).collect())?)
}

fn compiled_in() -> Vec<Listed> {
    fn of<P: ?Sized + 'static>(kind: &'static str, plugins: &Plugins<P>) -> Vec<Listed> {
        let listed = |name: &str| Listed {
            name: name.to_owned(),
            kinds: vec![kind.to_owned()],
            version: Some(crate::build_info::VERSION.to_owned()),
            file: None,
            error: None,
        };
        plugins.names().map(listed).collect()
    }
    let registry = plugins::built_in();
    let all = [
        of("runtime", &registry.runtimes),
        of("gpu", &registry.gpus),
        of("pubsub", &registry.pubsubs),
        of("telemetry", &registry.telemetries),
    ];
    all.into_iter().flatten().collect()
}

fn kinds(description: &Description) -> Vec<String> {
    description.kinds().iter().map(ToString::to_string).collect()
}

/// Of `libacme.so`, where nothing can be asked.
fn name_of(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    stem.strip_prefix("lib").unwrap_or(&stem).to_owned()
}

fn install(loader: &Loader, file: &Path, pin: bool, out: &mut Out) -> Result<(), Failure> {
    let (description, sha256) = loader.describe(file)?;
    let (target, pin_file) = (loader.file(&description.name), loader.pin_file(&description.name));
    let directory = target.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .map_err(|error| Failure::new(format!("{}: cannot be made: {error}", directory.display())))?;
    // A pin of what was there before would refuse the new one: it goes first.
    match fs::remove_file(&pin_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    put(&target, &fs::read(file)?, 0o755)?;
    if pin {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        put(&pin_file, format!("{sha256}  {name}\n").as_bytes(), 0o644)?;
    }
    out.line(format_args!("{GREEN}installed{GREEN:#} {} {}", description.name, description.version))?;
    out.line(format_args!("  {}{}", target.display(), if pin { ", pinned" } else { "" }))?;
    out.line(format_args!("  sha256 {sha256}"))?;
    for kind in kinds(&description) {
        let key = if kind == "telemetry" {
            format!("plugins = [\"{}\"]", description.name)
        } else {
            format!("plugin = \"{}\"", description.name)
        };
        out.line(format_args!("  to use it: [{kind}] {key}"))?;
    }
    Ok(())
}

/// By rename: whoever has the old one loaded keeps it.
fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let cannot = |error| Failure::new(format!("{}: cannot be written: {error}", path.display()));
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot(error)),
        _ => {}
    }
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).map_err(cannot)?;
    io::Write::write_all(&mut file, bytes).and_then(|()| file.sync_all()).map_err(cannot)?;
    fs::rename(&new, path).map_err(cannot)
}
