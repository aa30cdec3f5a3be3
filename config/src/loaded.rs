//! A configuration that is in force.

use std::fmt;

use figment::value::Dict;
use host_core::registry::{Section, SectionError};

use crate::{
    check,
    error::{ConfigError, ConfigErrors},
    key::{Key, nearest},
    layer::{self, Layer},
    mask,
    origin::Origin,
    profile::Profile,
    rules,
    settings::Settings,
    tree,
};

/// A configuration that is in force.
#[derive(Clone)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// The profile.
    pub profile: Profile,
    tree: Dict,
    defaults: Layer,
    /// Above the defaults, least first.
    layers: Vec<Layer>,
}

impl fmt::Debug for Loaded {
    /// Plugins' sections may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("profile", &self.profile)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// One value that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// Dotted, as `--set` takes it.
    pub key: String,
    /// TOML, secrets masked.
    pub value: String,
    /// Who set it.
    pub origin: Origin,
}

/// Where something is said about a key.
pub(crate) struct Place {
    /// Of the layer; later layers are higher, the defaults are 0.
    pub(crate) height: usize,
    /// Who says it.
    pub(crate) origin: Origin,
    /// The key as people write it.
    pub(crate) name: String,
}

impl Loaded {
    /// Checks each layer, merges them, and checks what they say together. With what is wrong comes what the rest
    /// says.
    pub(crate) fn new(
        profile: Profile,
        defaults: Layer,
        mut layers: Vec<Layer>,
    ) -> Result<(Self, Vec<ConfigError>), ConfigErrors> {
        let mut errors: Vec<ConfigError> =
            layers.iter_mut().flat_map(|layer| check::check(layer, &defaults)).collect();
        let tree = layer::merge(std::iter::once(&defaults).chain(&layers));
        let mut settings = match check::settings(&tree, &defaults.tree) {
            Ok(settings) => settings,
            Err(error) => return Err(ConfigErrors::new(errors, unmerged(*error))),
        };
        settings.mandelbox.image = settings.mandelbox.image.resolved(profile);
        let loaded = Self { settings, profile, tree, defaults, layers };
        errors.extend(rules::check(&loaded, &errors));
        Ok((loaded, errors))
    }

    /// A plugin's own section: `[<kind>.<name>]`, null when there is none.
    pub fn section(&self, kind: &str, name: &str) -> Section {
        if !self.sections(kind).iter().any(|section| section == name) {
            return Section::Null;
        }
        tree::table(&self.tree, &Key::from([kind, name]))
            .and_then(|section| serde_json::to_value(section).ok())
            .unwrap_or_default()
    }

    /// The names of all sections of plugins of this kind, whether such plugins exist or not.
    pub fn sections(&self, kind: &str) -> Vec<String> {
        check::sections(&self.tree, &self.defaults.tree, kind)
    }

    /// Every value in force, sorted by key.
    pub fn effective(&self) -> Vec<Effective> {
        let effective = |(key, value)| Effective {
            value: tree::text(&mask::value(&key, value)),
            origin: self.place(&key).map_or(Origin::Default, |place| place.origin),
            key: key.to_string(),
        };
        let mut all: Vec<_> = tree::leaves(&self.tree).into_iter().map(effective).collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all
    }

    /// An error about the value of `key` (dotted), with the place where it was written.
    pub fn error_at(&self, key: &str, message: impl Into<String>) -> ConfigError {
        let path = parts(key).unwrap_or_default();
        ConfigError::Invalid {
            key: key.to_owned(),
            origin: self.place(&path).map(|place| place.origin),
            message: self.discreet(&path, message.into()),
        }
    }

    /// What a plugin has against its own section, with the place where it was written, and the nearest name for
    /// one that it does not know.
    pub fn section_error(&self, kind: &str, name: &str, error: &SectionError) -> ConfigError {
        let section = Key::from([kind, name]);
        let path = parts(&error.path).unwrap_or_default();
        let mut key = Key([section.0, path.0].concat());
        let Some((field, known)) = unknown_field(&error.message) else {
            return self
                .error_at(&self.name(&key), format!("{}{}", error.message, self.quoting(&key, error)));
        };
        if key.last() != field {
            key = key.child(field);
        }
        let hint = match nearest(field, known.iter().copied()) {
            Some(near) => format!("; did you mean {near}?"),
            None if known.is_empty() => "; nothing can be set there".to_owned(),
            None => format!("; known there: {}", known.join(", ")),
        };
        ConfigError::UnknownKey {
            origin: self.place(&key).map_or(Origin::Default, |place| place.origin),
            key: self.name(&key),
            hint,
        }
    }

    /// Where the last layer to say anything about `key` says it; for a key that nobody says anything about, the
    /// table that it would be in.
    pub(crate) fn place(&self, key: &Key) -> Option<Place> {
        let nearest_first = (1..=key.0.len()).rev().map(|length| Key(key.0[..length].to_vec()));
        nearest_first.into_iter().find_map(|said| {
            self.layers().find_map(|(height, layer)| {
                Some(Place { height, origin: layer.origin(&said)?, name: layer.name(key) })
            })
        })
    }

    /// The highest first.
    fn layers(&self) -> impl Iterator<Item = (usize, &Layer)> {
        let all = std::iter::once(&self.defaults).chain(&self.layers);
        all.enumerate().collect::<Vec<_>>().into_iter().rev()
    }

    fn name(&self, key: &Key) -> String {
        self.place(key).map_or_else(|| key.to_string(), |place| place.name)
    }

    /// `message` about the value of `key`, which may quote it, without its secrets.
    fn discreet(&self, key: &Key, message: String) -> String {
        let value = tree::get(&self.tree, key).filter(|_| mask::hides(key));
        let quoted = value.map(|value| match value.as_str() {
            Some(text) => text.to_owned(),
            None => tree::text(value),
        });
        let message = match quoted.filter(|quoted| !quoted.is_empty()) {
            Some(quoted) => message.replace(&quoted, mask::MASK),
            None => message,
        };
        mask::text(&message)
    }

    /// For a text that was taken for a number because nobody here knows what a plugin wants.
    fn quoting(&self, key: &Key, error: &SectionError) -> &'static str {
        let origin = self.place(key).map(|place| place.origin);
        let guessed = matches!(origin, Some(Origin::Variable(_) | Origin::Argument(_)));
        if guessed && error.message.ends_with("expected a string") {
            "; put it in quotes of TOML's to have a text: '\"123\"'"
        } else {
            ""
        }
    }
}

fn unmerged(error: figment::Error) -> ConfigError {
    ConfigError::Invalid { key: Key(error.path).to_string(), origin: None, message: error.kind.to_string() }
}

/// `a.b[0].c`, as errors write keys.
fn parts(path: &str) -> Option<Key> {
    Key::parse(&path.replace('[', ".").replace(']', ""))
}

/// What serde says of a field that a type does not have: its name, and those it has.
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let mut names = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    Some((names.next()?, names.collect()))
}
