//! Changes of containers, to whoever has subscribed.

use futures::{StreamExt, stream::BoxStream};
use host_core::runtime::{ContainerChange, ContainerEvent, Result, RuntimeEvent, Selector};
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

use crate::held::Held;

/// Changes that may wait for a slow subscriber; after more it is told of a gap.
const WAITING_MAX: usize = 4096;

/// Where changes are told.
#[derive(Debug)]
pub(crate) struct Hub(broadcast::Sender<ContainerEvent>);

impl Default for Hub {
    fn default() -> Self {
        Self(broadcast::Sender::new(WAITING_MAX))
    }
}

impl Hub {
    pub(crate) fn tell(&self, held: &Held, change: ContainerChange) {
        let (id, labels) = (held.id.clone(), held.labels.clone());
        // Nobody may be listening.
        let _ = self.0.send(ContainerEvent { id, labels, change });
    }

    pub(crate) fn subscribe(&self, selector: &Selector) -> BoxStream<'static, Result<RuntimeEvent>> {
        let selector = selector.clone();
        BroadcastStream::new(self.0.subscribe())
            .filter_map(move |event| {
                let event = match event {
                    Ok(event) if selector.matches(&event.labels) => Some(RuntimeEvent::Container(event)),
                    Ok(_) => None,
                    Err(BroadcastStreamRecvError::Lagged(_)) => Some(RuntimeEvent::Gap),
                };
                std::future::ready(event.map(Ok))
            })
            .boxed()
    }
}
