//! The plugin's side of a call.

use std::{fmt, sync::Arc};

use futures::{StreamExt, future::BoxFuture, stream::BoxStream};
use host_core::PluginError;

/// What a call ends with.
pub type Outcome = Result<Vec<u8>, PluginError>;

/// Takes the items of one call.
pub trait Emitter: Send + Sync + 'static {
    /// Waits until the item can be taken; false when nobody reads any more.
    fn emit(&self, item: Vec<u8>) -> BoxFuture<'_, bool>;

    /// Leaves the item out where it cannot be taken now.
    fn try_emit(&self, item: &[u8]);
}

/// How a call is served.
pub enum Served {
    /// At once.
    Now(Outcome),
    /// By this.
    Later(BoxFuture<'static, Outcome>),
    /// There is no such method.
    Unknown,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Now",
            Self::Later(_) => "Later",
            Self::Unknown => "Unknown",
        })
    }
}

/// Says that the stream is open, then brings its items over, to its end or until nobody reads any more.
pub(crate) async fn forward<T>(
    mut items: BoxStream<'static, Result<T, PluginError>>,
    emitter: Arc<dyn Emitter>,
    encode: impl Fn(T) -> Outcome,
) -> Outcome {
    if !emitter.emit(Vec::new()).await {
        return Ok(Vec::new());
    }
    while let Some(item) = items.next().await {
        if !emitter.emit(encode(item?)?).await {
            break;
        }
    }
    Ok(Vec::new())
}
