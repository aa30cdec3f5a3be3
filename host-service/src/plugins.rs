//! The plugins compiled in. This is the only place that names one: a new one is one line here and its dependency.

use std::{
    env::{self, ArgsOs},
    process::ExitCode,
    slice,
    sync::Arc,
};

use host_config::{ConfigError, Loaded};
use host_core::{
    ErrorKind, PluginError, chain,
    registry::{Context, Plugin, Plugins, Registry, Role},
};
use host_plugin_loader::{Interface, Loader, Runner};
use secrecy::SecretString;

/// Some plugins execute this program again, for processes beside the service. If this one is such a process: is it, to
/// its end. To be called before anything else.
pub fn dispatch(arguments: ArgsOs) -> Option<ExitCode> {
    if env::args_os().nth(1).is_some_and(|first| first == RUNNER) {
        host_plugin_loader::runner::main()
    }
    runtime_oci::dispatch(arguments)
}

/// The argument that makes this program a process for one plugin.
const RUNNER: &str = "plugin-runner";

/// What loads plugins from the directory of `loaded`.
pub(crate) fn loader(loaded: &Loaded) -> Loader {
    // Also the same program when its file was replaced meanwhile.
    let runner = Runner { program: "/proc/self/exe".into(), arguments: vec![RUNNER.into()] };
    Loader::new(loaded.settings.paths.plugins.clone(), runner)
}

/// Creates or updates the schema in the database of `[pubsub.postgres]`, or in that at `url`; what was done, in words.
///
/// # Errors
/// The section or the URL is wrong, or the database cannot be changed.
pub(crate) async fn migrate(loaded: &Loaded, url: Option<SecretString>) -> Result<String, PluginError> {
    let section = loaded.section("pubsub", "postgres");
    let section = if section.is_null() { serde_json::json!({}) } else { section };
    let config: pubsub_postgres::Config = serde_json::from_value(section)
        .map_err(|error| PluginError::new(ErrorKind::Invalid, format!("pubsub.postgres: {error}")))?;
    let config = match url {
        Some(url) => {
            let given = pubsub_postgres::Config::with_url(url)
                .map_err(|error| PluginError::new(ErrorKind::Invalid, format!("--url: {error}")))?;
            pubsub_postgres::Config { url: given.url, ..config }
        }
        None => config,
    };
    let migrated = pubsub_postgres::migrate(&config, loaded.profile.is_local()).await?;
    Ok(migrated.to_string())
}

/// Every plugin that is compiled in, and of those in libraries the ones that `loaded` names. Nothing is loaded yet.
pub(crate) fn registry(loaded: &Loaded) -> Registry {
    let (settings, loader) = (&loaded.settings, loader(loaded));
    let Registry { runtimes, gpus, pubsubs, telemetries } = built_in();
    let one = slice::from_ref;
    Registry {
        runtimes: with(runtimes, loaded, "runtime", one(&settings.runtime.plugin), |name| {
            loader.runtime(name)
        }),
        gpus: with(gpus, loaded, "gpu", one(&settings.gpu.plugin), |name| loader.gpu(name)),
        pubsubs: with(pubsubs, loaded, "pubsub", one(&settings.pubsub.plugin), |name| loader.pubsub(name)),
        telemetries: with(telemetries, loaded, "telemetry", &settings.telemetry.plugins, |name| {
            loader.telemetry(name)
        }),
    }
}

/// What is wrong with the libraries that `loaded` names, or with their sections: each is asked in a process of its own.
/// Blocks.
pub(crate) fn check_libraries(loaded: &Loaded) -> Vec<ConfigError> {
    let (settings, loader, built_in) = (&loaded.settings, loader(loaded), built_in());
    let is_built_in = |interface, name: &str| match interface {
        Interface::Runtime => built_in.runtimes.get(name).is_some(),
        Interface::Gpu => built_in.gpus.get(name).is_some(),
        Interface::PubSub => built_in.pubsubs.get(name).is_some(),
        Interface::Telemetry => built_in.telemetries.get(name).is_some(),
    };
    let single = [
        (Interface::Runtime, &settings.runtime.plugin),
        (Interface::Gpu, &settings.gpu.plugin),
        (Interface::PubSub, &settings.pubsub.plugin),
    ];
    let telemetries = settings.telemetry.plugins.iter().map(|name| (Interface::Telemetry, name));
    let wrong = |(interface, name): (Interface, &String)| {
        let kind = interface.to_string();
        let error = loader.check(interface, name, &loaded.section(&kind, name)).err()?;
        Some(loaded.error_at(&format!("{kind}.{name}"), chain(&error)))
    };
    let libraries =
        single.into_iter().chain(telemetries).filter(|(interface, name)| !is_built_in(*interface, name));
    libraries.filter_map(wrong).collect()
}

/// And those that are named, not compiled in, and there as a file.
fn with<P: ?Sized + 'static>(
    plugins: Plugins<P>,
    loaded: &Loaded,
    kind: &str,
    chosen: &[String],
    dynamic: impl Fn(&str) -> Plugin<P>,
) -> Plugins<P> {
    let loader = loader(loaded);
    let sections = loaded.sections(kind);
    chosen.iter().chain(&sections).fold(plugins, |plugins, name| {
        let wanted = plugins.get(name).is_none() && loader.file(name).exists();
        if wanted { plugins.with(dynamic(name)) } else { plugins }
    })
}

/// Every plugin that is compiled in.
pub fn built_in() -> Registry {
    Registry {
        runtimes: Plugins::default()
            .with(runtime_docker::plugin())
            .with(runtime_oci::plugin())
            .with(runtime_podman::plugin())
            .with(runtime_sim::plugin()),
        gpus: Plugins::default().with(gpu_none::plugin()).with(gpu_nvml::plugin()).with(gpu_sim::plugin()),
        pubsubs: Plugins::default()
            .with(pubsub_hasura::plugin())
            .with(pubsub_memory::plugin())
            .with(pubsub_postgres::plugin()),
        telemetries: Plugins::default()
            .with(telemetry_console::plugin())
            .with(telemetry_logzio::plugin())
            .with(telemetry_sentry::plugin()),
    }
}

/// The plugin that `[kind]` calls `name`, built from its own section.
///
/// # Errors
/// There is none, or it cannot be built.
pub(crate) async fn build<P: ?Sized + 'static>(
    plugins: &Plugins<P>,
    kind: &str,
    name: &str,
    loaded: &Loaded,
    role: Role,
) -> Result<Arc<P>, PluginError> {
    let context =
        Context { state_dir: loaded.settings.paths.state.clone(), local: loaded.profile.is_local(), role };
    match plugins.get(name) {
        Some(plugin) => plugin.build(&loaded.section(kind, name), context).await,
        None => Err(PluginError::new(ErrorKind::NotFound, format!("there is no {kind} plugin {name:?}"))),
    }
}
