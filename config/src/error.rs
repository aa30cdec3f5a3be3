//! What is wrong with a configuration: always the place, and what to do about it.

use std::{fmt, path::PathBuf};

use crate::{origin::Origin, profile::UnknownProfile};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// There is no such profile.
    #[error("{origin}: {unknown}")]
    Profile {
        /// What named it.
        origin: Origin,
        /// The name, and the nearest.
        unknown: UnknownProfile,
    },
    /// A file or directory cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// It is no TOML, or no `key=value`.
    #[error("{place}: {message}")]
    Syntax {
        /// `file:line:column`, `$VARIABLE` or the argument.
        place: String,
        /// What is wrong.
        message: String,
    },
    /// Nothing has that name.
    #[error("unknown key {key}{}{hint}", place(Some(origin)))]
    UnknownKey {
        /// Dotted.
        key: String,
        /// Who wrote it.
        origin: Origin,
        /// What to write instead, beginning with `; `.
        hint: String,
    },
    /// A value is of the wrong type, out of range, or at odds with another.
    #[error("{key}{}: {message}", place(origin.as_ref()))]
    Invalid {
        /// Dotted.
        key: String,
        /// Who wrote it; `None` when nobody did.
        origin: Option<Origin>,
        /// What is wrong, and what to do.
        message: String,
    },
    /// The profile leaves something to be chosen, and nobody chose it.
    #[error("profile {profile} {message}")]
    Incomplete {
        /// Which.
        profile: &'static str,
        /// The keys to set.
        keys: Vec<String>,
        /// What is missing, and how to set it.
        message: String,
    },
}

impl ConfigError {
    /// The key that is wrong, dotted, where it is about one.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::UnknownKey { key, .. } | Self::Invalid { key, .. } => Some(key),
            _ => None,
        }
    }
}

fn place(origin: Option<&Origin>) -> String {
    match origin {
        None => String::new(),
        Some(Origin::Default) => " of the defaults".to_owned(),
        Some(origin @ Origin::Profile(_)) => format!(" of {origin}"),
        Some(origin) => format!(" in {origin}"),
    }
}

/// Everything found wrong with a configuration; at least one thing. Shown one per line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    pub(crate) fn new(mut found: Vec<ConfigError>, last: ConfigError) -> Self {
        found.push(last);
        Self(found)
    }

    /// Fine when nothing was found.
    ///
    /// # Errors
    /// All of `found`.
    pub fn check(found: Vec<ConfigError>) -> Result<(), Self> {
        if found.is_empty() { Ok(()) } else { Err(Self(found)) }
    }

    /// Each, in the order of the layers.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }
}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}

impl IntoIterator for ConfigErrors {
    type Item = ConfigError;
    type IntoIter = std::vec::IntoIter<ConfigError>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, error) in self.0.iter().enumerate() {
            let newline = if place == 0 { "" } else { "\n" };
            write!(f, "{newline}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
