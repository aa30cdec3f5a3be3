//! The host service: one binary for the service and its command line.

use std::{env, ffi::OsString, process::ExitCode};

use host_config::Sources;
use host_service::{
    cli::{self, Layers},
    plugins,
};

fn main() -> ExitCode {
    if let Some(code) = plugins::dispatch(env::args_os()) {
        return code;
    }
    match cli::parse(env::args_os()) {
        Ok(invocation) => {
            let sources = sources(&invocation.layers);
            cli::execute(invocation, &sources)
        }
        Err(code) => code,
    }
}

/// The command line's layers over those of this process's environment.
fn sources(layers: &Layers) -> Sources {
    Sources {
        profile: layers.profile.clone(),
        app_env: env::var_os("APP_ENV").map(text),
        files: layers.config.clone(),
        env: env::vars_os().map(|(name, value)| (text(name), text(value))).collect(),
        set: layers.set.clone(),
        ..Sources::default()
    }
}

/// What is no UTF-8 is no setting of ours; where it should be one, its strange characters are seen in the error.
fn text(raw: OsString) -> String {
    raw.to_string_lossy().into_owned()
}
