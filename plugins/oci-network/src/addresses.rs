//! Which addresses of the block are in use.

use std::{
    collections::{HashSet, VecDeque},
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::subnet::Subnet;

/// The block's addresses; the one unused for longest is given out first, so that what the network still
/// remembers of an address has had the most time to fade.
#[derive(Debug)]
struct Free {
    block: Subnet,
    /// The first that was never given out.
    fresh: u32,
    released: VecDeque<Ipv4Addr>,
    used: HashSet<Ipv4Addr>,
    /// Those in use that are being given back.
    leaving: HashSet<Ipv4Addr>,
}

impl Free {
    fn take(&mut self) -> Option<Ipv4Addr> {
        while self.fresh < self.block.capacity() {
            let address = self.block.container(self.fresh);
            self.fresh += 1;
            if self.used.insert(address) {
                return Some(address);
            }
        }
        let address = self.released.pop_front()?;
        self.used.insert(address);
        Some(address)
    }

    fn release(&mut self, address: Ipv4Addr) {
        let given_out = self.block.offset(address) < self.fresh + 2;
        if self.used.remove(&address) && given_out {
            self.released.push_back(address);
        }
    }
}

/// Shared by everything that takes or gives back an address.
#[derive(Debug, Clone)]
pub(crate) struct Addresses(Arc<Mutex<Free>>);

impl Addresses {
    /// `used` are in use already; those outside the block are left out.
    pub(crate) fn new(block: Subnet, used: impl IntoIterator<Item = Ipv4Addr>) -> Self {
        let used = used.into_iter().filter(|address| block.is_container(*address)).collect();
        Self(Arc::new(Mutex::new(Free {
            block,
            fresh: 0,
            released: VecDeque::new(),
            used,
            leaving: HashSet::new(),
        })))
    }

    /// An address nobody uses, `None` when there is none left.
    pub(crate) fn lease(&self) -> Option<Lease> {
        let address = self.lock().take()?;
        Some(Lease { address, of: Some(self.clone()) })
    }

    /// Whether a container has it, and nobody is giving it back.
    pub(crate) fn is_used(&self, address: Ipv4Addr) -> bool {
        let free = self.lock();
        free.used.contains(&address) && !free.leaving.contains(&address)
    }

    /// Whether it may not be given out.
    pub(crate) fn is_taken(&self, address: Ipv4Addr) -> bool {
        self.lock().used.contains(&address)
    }

    /// Starts giving it back; `None` when it is not in use, or somebody else does.
    pub(crate) fn leave(&self, address: Ipv4Addr) -> Option<Leaving> {
        let mut free = self.lock();
        let first = free.used.contains(&address) && free.leaving.insert(address);
        first.then(|| Leaving { address, of: self.clone() })
    }

    /// How many containers have one.
    pub(crate) fn used(&self) -> usize {
        self.lock().used.len()
    }

    fn release(&self, address: Ipv4Addr) {
        self.lock().release(address);
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An address that is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    address: Ipv4Addr,
    of: Option<Addresses>,
}

impl Lease {
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// From now on the address is given back by [`Addresses::leave`].
    pub(crate) fn keep(mut self) {
        self.of = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(addresses) = self.of.take() {
            addresses.release(self.address);
        }
    }
}

/// An address on its way back; dropped before that is done, it is in use as before.
#[derive(Debug)]
pub(crate) struct Leaving {
    address: Ipv4Addr,
    of: Addresses,
}

impl Leaving {
    /// It may be given out again.
    pub(crate) fn done(self) {
        self.of.release(self.address);
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.of.lock().leaving.remove(&self.address);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_unused_comes_first_and_used_ones_never() {
        let block: Subnet = "192.0.2.0/29".parse().unwrap();
        let at = |n| Ipv4Addr::new(192, 0, 2, n);
        let addresses = Addresses::new(block, [at(3)]);
        let take = || addresses.lease().map(|lease| (lease.address(), lease.keep()).0);
        assert_eq!([take(), take(), take(), take()], [Some(at(2)), Some(at(4)), Some(at(5)), Some(at(6))]);
        assert_eq!(take(), None);
        for n in [5, 3, 5, 2] {
            if let Some(leaving) = addresses.leave(at(n)) {
                leaving.done();
            }
        }
        assert_eq!([take(), take(), take(), take()], [Some(at(5)), Some(at(3)), Some(at(2)), None]);
    }

    #[test]
    fn who_gives_up_giving_back_still_has_it() {
        let addresses = Addresses::new("192.0.2.0/30".parse().unwrap(), []);
        let lease = addresses.lease().unwrap();
        let address = lease.address();
        lease.keep();
        let leaving = addresses.leave(address).unwrap();
        assert!(!addresses.is_used(address));
        assert_eq!(addresses.used(), 1);
        drop(leaving);
        assert!(addresses.is_used(address) && addresses.lease().is_none());
    }

    #[test]
    fn a_dropped_lease_gives_its_address_back() {
        let addresses = Addresses::new("192.0.2.0/30".parse().unwrap(), []);
        let lease = addresses.lease().unwrap();
        assert!(addresses.lease().is_none());
        drop(lease);
        assert!(addresses.lease().is_some());
    }

    proptest! {
        #[test]
        fn nobody_shares_an_address(steps in proptest::collection::vec(any::<Option<u8>>(), 0..200)) {
            let block: Subnet = "192.0.2.0/27".parse().unwrap();
            let addresses = Addresses::new(block, [block.container(7), block.container(20)]);
            let mut held = HashSet::from([block.container(7), block.container(20)]);
            for step in steps {
                match step {
                    None => match addresses.lease() {
                        Some(lease) => {
                            prop_assert!(block.is_container(lease.address()));
                            prop_assert!(held.insert(lease.address()));
                            lease.keep();
                        }
                        None => prop_assert_eq!(held.len(), block.capacity() as usize),
                    },
                    Some(n) => {
                        let address = block.container(u32::from(n) % block.capacity());
                        held.remove(&address);
                        if let Some(leaving) = addresses.leave(address) {
                            prop_assert!(addresses.leave(address).is_none());
                            leaving.done();
                        }
                    }
                }
                prop_assert_eq!(addresses.used(), held.len());
            }
        }
    }
}
