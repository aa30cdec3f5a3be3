//! What errors say and what is behind them.

use std::{error::Error, fmt, io};

use host_core::{ErrorKind, PluginError};

/// What was tried, to complete "cannot …": a verb with its object, and that object's name if it has one.
#[derive(Debug, Clone, Copy)]
pub struct Doing<'a>(pub &'static str, pub &'a str);

impl fmt::Display for Doing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(what, "") => f.write_str(what),
            Self(what, name) => write!(f, "{what} {name}"),
        }
    }
}

/// The request would fail wherever it is sent.
pub fn invalid(message: impl Into<String>) -> PluginError {
    PluginError::new(ErrorKind::Invalid, message)
}

/// The kind of the first [`io::Error`] among an error and its causes.
pub fn io_cause(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        next = cause.source();
    }
    None
}
