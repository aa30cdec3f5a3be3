//! From a plugin's name in the configuration to the plugin. A new in-tree plugin exports one [`Plugin`] and is
//! added to the host's list by one line.

use std::{collections::BTreeMap, fmt, future::Future, path::PathBuf, sync::Arc};

use futures::future::BoxFuture;
use serde::de::DeserializeOwned;

use crate::{error::PluginError, gpu::Gpu, pubsub::PubSub, runtime::Runtime, telemetry::Telemetry};

/// A plugin's own section of the configuration, `[<kind>.<name>]`; `null` when there is none.
pub type Section = serde_json::Value;

/// What a plugin may know of its host when it is built.
#[derive(Debug, Clone)]
pub struct Context {
    /// A directory of the service's own (0700) that outlives a restart but not a reboot.
    pub state_dir: PathBuf,
    /// The profile is one of the local ones: convenience before strictness.
    pub local: bool,
    /// Who wants it.
    pub role: Role,
}

/// Who a plugin is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The service itself. At most one at a time on what the plugin manages.
    Service,
    /// A command that looks or loads and is gone, perhaps beside a running service: it changes nothing of what that
    /// one holds, and keeps nothing ready.
    Tool,
}

/// A value in a plugin's section is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SectionError {
    /// Dotted path within the section; empty for the section itself.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

type Check = dyn Fn(&Section) -> Result<(), SectionError> + Send + Sync;
type Build<P> = dyn Fn(&Section, Context) -> BoxFuture<'static, Result<Arc<P>, PluginError>> + Send + Sync;

/// One implementation of a trait: its name, how its section is checked, how it is built.
pub struct Plugin<P: ?Sized> {
    name: &'static str,
    check: Box<Check>,
    build: Box<Build<P>>,
}

impl<P: ?Sized + 'static> Plugin<P> {
    /// `C` is the section's type (`#[serde(deny_unknown_fields, default)]`); `build` may do I/O.
    pub fn new<C, F, Fut>(name: &'static str, build: F) -> Self
    where
        C: DeserializeOwned + Default + Send + 'static,
        F: Fn(C, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Arc<P>, PluginError>> + Send + 'static,
    {
        let checked = |section: &Section| read_section::<C>(section).map(drop);
        let build = move |section: &Section, context: Context| -> BoxFuture<'static, _> {
            match read_section::<C>(section) {
                Ok(config) => Box::pin(build(config, context)),
                Err(error) => Box::pin(async move { Err(invalid(name, &error)) }),
            }
        };
        Self { name, check: Box::new(checked), build: Box::new(build) }
    }

    /// One that is not known when this program is built: it checks and reads its section itself. The name is kept for
    /// ever, as plugins are.
    pub fn dynamic(
        name: String,
        check: impl Fn(&Section) -> Result<(), SectionError> + Send + Sync + 'static,
        build: impl Fn(&Section, Context) -> BoxFuture<'static, Result<Arc<P>, PluginError>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self { name: name.leak(), check: Box::new(check), build: Box::new(build) }
    }

    /// As written in the configuration.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether `section` could be used, without building anything.
    ///
    /// # Errors
    /// The first wrong value.
    pub fn check(&self, section: &Section) -> Result<(), SectionError> {
        (self.check)(section)
    }

    /// The plugin itself, ready for use.
    ///
    /// # Errors
    /// Whatever keeps it from working: its section, or the component behind it.
    pub async fn build(&self, section: &Section, context: Context) -> Result<Arc<P>, PluginError> {
        (self.build)(section, context).await
    }
}

impl<P: ?Sized> fmt::Debug for Plugin<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Plugin").field(&self.name).finish()
    }
}

fn read_section<C: DeserializeOwned + Default>(section: &Section) -> Result<C, SectionError> {
    if section.is_null() {
        return Ok(C::default());
    }
    serde_path_to_error::deserialize(section).map_err(|error| SectionError {
        path: Some(error.path().to_string()).filter(|path| path != ".").unwrap_or_default(),
        message: error.inner().to_string(),
    })
}

fn invalid(name: &str, error: &SectionError) -> PluginError {
    let place = if error.path.is_empty() { name.to_owned() } else { format!("{name}.{}", error.path) };
    PluginError::new(crate::error::ErrorKind::Invalid, format!("section {place}: {}", error.message))
}

/// The plugins of one kind, by name.
#[derive(Debug)]
pub struct Plugins<P: ?Sized>(BTreeMap<&'static str, Plugin<P>>);

impl<P: ?Sized> Default for Plugins<P> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<P: ?Sized + 'static> Plugins<P> {
    /// Adds one; a later one replaces an earlier one of the same name.
    #[must_use]
    pub fn with(mut self, plugin: Plugin<P>) -> Self {
        self.0.insert(plugin.name, plugin);
        self
    }

    /// The plugin of that name.
    pub fn get(&self, name: &str) -> Option<&Plugin<P>> {
        self.0.get(name)
    }

    /// Every name.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }
}

/// Every plugin this binary knows.
#[derive(Debug, Default)]
pub struct Registry {
    /// Container runtimes.
    pub runtimes: Plugins<dyn Runtime>,
    /// GPU access.
    pub gpus: Plugins<dyn Gpu>,
    /// Control planes.
    pub pubsubs: Plugins<dyn PubSub>,
    /// Destinations of records.
    pub telemetries: Plugins<dyn Telemetry>,
}
