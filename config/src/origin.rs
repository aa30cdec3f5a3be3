//! Where a value came from.

use std::{fmt, path::PathBuf};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The built-in defaults.
    Default,
    /// The built-in profile of that name.
    Profile(&'static str),
    /// A file.
    File {
        /// As it was given or found.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// The environment variable of that name.
    Variable(String),
    /// An argument of the command line as it was given, secrets masked.
    Argument(String),
}

impl Origin {
    /// The user wrote it: it is neither a default nor the profile's.
    pub fn is_user(&self) -> bool {
        !matches!(self, Self::Default | Self::Profile(_))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Profile(name) => write!(f, "profile {name}"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "${name}"),
            Self::Argument(text) => f.write_str(text),
        }
    }
}
