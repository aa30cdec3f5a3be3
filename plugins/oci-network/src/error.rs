//! What the kernel says, in the host's terms.

use std::{fmt::Display, io, time::Duration};

use host_core::{ErrorKind, PluginError};
use tokio::time::timeout;

/// For work on a thread: longer than the waits in it, which have deadlines of their own. What takes longer is stuck in
/// the kernel; the thread is left behind.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// `doing` says what failed, as in "making a network".
pub(crate) fn kernel(doing: impl Display, error: io::Error) -> PluginError {
    let (kind, message) = match error.kind() {
        io::ErrorKind::PermissionDenied => (
            ErrorKind::Denied,
            format!(
                "{doing} needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN, and a writable /proc/sys); run the host \
                 service as root, or give containers the host's network"
            ),
        ),
        io::ErrorKind::Unsupported => (
            ErrorKind::Unsupported,
            format!(
                "{doing} needs what this kernel lacks; load the modules veth, nf_tables, nft_fib_inet, nf_nat"
            ),
        ),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            (ErrorKind::Timeout, format!("{doing}: the kernel did not answer in time"))
        }
        _ => (ErrorKind::Internal, format!("{doing} failed")),
    };
    PluginError::new(kind, message).with_source(error)
}

/// After [`Networks::close`](crate::Networks::close).
pub(crate) fn closed() -> PluginError {
    PluginError::new(ErrorKind::Unavailable, "the containers' networks are closed")
}

/// A deadline passed.
pub(crate) fn late(doing: &str) -> PluginError {
    PluginError::new(ErrorKind::Timeout, format!("{doing} took too long"))
}

/// A thread or task ended without an answer.
pub(crate) fn lost(doing: &str) -> PluginError {
    PluginError::new(ErrorKind::Internal, format!("{doing} ended without a result"))
}

/// Runs `work`, which blocks for a moment, off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, PluginError> {
    off_runtime(doing, move || work().map_err(|error| kernel(doing, error))).await
}

/// The same for work that says itself what failed.
pub(crate) async fn off_runtime<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, PluginError> + Send + 'static,
) -> Result<T, PluginError> {
    match timeout(DEADLINE, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(_)) => Err(lost(doing)),
        Err(_) => Err(late(doing)),
    }
}
