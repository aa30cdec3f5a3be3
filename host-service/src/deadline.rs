//! Every wait on the outside has a deadline.

use std::{future::Future, time::Duration};

use host_core::{ErrorKind, PluginError};

/// `operation`'s result, or a `Timeout` that names `doing`.
///
/// # Errors
/// The operation's own, or `Timeout`.
pub async fn within<T>(
    limit: Duration,
    doing: &str,
    operation: impl Future<Output = Result<T, PluginError>>,
) -> Result<T, PluginError> {
    match tokio::time::timeout(limit, operation).await {
        Ok(result) => result,
        Err(_) => Err(PluginError::new(ErrorKind::Timeout, format!("{doing} took longer than {limit:?}"))),
    }
}
