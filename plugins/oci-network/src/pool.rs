//! Networks that are ready before anybody asks.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use host_core::{ErrorKind, PluginError};
use tokio::{
    sync::{Notify, Semaphore},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    addresses::{Addresses, Lease},
    error,
    name::Key,
    namespace::{self, Network, Plan},
    subnet::Subnet,
};

/// Between attempts, when making a network fails.
const PAUSE: Duration = Duration::from_secs(2);

/// Networks made at a time: the kernel has one lock for all of it, and 50 threads that queue for it take three times
/// as long as two.
const AT_ONCE: usize = 2;

/// A network that gives its address back when it is dropped.
#[derive(Debug)]
pub(crate) struct Ready {
    network: Network,
    lease: Lease,
}

impl Ready {
    /// From now on it is the caller's.
    pub(crate) fn keep(self) -> Network {
        self.lease.keep();
        self.network
    }
}

#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) key: Key,
    pub(crate) block: Subnet,
    pub(crate) mtu: u32,
    pub(crate) addresses: Addresses,
    /// How many to keep.
    target: usize,
    ready: Mutex<VecDeque<Ready>>,
    taken: Notify,
    /// Bounds how many are made at a time.
    turns: Arc<Semaphore>,
    /// The filler, and every thread that makes a network, also those nobody waits for any more.
    pub(crate) making: TaskTracker,
}

impl Pool {
    pub(crate) fn new(key: Key, block: Subnet, mtu: u32, addresses: Addresses, target: usize) -> Self {
        Self {
            key,
            block,
            mtu,
            addresses,
            target,
            ready: Mutex::default(),
            taken: Notify::new(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            making: TaskTracker::new(),
        }
    }

    /// A ready one, or one made now.
    pub(crate) async fn take(&self) -> Result<Network, PluginError> {
        let ready = self.lock().pop_front();
        self.taken.notify_one();
        match ready {
            Some(ready) => Ok(ready.keep()),
            None => self.make().await.map(Ready::keep),
        }
    }

    /// How many are ready.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// All that are ready.
    pub(crate) fn drain(&self) -> Vec<Ready> {
        self.lock().drain(..).collect()
    }

    /// Keeps the pool full; the filler task. Stops between two networks, so that none is left half made.
    pub(crate) async fn fill(&self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            if self.len() >= self.target {
                stop.run_until_cancelled(self.taken.notified()).await;
            } else if let Err(error) = self.add().await {
                tracing::warn!(error = %host_core::chain(&error), "no network can be made ready");
                stop.run_until_cancelled(sleep(PAUSE)).await;
            }
        }
    }

    /// Returns when the filler and everything that is being made have ended; `fill` must have been told to stop.
    pub(crate) async fn settle(&self) {
        self.making.close();
        self.making.wait().await;
    }

    async fn add(&self) -> Result<(), PluginError> {
        let made = self.make().await?;
        self.lock().push_back(made);
        Ok(())
    }

    async fn make(&self) -> Result<Ready, PluginError> {
        let lease = self.addresses.lease().ok_or_else(|| {
            let message = format!(
                "all {} addresses of {} are in use; remove containers or set a larger runtime.oci.network.subnet",
                self.block.capacity(),
                self.block
            );
            PluginError::new(ErrorKind::Exhausted, message)
        })?;
        let address = lease.address();
        let plan = Plan {
            interface: self.key.interface(self.block, address),
            address,
            gateway: self.block.gateway(),
            mtu: self.mtu,
        };
        // The thread has the turn, and keeps it when nobody waits for it any more.
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| error::closed())?;
        let (network, (lease, ..)) = namespace::make(plan, (lease, turn, self.making.token())).await?;
        Ok(Ready { network, lease })
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Ready>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
