//! The error that every plugin operation returns. The host decides on kind and retry class, never on text.

use std::error::Error as StdError;

/// What went wrong, in terms the host acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The thing named does not exist: a container, an image, a row.
    NotFound,
    /// It exists already, or is in a state that forbids the operation.
    Conflict,
    /// A host port or address is taken by somebody else.
    AddressInUse,
    /// The request itself is wrong; the same request can never succeed.
    Invalid,
    /// Credentials are missing, wrong or insufficient.
    Denied,
    /// This implementation cannot do it; see its capabilities.
    Unsupported,
    /// The component behind the plugin does not answer or is not running.
    Unavailable,
    /// A deadline passed; the operation may still take effect.
    Timeout,
    /// No room left: disk, memory, devices, quota.
    Exhausted,
    /// Anything else; the text tells people what.
    Internal,
}

impl ErrorKind {
    /// A stable name, for metric labels and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::AddressInUse => "address_in_use",
            Self::Invalid => "invalid",
            Self::Denied => "denied",
            Self::Unsupported => "unsupported",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Exhausted => "exhausted",
            Self::Internal => "internal",
        }
    }

    /// Whether the same call may succeed later, unless the plugin knows better.
    fn retry(self) -> Retry {
        match self {
            Self::Unavailable | Self::Timeout | Self::Internal | Self::Exhausted => Retry::Later,
            _ => Retry::Never,
        }
    }
}

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The same call will fail the same way until somebody changes something.
    Never,
    /// The same call may succeed after a pause.
    Later,
}

/// A failed plugin operation: its kind, whether a retry can help, and what people need to know.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct PluginError {
    kind: ErrorKind,
    retry: Retry,
    message: String,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl PluginError {
    /// `message` names the thing and the remedy; it must hold no secret.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, retry: kind.retry(), message: message.into(), source: None }
    }

    /// Adds what caused it; `message` should not repeat its text.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Overrides the kind's usual retry class.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        self.retry
    }
}

/// An error with everything that caused it, on one line: `a: b: c`.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_tells_every_cause_once() {
        let io = std::io::Error::other("socket closed");
        let error = PluginError::new(ErrorKind::Unavailable, "the engine does not answer").with_source(io);
        assert_eq!(chain(&error), "the engine does not answer: socket closed");
        assert_eq!(error.retry(), Retry::Later);
        assert_eq!(PluginError::new(ErrorKind::Invalid, "x").retry(), Retry::Never);
    }
}
