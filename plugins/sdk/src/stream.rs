//! The items of one call, against the credits that the host grants.

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};
use host_plugin_abi::{EMITTED, GONE};
use host_plugin_protocol::Emitter;
use tokio::sync::Semaphore;

use crate::host::Host;

/// The host counts too; here nobody asks it in vain.
#[derive(Debug)]
pub(crate) struct Credits {
    host: Host,
    call: u64,
    credits: Arc<Semaphore>,
}

impl Credits {
    pub(crate) fn new(host: Host, call: u64, credits: Arc<Semaphore>) -> Self {
        Self { host, call, credits }
    }
}

impl Emitter for Credits {
    fn emit(&self, item: Vec<u8>) -> BoxFuture<'_, bool> {
        async move {
            loop {
                let Ok(credit) = self.credits.acquire().await else {
                    return false;
                };
                credit.forget();
                match self.host.emit(self.call, &item) {
                    EMITTED => return true,
                    GONE => return false,
                    // The host knows of fewer credits than were counted here: wait for the next grant.
                    _ => {}
                }
            }
        }
        .boxed()
    }

    fn try_emit(&self, item: &[u8]) {
        if let Ok(credit) = self.credits.try_acquire() {
            credit.forget();
            self.host.emit(self.call, item);
        }
    }
}
