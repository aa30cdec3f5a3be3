//! From what went wrong to the kind that the host acts on.

use std::io;

use host_core::{ErrorKind, PluginError};
use rustix::io::Errno;

pub(crate) type Result<T> = std::result::Result<T, PluginError>;

/// What came from outside is not what it must be.
pub(crate) fn invalid(message: impl Into<String>) -> PluginError {
    PluginError::new(ErrorKind::Invalid, message)
}

pub(crate) fn not_found(message: impl Into<String>) -> PluginError {
    PluginError::new(ErrorKind::NotFound, message)
}

/// The store's own files failed it. `doing` continues "cannot".
pub(crate) fn failed(doing: &str, error: impl Into<io::Error>) -> PluginError {
    let error = error.into();
    PluginError::new(kind_of(&error), format!("cannot {doing}")).with_source(error)
}

/// Where it went wrong, before what went wrong.
pub(crate) fn within(place: impl Into<String>, error: PluginError) -> PluginError {
    PluginError::new(error.kind(), place).with_retry(error.retry()).with_source(error)
}

fn kind_of(error: &io::Error) -> ErrorKind {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE | Errno::NOMEM) => {
            ErrorKind::Exhausted
        }
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => ErrorKind::Denied,
        Some(Errno::OPNOTSUPP | Errno::NOSYS) => ErrorKind::Unsupported,
        _ => ErrorKind::Internal,
    }
}

/// An error met while reading content. A rule of ours that was broken on the way travels inside of it; an error of
/// the operating system is the host's; what is left is a decoder that did not like its input.
pub(crate) fn unreadable(what: &str, error: io::Error) -> PluginError {
    if error.get_ref().is_some_and(|inner| inner.is::<PluginError>()) {
        let inner = error.into_inner().and_then(|inner| inner.downcast::<PluginError>().ok());
        return inner.map_or_else(|| invalid(what), |inner| *inner);
    }
    if error.raw_os_error().is_some() {
        return failed(&format!("read {what}"), error);
    }
    invalid(format!("{what} is damaged")).with_source(error)
}

/// For a rule that is broken inside of a [`std::io::Read`]; [`unreadable`] takes it out again.
pub(crate) fn carried(error: PluginError) -> io::Error {
    io::Error::other(error)
}
