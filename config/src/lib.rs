//! Typed settings of the host service: their layers, the five profiles, where each value came from, and errors
//! that name the place and the remedy.
//!
//! Layers, later ones win; tables are merged key by key, lists are replaced whole:
//!
//! 1. built-in defaults, `profiles/defaults.toml`, the one place of every default;
//! 2. the built-in profile, `profiles/<name>.toml`;
//! 3. `/etc/host-service/*.toml` in the order of their names;
//! 4. `--config` files in the order given;
//! 5. variables: `HOST_SERVICE__RUNTIME__PLUGIN=docker` sets `runtime.plugin`;
//! 6. arguments: `--set runtime.plugin=docker`.
//!
//! The value of a variable or argument is TOML where it is a number, `true` or `false`, a quoted text, a list or
//! an inline table, and the text itself otherwise; where a text is wanted, `--set instance.name=123` is one. In
//! a plugin's own section nobody here knows what is wanted: a text that looks like a number needs its quotes.
//!
//! Settings are [`Settings`], all known and all typed. The tables `[runtime.<name>]`, `[gpu.<name>]`,
//! `[pubsub.<name>]` and `[telemetry.<name>]` belong to the plugins, which read them by [`Loaded::section`] and
//! whose complaints [`Loaded::section_error`] gives their place.
//!
//! Invariants: this crate reads files and nothing else, neither variables nor arguments nor the network; no
//! error, origin or `Debug` shows a secret; everything wrong is told at once, each where it was written.

mod check;
mod document;
mod error;
mod key;
mod layer;
mod loaded;
mod mask;
mod origin;
mod profile;
mod rules;
mod settings;
mod sources;
mod tree;

pub use error::{ConfigError, ConfigErrors};
pub use key::nearest;
pub use loaded::{Effective, Loaded};
pub use origin::Origin;
pub use profile::{Profile, UnknownProfile};
pub use settings::{
    AdminSettings, AuthMode, AuthSettings, DeviceSettings, DrainSettings, GpuSettings, HttpSettings,
    ImageTemplate, InstanceSettings, InterruptionSettings, LimitSettings, MandelboxSettings,
    MandelboxTimeouts, Metadata, MetricsSettings, MountSettings, NumberRange, PathSettings, PubSubSettings,
    Pull, RuntimeSettings, SeccompChoice, Settings, TelemetrySettings, TmpfsSettings, VariableNames,
};
pub use sources::Sources;

/// Reads, merges and checks everything that `sources` name.
///
/// # Errors
/// Everything found wrong. What cannot be read is told alone, because nothing else is certain then.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
    let (loaded, errors) = read(sources)?;
    ConfigErrors::check(errors).map(|()| loaded)
}

/// Every value that is in force, as [`Loaded::effective`], together with what keeps this configuration from being
/// used: for people who want to see a profile that they have yet to complete.
///
/// # Errors
/// What cannot be read.
pub fn survey(sources: &Sources) -> Result<(Vec<Effective>, Vec<ConfigError>), ConfigErrors> {
    read(sources).map(|(loaded, errors)| (loaded.effective(), errors))
}

fn read(sources: &Sources) -> Result<(Loaded, Vec<ConfigError>), ConfigErrors> {
    let (profile, mut errors) = match sources::profile(sources) {
        Ok(profile) => (profile, Vec::new()),
        Err(error) => (Profile::Localdev, vec![error]),
    };
    let defaults = sources::defaults()?;
    let (layers, unread) = sources::layers(sources, profile);
    errors.extend(unread);
    ConfigErrors::check(errors)?;
    Loaded::new(profile, defaults, layers)
}
