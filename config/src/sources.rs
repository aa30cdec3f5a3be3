//! From where settings are read, and how each source becomes layers.

use std::{
    fmt,
    fs::{self, File},
    io::{self, ErrorKind, Read},
    path::{Path, PathBuf},
};

use figment::value::Value;

use crate::{
    document::{self, DEEPEST, Fault},
    error::ConfigError,
    key::Key,
    layer::Layer,
    mask,
    origin::Origin,
    profile::{DEFAULTS, Profile},
    tree,
};

/// Where settings come from. This crate itself reads files only: variables and arguments are passed in.
#[derive(Clone, PartialEq, Eq)]
pub struct Sources {
    /// `--profile`.
    pub profile: Option<String>,
    /// The variable `APP_ENV`.
    pub app_env: Option<String>,
    /// Its `*.toml` are read in the order of their names; it need not exist.
    pub system_dir: PathBuf,
    /// `--config`, in order.
    pub files: Vec<PathBuf>,
    /// The environment: variables that begin with `HOST_SERVICE__`, and `USE_PROD_LOGGING`, `LOGZIO_SHIPPING_TOKEN` and
    /// `SENTRY_DSN`, which are the fleet's own; all others are ignored.
    pub env: Vec<(String, String)>,
    /// `--set key=value`, in order.
    pub set: Vec<String>,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            profile: None,
            app_env: None,
            system_dir: "/etc/host-service".into(),
            files: Vec::new(),
            env: Vec::new(),
            set: Vec::new(),
        }
    }
}

impl fmt::Debug for Sources {
    /// Variables and arguments may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("profile", &self.profile)
            .field("app_env", &self.app_env)
            .field("system_dir", &self.system_dir)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

const PREFIX: &str = "HOST_SERVICE__";

/// More is no configuration.
const LARGEST_FILE_BYTES: u64 = 1 << 20;

/// The layers above the defaults, least first, and everything that kept one from being read.
pub(crate) fn layers(sources: &Sources, profile: Profile) -> (Vec<Layer>, Vec<ConfigError>) {
    let profile = built(profile.text(), Origin::Profile(profile.name()));
    let (system, unlisted) = match system_files(&sources.system_dir) {
        Ok(files) => (files, None),
        Err(error) => (Vec::new(), Some(unreadable(&sources.system_dir, &error))),
    };
    let files = system.iter().chain(&sources.files).map(|path| file(path));
    let results = std::iter::once(profile)
        .chain(unlisted.map(Err))
        .chain(files)
        .chain(customary(&sources.env))
        .chain(variables(&sources.env))
        .chain(sources.set.iter().map(|text| argument(text)));
    let (mut layers, mut errors) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(layer) => layers.push(layer),
            Err(error) => errors.push(error),
        }
    }
    match prod_logging(&sources.env, &layers) {
        // Under the variables of ours, which say exactly what they mean.
        Ok(Some(layer)) => layers.insert(below_variables(&layers), layer),
        Ok(None) => {}
        Err(error) => errors.push(error),
    }
    (layers, errors)
}

/// `--profile`, else `APP_ENV`, else `localdev`.
pub(crate) fn profile(sources: &Sources) -> Result<Profile, ConfigError> {
    let argument = sources.profile.as_ref().map(|name| (name, Origin::Argument(format!("--profile {name}"))));
    let variable = sources
        .app_env
        .as_ref()
        .filter(|name| !name.trim().is_empty())
        .map(|name| (name, Origin::Variable("APP_ENV".to_owned())));
    match argument.or(variable) {
        None => Ok(Profile::Localdev),
        Some((name, origin)) => name.parse().map_err(|unknown| ConfigError::Profile { origin, unknown }),
    }
}

/// The layer below all others.
pub(crate) fn defaults() -> Result<Layer, ConfigError> {
    built(DEFAULTS, Origin::Default)
}

fn built(text: &str, origin: Origin) -> Result<Layer, ConfigError> {
    match document::parse(text) {
        Ok(document) => Ok(Layer::built(document, origin)),
        Err(fault) => Err(syntax(&origin.to_string(), fault)),
    }
}

fn system_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    files.retain(|path| path.extension().is_some_and(|end| end == "toml"));
    files.sort();
    Ok(files)
}

fn file(path: &Path) -> Result<Layer, ConfigError> {
    let text = read(path).map_err(|error| unreadable(path, &error))?;
    match document::parse(&text) {
        Ok(document) => Ok(Layer::file(document, path.to_owned())),
        Err(fault) => Err(syntax(&path.display().to_string(), fault)),
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(LARGEST_FILE_BYTES + 1).read_to_string(&mut text)?;
    if read as u64 > LARGEST_FILE_BYTES {
        return Err(io::Error::other("it is larger than 1 MiB; is it the right file?"));
    }
    Ok(text)
}

fn unreadable(path: &Path, error: &io::Error) -> ConfigError {
    let reason = match error.kind() {
        ErrorKind::NotFound => "there is no such file; give the path of one, or leave it out".to_owned(),
        ErrorKind::PermissionDenied => "permission denied; run as its owner, or change its mode".to_owned(),
        ErrorKind::IsADirectory => "it is a directory; give the path of a file".to_owned(),
        ErrorKind::InvalidData => "it is not UTF-8 text".to_owned(),
        _ => error.to_string(),
    };
    ConfigError::Unreadable { path: path.to_owned(), reason }
}

fn syntax(document: &str, fault: Fault) -> ConfigError {
    ConfigError::Syntax {
        place: format!("{document}:{}:{}", fault.line, fault.column),
        message: fault.message,
    }
}

/// Variables that are called so by custom.
const CUSTOMARY: [(&str, [&str; 3]); 2] = [
    ("LOGZIO_SHIPPING_TOKEN", ["telemetry", "logzio", "token"]),
    ("SENTRY_DSN", ["telemetry", "sentry", "dsn"]),
];

fn customary(env: &[(String, String)]) -> impl Iterator<Item = Result<Layer, ConfigError>> {
    CUSTOMARY.into_iter().filter_map(|(name, key)| {
        let raw = set(env, name)?;
        Some(Ok(Layer::single(Key::from(key), raw.into(), raw.to_owned(), Origin::Variable(name.to_owned()))))
    })
}

/// A variable that is there and not empty.
fn set<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let (_, raw) = env.iter().rfind(|(known, _)| known == name)?;
    Some(raw.trim()).filter(|raw| !raw.is_empty())
}

const PROD_LOGGING: &str = "USE_PROD_LOGGING";
const PROD_PLUGINS: [&str; 2] = ["sentry", "logzio"];

/// `USE_PROD_LOGGING` says whether Sentry and logz.io are used; other plugins stay as the layers below have them.
fn prod_logging(env: &[(String, String)], layers: &[Layer]) -> Result<Option<Layer>, ConfigError> {
    let Some(raw) = set(env, PROD_LOGGING) else { return Ok(None) };
    let origin = Origin::Variable(PROD_LOGGING.to_owned());
    let wanted = match raw.to_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => true,
        "0" | "false" | "no" | "off" => false,
        _ => {
            let message = format!("{raw:?} is neither; write 1, true, yes or on, or 0, false, no or off");
            return Err(ConfigError::Syntax { place: origin.to_string(), message });
        }
    };
    let key = Key::from(["telemetry", "plugins"]);
    let below = &layers[..below_variables(layers)];
    let said = below.iter().rev().find_map(|layer| tree::get(&layer.tree, &key)?.as_array());
    let mut plugins: Vec<&str> = match said {
        Some(plugins) => plugins.iter().filter_map(|plugin| plugin.as_str()).collect(),
        None => vec!["console"],
    };
    plugins.retain(|plugin| wanted || !PROD_PLUGINS.contains(plugin));
    for plugin in PROD_PLUGINS.into_iter().filter(|_| wanted) {
        if !plugins.contains(&plugin) {
            plugins.push(plugin);
        }
    }
    let value = plugins.into_iter().map(Value::from).collect::<Vec<_>>().into();
    Ok(Some(Layer::single(key, value, raw.to_owned(), origin)))
}

/// Where the variables begin.
fn below_variables(layers: &[Layer]) -> usize {
    layers.iter().position(Layer::is_single).unwrap_or(layers.len())
}

/// In the order of their names, so that a table's variable comes before those of its keys.
fn variables(env: &[(String, String)]) -> impl Iterator<Item = Result<Layer, ConfigError>> {
    let mut ours: Vec<_> = env.iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    ours.sort();
    ours.into_iter().map(|(name, raw)| variable(name, raw))
}

fn variable(name: &str, raw: &str) -> Result<Layer, ConfigError> {
    let origin = Origin::Variable(name.to_owned());
    let key = variable_key(&name[PREFIX.len()..]);
    if key.0.iter().any(String::is_empty) || key.0.len() > DEEPEST {
        return Err(ConfigError::Syntax {
            place: origin.to_string(),
            message: format!("no key; write for example {PREFIX}RUNTIME__PLUGIN for runtime.plugin"),
        });
    }
    let value = document::parse_value(raw).unwrap_or_else(|| raw.into());
    Ok(Layer::single(key, value, raw.to_owned(), origin))
}

/// Keys are lower case, except the names of a mandelbox's own variables, which may hold `__`, too.
fn variable_key(name: &str) -> Key {
    let mut parts: Vec<String> = name.split("__").map(str::to_lowercase).collect();
    if let ["mandelbox", "environment", _, ..] = parts.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        parts.truncate(2);
        parts.extend(name.splitn(3, "__").nth(2).map(str::to_owned));
    }
    Key(parts)
}

fn argument(text: &str) -> Result<Layer, ConfigError> {
    let Some((name, raw)) = text.split_once('=') else {
        return Err(refused(text, "no value; write --set key=value"));
    };
    let key = Key::parse(name)
        .filter(|key| key.0.len() <= DEEPEST)
        .ok_or_else(|| refused(name, "no key; write for example --set runtime.plugin=sim"))?;
    let value = document::parse_value(raw).unwrap_or_else(|| raw.into());
    let masked = mask::value(&key, &value);
    let shown = if masked == value {
        format!("--set {text}")
    } else {
        format!("--set {key}={}", tree::text(&masked))
    };
    Ok(Layer::single(key, value, raw.to_owned(), Origin::Argument(shown)))
}

fn refused(text: &str, message: &str) -> ConfigError {
    ConfigError::Syntax { place: format!("--set {text}"), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_keys_in_lower_case_but_for_names_of_variables() {
        for (name, key) in [
            ("RUNTIME__PLUGIN", "runtime.plugin"),
            ("GPU__SLOTS_PER_GPU", "gpu.slots_per_gpu"),
            ("MANDELBOX__ENVIRONMENT__Some_Name", "mandelbox.environment.Some_Name"),
            ("MANDELBOX__ENVIRONMENT__A__B", "mandelbox.environment.A__B"),
            ("MANDELBOX__ENVIRONMENT", "mandelbox.environment"),
        ] {
            assert_eq!(variable_key(name).to_string(), key);
        }
    }

    #[test]
    fn an_argument_is_remembered_without_its_secrets() {
        let origin = |text: &str| {
            let layer = argument(text).unwrap();
            let key = tree::leaves(&layer.tree)[0].0.clone();
            layer.origin(&key).unwrap().to_string()
        };
        assert_eq!(origin("runtime.plugin=sim"), "--set runtime.plugin=sim");
        assert_eq!(origin("pubsub.x.password=1234"), "--set pubsub.x.password=\"********\"");
        assert_eq!(origin("pubsub.x={url='a://u:p@h'}"), "--set pubsub.x={ url = \"a://u:********@h\" }");
    }

    #[test]
    fn what_debug_shows_of_sources_holds_no_secret() {
        let sources = Sources {
            env: vec![("HOST_SERVICE__PUBSUB__X__PASSWORD".into(), "hunter2".into())],
            set: vec!["pubsub.x.password=hunter2".into()],
            ..Sources::default()
        };
        assert!(!format!("{sources:?}").contains("hunter2"));
    }
}
