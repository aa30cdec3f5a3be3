//! Networks that are ready before anybody asks.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use host_core::{ErrorKind, PluginError};
use tokio::{
    sync::{Notify, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

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

#[derive(Debug, Default)]
struct Shelf {
    ready: VecDeque<Ready>,
    /// Nothing is taken any more. What was is known to [`Pool::addresses`], or has a token of [`Pool::making`].
    closed: bool,
}

#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) key: Key,
    pub(crate) block: Subnet,
    pub(crate) mtu: u32,
    pub(crate) addresses: Addresses,
    /// How many to keep.
    target: usize,
    /// For a turn, for what is made in it, and for all of it to end.
    deadline: Duration,
    shelf: Mutex<Shelf>,
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
            deadline: error::DEADLINE,
            shelf: Mutex::default(),
            taken: Notify::new(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            making: TaskTracker::new(),
        }
    }

    /// A ready one, or one made now.
    pub(crate) async fn take(&self) -> Result<Network, PluginError> {
        let token = {
            let mut shelf = self.lock();
            if shelf.closed {
                return Err(error::closed());
            }
            self.taken.notify_one();
            if let Some(ready) = shelf.ready.pop_front() {
                return Ok(ready.keep());
            }
            self.making.token()
        };
        self.make(token).await.map(Ready::keep)
    }

    /// How many are ready.
    pub(crate) fn len(&self) -> usize {
        self.lock().ready.len()
    }

    /// From now on nothing is taken; gives up all that are ready.
    pub(crate) fn close(&self) {
        let ready = {
            let mut shelf = self.lock();
            shelf.closed = true;
            std::mem::take(&mut shelf.ready)
        };
        drop(ready);
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
    ///
    /// # Errors
    /// `Timeout` when a thread is stuck.
    pub(crate) async fn settle(&self) -> Result<(), PluginError> {
        self.making.close();
        let ended = timeout(self.deadline, self.making.wait()).await;
        ended.map_err(|_| error::late("ending what makes containers' networks"))
    }

    async fn add(&self) -> Result<(), PluginError> {
        let made = self.make(self.making.token()).await?;
        let mut shelf = self.lock();
        if !shelf.closed {
            shelf.ready.push_back(made);
        }
        Ok(())
    }

    async fn make(&self, token: TaskTrackerToken) -> Result<Ready, PluginError> {
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
        let turn = timeout(self.deadline, Arc::clone(&self.turns).acquire_owned()).await;
        let turn =
            turn.map_err(|_| error::late("waiting to make a network"))?.map_err(|_| error::closed())?;
        let (network, (lease, ..)) = namespace::make(plan, self.deadline, (lease, turn, token)).await?;
        Ok(Ready { network, lease })
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        let block: Subnet = "10.9.8.0/24".parse().unwrap();
        let key = Key::new("0badcafe").unwrap();
        let mut pool = Pool::new(key, block, 1500, Addresses::new(block, []), 0);
        pool.deadline = Duration::from_millis(20);
        pool
    }

    #[tokio::test]
    async fn stuck_threads_stop_neither_taking_nor_closing() {
        let pool = pool();
        // What stuck threads have.
        let turns = Arc::clone(&pool.turns).acquire_many_owned(2).await.unwrap();
        let token = pool.making.token();
        assert_eq!(pool.take().await.unwrap_err().kind(), ErrorKind::Timeout);
        assert_eq!(pool.addresses.used(), 0);
        pool.close();
        assert_eq!(pool.settle().await.unwrap_err().kind(), ErrorKind::Timeout);
        drop((turns, token));
        pool.settle().await.unwrap();
    }

    #[tokio::test]
    async fn nothing_is_taken_once_closing_began() {
        let pool = pool();
        pool.close();
        assert_eq!(pool.take().await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(pool.addresses.used(), 0);
    }
}
