//! `plugin new`: a project that builds, with a test and CI.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use super::super::{
    args::{Language, PluginNewArgs},
    failure::Failure,
    output::{GREEN, Out},
};

/// A file of a project: its path and its text, in which `@name@` and `@sdk@` are replaced.
type Template = (&'static str, &'static str);

macro_rules! template {
    ($path:literal, $file:literal) => {
        ($path, include_str!(concat!("../../../templates/", $file)))
    };
}

const RUST: &[Template] = &[
    template!("Cargo.toml", "plugin-rust/Cargo.toml.in"),
    template!("src/lib.rs", "plugin-rust/lib.rs.in"),
    template!(".github/workflows/ci.yml", "plugin-rust/ci.yml.in"),
    template!(".gitignore", "plugin-rust/gitignore.in"),
];

const C: &[Template] = &[
    template!("Makefile", "plugin-c/Makefile.in"),
    template!("plugin.c", "plugin-c/plugin.c.in"),
    template!(".github/workflows/ci.yml", "plugin-c/ci.yml.in"),
    ("host_plugin.h", include_str!("../../../../plugins/abi/include/host_plugin.h")),
];

pub(super) fn new(args: &PluginNewArgs, out: &mut Out) -> Result<(), Failure> {
    let (files, sdk) = match args.lang {
        Language::Rust => (RUST, sdk(args.sdk.as_deref())?),
        Language::C => (C, String::new()),
    };
    let project = Path::new(&args.name);
    let cannot = |error| Failure::new(format!("{}: cannot be made: {error}", project.display()));
    fs::create_dir(project).map_err(cannot)?;
    for (path, text) in files {
        let path = project.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(cannot)?;
        }
        fs::write(&path, text.replace("@name@", &args.name).replace("@sdk@", &sdk)).map_err(cannot)?;
    }
    out.line(format_args!("{GREEN}made{GREEN:#} {}", project.display()))?;
    let (build, library) = match args.lang {
        Language::Rust => ("cargo build --release", format!("target/release/lib{}.so", args.name)),
        Language::C => ("make", format!("lib{}.so", args.name)),
    };
    out.line(format_args!("  cd {} && {build}", project.display()))?;
    out.line(format_args!("  host-service plugin check {library}"))?;
    out.line(format_args!("  host-service plugin install {library} --pin"))?;
    Ok(())
}

/// Where the SDK is, below the source of the host service.
const SDK: &str = "plugins/sdk/Cargo.toml";

/// The source of the host service, as a project elsewhere names it.
fn sdk(given: Option<&Path>) -> Result<String, Failure> {
    let Some(source) = given.map(Path::to_owned).or_else(source) else {
        return Err(Failure::new(
            "the source of this host service, which has the SDK, is not around; say where it is by --sdk DIR",
        ));
    };
    let wrong = |why: String| Failure::new(format!("--sdk {}: {why}", source.display()));
    let source = source.canonicalize().map_err(|error| wrong(error.to_string()))?;
    if !source.join(SDK).is_file() {
        return Err(wrong(format!("is not the source of this host service; there is no {SDK} in it")));
    }
    let text = source.to_str().filter(|text| !text.contains(['"', '\\']));
    Ok(text.ok_or_else(|| wrong("cannot be written in a Cargo.toml".to_owned()))?.to_owned())
}

/// The source around this directory, or around this very program.
fn source() -> Option<PathBuf> {
    let around = [env::current_dir(), env::current_exe()];
    let has_sdk = |directory: &&Path| directory.join(SDK).is_file();
    around.iter().flatten().find_map(|path| path.ancestors().find(has_sdk).map(Path::to_owned))
}
