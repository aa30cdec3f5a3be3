//! The host's side: who brings a call to a plugin, and the traits on top of it.

use std::{collections::BTreeMap, fmt, sync::Arc};

use futures::{StreamExt, future::BoxFuture, stream::BoxStream};
use host_core::{ErrorKind, PluginError};
use serde::de::DeserializeOwned;

use crate::Encoding;

/// How a plugin answered.
#[derive(Debug)]
pub enum Answer {
    /// With these bytes.
    Body(Vec<u8>),
    /// It has no such method.
    Unimplemented,
}

/// The items of a stream that is open.
pub type Items = BoxStream<'static, Result<Vec<u8>, PluginError>>;

/// Told of each item while a call goes on.
pub type Item<'a> = &'a (dyn Fn(Vec<u8>) + Send + Sync);

/// Brings calls to one instance of a plugin. Dropping what it returns cancels the call.
pub trait Caller: Send + Sync + fmt::Debug + 'static {
    /// How requests and answers are written.
    fn encoding(&self) -> Encoding;

    /// One request, one answer.
    fn call(&self, method: u32, request: Vec<u8>) -> BoxFuture<'_, Result<Answer, PluginError>>;

    /// One request, one answer, and items on the way.
    fn call_with_items<'a>(
        &'a self,
        method: u32,
        request: Vec<u8>,
        item: Item<'a>,
    ) -> BoxFuture<'a, Result<Answer, PluginError>>;

    /// One request, a stream; `None` where there is no such method. Returns once the stream is open.
    fn open(&self, method: u32, request: Vec<u8>) -> BoxFuture<'_, Result<Option<Items>, PluginError>>;

    /// A request that nobody waits for. Never blocks; one that cannot be taken is counted.
    fn post(&self, method: u32, request: Vec<u8>);

    /// The last figure known, and asks for the present one. Never blocks.
    fn figure(&self, method: u32) -> u64;
}

/// A plugin behind a [`Caller`]. It implements every trait; of which interfaces the plugin has is the loader's to know.
#[derive(Debug)]
pub struct Remote {
    pub(crate) caller: Arc<dyn Caller>,
    constants: BTreeMap<u32, Vec<u8>>,
}

impl Remote {
    /// Asks for what is constant; `methods` are those of [`constants`](crate::constants).
    ///
    /// # Errors
    /// One of them fails.
    pub async fn connect(caller: Arc<dyn Caller>, methods: &[u32]) -> Result<Self, PluginError> {
        let mut constants = BTreeMap::new();
        for method in methods {
            let request = caller.encoding().encode(&BTreeMap::<(), ()>::new())?;
            if let Answer::Body(body) = caller.call(*method, request).await? {
                constants.insert(*method, body);
            }
        }
        Ok(Self { caller, constants })
    }

    pub(crate) fn constant<T: DeserializeOwned>(&self, method: u32) -> Option<T> {
        self.caller.encoding().decode(self.constants.get(&method)?).ok()
    }
}

pub(crate) fn unimplemented<T>(method: &str) -> Result<T, PluginError> {
    Err(PluginError::new(ErrorKind::Unsupported, format!("the plugin does not implement {method}")))
}

/// Items that are bytes as they are.
pub(crate) mod raw {
    use super::{BoxStream, Encoding, Items, PluginError};

    pub(crate) fn decode(_: Encoding, items: Items) -> BoxStream<'static, Result<Vec<u8>, PluginError>> {
        items
    }

    #[expect(clippy::unnecessary_wraps, reason = "the same form as for values")]
    pub(crate) fn encode(_: Encoding, item: Vec<u8>) -> Result<Vec<u8>, PluginError> {
        Ok(item)
    }
}

/// Items that are values.
pub(crate) mod value {
    use serde::Serialize;

    use super::{BoxStream, DeserializeOwned, Encoding, Items, PluginError, StreamExt};

    pub(crate) fn decode<T: DeserializeOwned + 'static>(
        encoding: Encoding,
        items: Items,
    ) -> BoxStream<'static, Result<T, PluginError>> {
        items.map(move |item| encoding.decode(&item?)).boxed()
    }

    pub(crate) fn encode<T: Serialize>(encoding: Encoding, item: T) -> Result<Vec<u8>, PluginError> {
        encoding.encode(&item)
    }
}
