//! Hosts' desired states, as their watchers see them.

use std::collections::BTreeMap;

use futures::{StreamExt, stream::BoxStream};
use host_core::{
    ErrorKind, InstanceName, PluginError,
    pubsub::{DesiredState, Result},
};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

/// The connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost(pub(crate) ErrorKind);

/// The latest state of one host, or the end.
pub(crate) type Feed = std::result::Result<DesiredState, Lost>;

/// One channel for every host that is watched. Its value is that host's desired state at any time.
#[derive(Debug, Default)]
pub(crate) struct Feeds(BTreeMap<InstanceName, watch::Sender<Feed>>);

impl Feeds {
    /// `now` is the host's desired state.
    pub(crate) fn subscribe(&mut self, instance: &InstanceName, now: DesiredState) -> watch::Receiver<Feed> {
        self.0.retain(|_, feed| feed.receiver_count() > 0);
        let feed = self.0.entry(instance.clone()).or_insert_with(|| watch::Sender::new(Ok(now)));
        feed.subscribe()
    }

    /// Wakes this host's watchers, if they see a change.
    pub(crate) fn publish(&self, instance: &InstanceName, now: impl FnOnce() -> DesiredState) {
        let Some(feed) = self.0.get(instance) else { return };
        let now = Ok(now());
        feed.send_if_modified(|seen| {
            let changed = *seen != now;
            *seen = now;
            changed
        });
    }

    /// Ends every feed.
    pub(crate) fn cut(&mut self, lost: Lost) {
        for (_, feed) in std::mem::take(&mut self.0) {
            feed.send_modify(|seen| *seen = Err(lost));
        }
    }
}

/// Every state from now on; states that follow each other fast may come as one.
pub(crate) fn stream(feed: watch::Receiver<Feed>) -> BoxStream<'static, Result<DesiredState>> {
    let told = |Lost(kind)| PluginError::new(kind, "the connection to the control plane was cut");
    WatchStream::new(feed).map(move |state| state.map_err(told)).boxed()
}
