//! Dynamic plugins as the registry knows plugins.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::FutureExt;
use host_core::{
    ErrorKind, PluginError, chain,
    gpu::Gpu,
    pubsub::PubSub,
    registry::{Context, Plugin, Role, Section, SectionError},
    runtime::Runtime,
    telemetry::Telemetry,
};
use host_plugin_protocol::{Caller, Encoding, Interface, Remote, constants, decode_error};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    backend::{Backend, InProcess},
    calls::{Calls, Sink},
    instance::Instance,
    library::{Description, Library},
    process::{self, Process, Start},
    runner::Load,
    schema,
    trust::Trusted,
};

/// How long a plugin may take to get ready: as long as an engine that is being started.
const CREATE: Duration = Duration::from_secs(60);

/// Where a plugin runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// In the host's process: fast, and a crash is the host's.
    #[default]
    InProcess,
    /// In a process of its own: a crash fails its calls, and it is started again.
    Process,
}

/// How a runner is started: this very program, with arguments that make it one.
#[derive(Debug, Clone)]
pub struct Runner {
    /// The program.
    pub program: PathBuf,
    /// What makes it a runner.
    pub arguments: Vec<OsString>,
}

/// What of a plugin's section is the host's to read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Own {
    isolation: Isolation,
    sha256: Option<String>,
}

const OWN: [&str; 2] = ["isolation", "sha256"];

/// Loads plugins from one directory.
#[derive(Debug, Clone)]
pub struct Loader {
    directory: PathBuf,
    runner: Runner,
}

/// What a [`Remote`] is for the registry.
trait Kind {
    const INTERFACE: Interface;
    fn of(remote: Remote) -> Arc<Self>;
}

macro_rules! kinds {
    ($($method:ident: $trait:ident),*) => {
        $(impl Kind for dyn $trait {
            const INTERFACE: Interface = Interface::$trait;
            fn of(remote: Remote) -> Arc<Self> {
                Arc::new(remote)
            }
        })*

        impl Loader {
            $(
                #[doc = concat!("The [`", stringify!($trait), "`] of this name, loaded when it is built.")]
                pub fn $method(&self, name: &str) -> Plugin<dyn $trait> {
                    self.plugin(name)
                }
            )*
        }
    };
}
kinds!(runtime: Runtime, gpu: Gpu, pubsub: PubSub, telemetry: Telemetry);

impl Loader {
    /// From this directory and no other.
    pub fn new(directory: PathBuf, runner: Runner) -> Self {
        Self { directory, runner }
    }

    /// Where the plugin of that name lies.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("lib{}.so", name.replace('-', "_")))
    }

    /// Where its pin lies, which `plugin install --pin` writes.
    pub fn pin_file(&self, name: &str) -> PathBuf {
        self.file(name).with_extension("so.sha256")
    }

    /// The files of the directory that are named like plugins; none where there is no such directory.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let is_plugin = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("lib") && name.ends_with(".so")
        };
        let paths: Result<Vec<_>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
        let mut paths: Vec<_> = paths?.into_iter().filter(is_plugin).collect();
        paths.sort();
        Ok(paths)
    }

    /// What the plugin in this file says of itself, and the file's digest. It is loaded in a process of its own, which is
    /// then ended. Blocks.
    ///
    /// # Errors
    /// It is not to be trusted, or no plugin for this host.
    pub fn describe(&self, path: &Path) -> Result<(Description, String), PluginError> {
        let trusted = Trusted::read(path, None).map_err(|error| refused(path, &error))?;
        let start = self.start(&trusted, 0, Vec::new());
        let description = process::describe(&start).map_err(|error| about(path, error))?;
        Ok((description, trusted.sha256))
    }

    fn plugin<P: ?Sized + Kind + Send + Sync + 'static>(&self, name: &str) -> Plugin<P> {
        let (loader, called) = (self.clone(), name.to_owned());
        let build = move |section: &Section, context: Context| {
            let (loader, name, section) = (loader.clone(), called.clone(), section.clone());
            async move {
                let (trusted, own, section) = loader.find(&name, &section)?;
                let wanted = Wanted { name: Some(&name), interface: P::INTERFACE, section, context };
                Ok(P::of(loader.open(trusted, own.isolation, wanted).await?))
            }
            .boxed()
        };
        Plugin::dynamic(name.to_owned(), |section| split(section).map(drop), build)
    }

    /// The file of that name, and its section without what is the host's.
    fn find(&self, name: &str, section: &Section) -> Result<(Trusted, Own, Section), PluginError> {
        let path = self.file(name);
        let pin = fs::read_to_string(self.pin_file(name)).ok();
        let pin = pin.as_deref().and_then(|text| text.split_whitespace().next());
        let (own, section) = split(section).map_err(|error| invalid(name, &error))?;
        let pin = own.sha256.as_deref().or(pin);
        let trusted =
            Trusted::read_in(&self.directory, &path, pin).map_err(|error| refused(&path, &error))?;
        Ok((trusted, own, section))
    }

    /// Whether the plugin of that name would be loaded, and takes this section. It is asked in a process of its own,
    /// which is then ended. Blocks.
    ///
    /// # Errors
    /// It is not to be trusted, no plugin of this kind, or its section is wrong.
    pub fn check(&self, interface: Interface, name: &str, section: &Section) -> Result<(), PluginError> {
        let (trusted, _, section) = self.find(name, section)?;
        let path = &trusted.path;
        let described = process::describe(&self.start(&trusted, 0, Vec::new()));
        let description = described.map_err(|error| about(path, error))?;
        agreed(path, &description, Some(name), interface, &section).map(drop)
    }

    /// An instance of the plugin in any file, for trials: under its own name, from any directory.
    ///
    /// # Errors
    /// It is not to be trusted, no plugin of this kind, or not ready.
    pub async fn trial(
        &self,
        path: &Path,
        interface: Interface,
        isolation: Isolation,
        section: Section,
        context: Context,
    ) -> Result<Remote, PluginError> {
        let trusted = Trusted::read(path, None).map_err(|error| refused(path, &error))?;
        self.open(trusted, isolation, Wanted { name: None, interface, section, context }).await
    }

    async fn open(
        &self,
        file: Trusted,
        isolation: Isolation,
        wanted: Wanted<'_>,
    ) -> Result<Remote, PluginError> {
        let path = file.path.clone();
        let interface = wanted.interface;
        let config = wanted.config();
        let instance = match isolation {
            Isolation::InProcess => {
                let (library, description) = Library::load(&file).map_err(|error| refused(&path, &error))?;
                let encoding = wanted.check(&path, &description)?;
                let calls = Arc::new(Calls::new(description.name));
                let sink: Arc<dyn Sink> = Arc::<Calls>::clone(&calls);
                let make = move || InProcess::create(library, encoding, &config, sink, CREATE);
                let made = tokio::task::spawn_blocking(make).await;
                let made = made.map_err(|error| {
                    PluginError::new(ErrorKind::Internal, "making the plugin failed").with_source(error)
                })?;
                let backend = made.map_err(|(status, body)| decode_error(encoding, status, &body))?;
                Instance::new(calls, Arc::new(backend) as Arc<dyn Backend>, encoding)
            }
            Isolation::Process => {
                let start = self.start(&file, 0, Vec::new());
                let described = tokio::task::spawn_blocking(move || process::describe(&start)).await;
                let description = described
                    .map_err(|error| {
                        PluginError::new(ErrorKind::Internal, "asking the plugin failed").with_source(error)
                    })?
                    .map_err(|error| about(&path, error))?;
                let encoding = wanted.check(&path, &description)?;
                let calls = Arc::new(Calls::new(description.name));
                let start = self.start(&file, encoding.bit(), config);
                let backend = Process::start(start, Arc::clone(&calls)).await?;
                Instance::new(calls, Arc::new(backend) as Arc<dyn Backend>, encoding)
            }
        };
        let caller: Arc<dyn Caller> = Arc::new(instance);
        Remote::connect(caller, constants(interface)).await
    }

    /// Every later start is of the very bytes that were looked at now.
    fn start(&self, file: &Trusted, encoding: u32, config: Vec<u8>) -> Start {
        let load = Load {
            path: file.path.clone(),
            sha256: Some(file.sha256.clone()),
            encoding,
            log_level: Calls::new(String::new()).log_level(),
            create_ms: u64::try_from(CREATE.as_millis()).unwrap_or(u64::MAX),
        };
        Start { program: self.runner.program.clone(), arguments: self.runner.arguments.clone(), load, config }
    }
}

struct Wanted<'a> {
    /// It must be the plugin's own.
    name: Option<&'a str>,
    interface: Interface,
    section: Section,
    context: Context,
}

impl Wanted<'_> {
    fn check(&self, path: &Path, description: &Description) -> Result<Encoding, PluginError> {
        agreed(path, description, self.name, self.interface, &self.section)
    }

    fn config(&self) -> Vec<u8> {
        let role = match self.context.role {
            Role::Service => "service",
            Role::Tool => "tool",
        };
        let config = json!({
            "interface": self.interface.id(),
            "section": self.section,
            "state_dir": self.context.state_dir,
            "local": self.context.local,
            "role": role,
        });
        config.to_string().into_bytes()
    }
}

/// What is spoken with a plugin that is the one that is wanted, and takes this section.
fn agreed(
    path: &Path,
    description: &Description,
    name: Option<&str>,
    interface: Interface,
    section: &Section,
) -> Result<Encoding, PluginError> {
    let encoding = description.agree(interface).map_err(|error| refused(path, &error))?;
    if let Some(name) = name.filter(|name| *name != description.name) {
        let text = format!("{}: calls itself {:?}, not {name:?}", path.display(), description.name);
        return Err(PluginError::new(ErrorKind::Invalid, text));
    }
    let schema = description.config_schema.as_deref().map(serde_json::from_str::<Value>);
    if let Some(Ok(schema)) = schema {
        let section = if section.is_null() { json!({}) } else { section.clone() };
        schema::check(&schema, &section).map_err(|error| invalid(&description.name, &error))?;
    }
    Ok(encoding)
}

/// The host's part of a section, and the plugin's.
fn split(section: &Section) -> Result<(Own, Section), SectionError> {
    let Value::Object(all) = section else { return Ok((Own::default(), section.clone())) };
    let (own, rest): (Vec<_>, Vec<_>) =
        all.clone().into_iter().partition(|(name, _)| OWN.contains(&name.as_str()));
    let own = Own::deserialize(Value::Object(own.into_iter().collect())).map_err(|error| SectionError {
        path: String::new(),
        message: format!("isolation, sha256: {error}"),
    })?;
    let rest: serde_json::Map<_, _> = rest.into_iter().collect();
    Ok((own, if rest.is_empty() { Value::Null } else { Value::Object(rest) }))
}

fn invalid(name: &str, error: &SectionError) -> PluginError {
    let place = if error.path.is_empty() { name.to_owned() } else { format!("{name}.{}", error.path) };
    PluginError::new(ErrorKind::Invalid, format!("section {place}: {}", error.message))
}

fn refused(path: &Path, error: &(dyn std::error::Error + 'static)) -> PluginError {
    about(path, PluginError::new(ErrorKind::Invalid, chain(error)))
}

/// Says which file, unless it does already.
fn about(path: &Path, error: PluginError) -> PluginError {
    let text = chain(&error);
    if text.contains(&*path.to_string_lossy()) {
        return error;
    }
    PluginError::new(error.kind(), format!("{}: {text}", path.display())).with_retry(error.retry())
}
