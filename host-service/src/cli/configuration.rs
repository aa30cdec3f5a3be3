//! Loading the configuration, and `config show` and `config check`.

use host_config::{ConfigError, ConfigErrors, Loaded, Origin, Sources, nearest};
use host_core::registry::{Plugins, Registry};

use super::{
    failure::Failure,
    output::{GREEN, Out},
    status::list,
};
use crate::plugins;

/// Settings that can be used: every plugin named exists, and every plugin's own section suits it.
pub(crate) fn load(sources: &Sources) -> Result<Loaded, Failure> {
    let loaded = host_config::load(sources)?;
    ConfigErrors::check(check_plugins(&loaded, &plugins::registry(&loaded)))?;
    Ok(loaded)
}

fn check_plugins(loaded: &Loaded, registry: &Registry) -> Vec<ConfigError> {
    let settings = &loaded.settings;
    let one = std::slice::from_ref;
    let mut errors = Vec::new();
    errors.extend(check_kind(loaded, "runtime", &registry.runtimes, "plugin", one(&settings.runtime.plugin)));
    errors.extend(check_kind(loaded, "gpu", &registry.gpus, "plugin", one(&settings.gpu.plugin)));
    errors.extend(check_kind(loaded, "pubsub", &registry.pubsubs, "plugin", one(&settings.pubsub.plugin)));
    let telemetry = &settings.telemetry.plugins;
    errors.extend(check_kind(loaded, "telemetry", &registry.telemetries, "plugins", telemetry));
    errors
}

/// The plugins named by `[kind] key`, and the sections of all plugins of that kind: also of those not chosen, so
/// that a mistake does not wait for the day they are.
fn check_kind<P: ?Sized + 'static>(
    loaded: &Loaded,
    kind: &str,
    plugins: &Plugins<P>,
    key: &str,
    named: &[String],
) -> Vec<ConfigError> {
    let unknown = named.iter().filter(|name| plugins.get(name).is_none());
    let mut errors: Vec<_> = unknown
        .map(|name| loaded.error_at(&format!("{kind}.{key}"), no_plugin(kind, name, plugins)))
        .collect();
    for name in loaded.sections(kind) {
        match plugins.get(&name).map(|plugin| plugin.check(&loaded.section(kind, &name))) {
            Some(Ok(())) => {}
            Some(Err(error)) => errors.push(loaded.section_error(kind, &name, &error)),
            // Told already where it was chosen.
            None if named.contains(&name) => {}
            None => errors.push(loaded.error_at(&format!("{kind}.{name}"), no_plugin(kind, &name, plugins))),
        }
    }
    errors
}

fn no_plugin<P: ?Sized + 'static>(kind: &str, name: &str, plugins: &Plugins<P>) -> String {
    let names: Vec<_> = plugins.names().collect();
    let remedy = match nearest(name, plugins.names()) {
        Some(near) => format!("did you mean {near}?"),
        None if names.is_empty() => "this build has none".to_owned(),
        None => format!("there are {}", names.join(", ")),
    };
    format!("there is no {kind} plugin {name:?}; {remedy}")
}

/// `config show`: lines of TOML, each with its origin when asked for.
pub(crate) fn show(loaded: &Loaded, origins: bool, out: &mut Out) -> Result<(), Failure> {
    let effective = loaded.effective();
    let lines: Vec<_> = effective.iter().map(|set| format!("{} = {}", set.key, set.value)).collect();
    let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or_default().min(MOST_WIDTH);
    out.line(format_args!("# profile {}", loaded.profile))?;
    for (line, set) in lines.iter().zip(&effective) {
        let colour = if set.origin.is_user() { GREEN } else { anstyle::Style::new() };
        match origins {
            true => out.line(format_args!("{colour}{line:width$}{colour:#}  # {}", tell(&set.origin)))?,
            false => out.line(format_args!("{colour}{line}{colour:#}"))?,
        }
    }
    Ok(())
}

/// Origins stand below each other, but a long value does not push all of them away.
const MOST_WIDTH: usize = 60;

/// On one line, whatever somebody called a file.
fn tell(origin: &Origin) -> String {
    origin.to_string().replace(char::is_control, "?")
}

/// `config check`: loading has checked everything but what only a plugin's library knows.
pub(crate) fn check(loaded: &Loaded, out: &mut Out) -> Result<(), Failure> {
    ConfigErrors::check(plugins::check_libraries(loaded))?;
    let settings = &loaded.settings;
    out.line(format_args!(
        "{GREEN}fine:{GREEN:#} profile {}, runtime {}, gpu {}, pubsub {}, telemetry {}",
        loaded.profile,
        settings.runtime.plugin,
        settings.gpu.plugin,
        settings.pubsub.plugin,
        list(&settings.telemetry.plugins),
    ))?;
    Ok(())
}
