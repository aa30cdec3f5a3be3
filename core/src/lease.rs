//! Leases: ports, TTYs and GPU slots, each held by exactly one mandelbox for exactly as long as something of it
//! may use them. Dropping a lease gives it back, once; a [`LeaseSet`] is had whole or not at all.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::{
    id::MandelboxId,
    runtime::{ContainerPort, Protocol},
};

mod gpu;
mod pool;

pub use gpu::{GpuLease, GpuPool, GpuSlots, Placement};
pub use pool::{Lease, Pool};

/// How the pools read time; a parameter so that simulations can hold it.
pub type Clock = fn() -> Instant;

/// Nothing is left of a resource, and who has it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Exhausted {
    /// What there is none left of.
    pub resource: &'static str,
    /// Each value that is held, and by whom.
    pub holders: Vec<(String, MandelboxId)>,
    /// How many are free but rest until nothing late can reach them.
    pub resting: usize,
    /// How many are free but in use by others on this host, unhealthy, or short of memory.
    pub unusable: usize,
}

/// How many holders the message names: enough to act on, short enough for a log line.
const HOLDERS_SHOWN: usize = 6;

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {} is free: {} held", self.resource, self.holders.len())?;
        for (place, (value, holder)) in self.holders.iter().take(HOLDERS_SHOWN).enumerate() {
            write!(f, "{}{value} by {holder}", if place == 0 { " (" } else { ", " })?;
        }
        match self.holders.len() {
            0 => {}
            n if n > HOLDERS_SHOWN => write!(f, ", and {} more)", n - HOLDERS_SHOWN)?,
            _ => write!(f, ")")?,
        }
        write!(f, ", {} resting after use, {} unusable", self.resting, self.unusable)
    }
}

/// Everything that one mandelbox leases.
#[derive(Debug)]
pub struct LeaseSet {
    /// A host port for each of the container's ports.
    pub ports: Vec<(ContainerPort, Lease)>,
    /// The number of its virtual console.
    pub tty: Lease,
    /// Its GPU slot; `None` on a host without GPUs.
    pub gpu: Option<GpuLease>,
    /// Its place among the mandelboxes this host may have; `None` without such a limit.
    pub place: Option<Lease>,
}

/// How long a TTY rests after use: its device node may still be open in a process that is being killed.
const TTY_REST: Duration = Duration::from_millis(500);

/// The pools of a host.
#[derive(Debug, Clone)]
pub struct Pools {
    /// Host ports, of either protocol.
    pub ports: Pool,
    /// Virtual consoles.
    pub ttys: Pool,
    /// GPU slots.
    pub gpus: GpuPool,
    /// How many mandelboxes there may be at once, where that is set.
    pub places: Option<Pool>,
}

impl Pools {
    /// `ports` are tried in the order given; a port rests for `port_rest` after use.
    pub fn new(
        ports: impl IntoIterator<Item = u16>,
        port_rest: Duration,
        ttys: impl IntoIterator<Item = u16>,
        slots_per_gpu: u32,
        clock: Clock,
    ) -> Self {
        Self {
            ports: Pool::new("port", ports, port_rest, clock),
            ttys: Pool::new("TTY", ttys, TTY_REST, clock),
            gpus: GpuPool::new(slots_per_gpu),
            places: None,
        }
    }

    /// Chooses GPUs so; see [`GpuPool::placed`].
    #[must_use]
    pub fn placed(mut self, placement: Placement, memory_floor_bytes: u64) -> Self {
        self.gpus = self.gpus.placed(placement, memory_floor_bytes);
        self
    }

    /// Allows so many mandelboxes at once.
    #[must_use]
    pub fn limited_to(mut self, mandelboxes: u16, clock: Clock) -> Self {
        self.places = Some(Pool::new("place (mandelbox.capacity)", 1..=mandelboxes, Duration::ZERO, clock));
        self
    }

    /// All of it for one mandelbox, or nothing. `free` says whether a host port could be bound right now.
    ///
    /// # Errors
    /// What there is none left of; everything leased until then is given back.
    pub fn lease(
        &self,
        holder: &MandelboxId,
        ports: &[ContainerPort],
        free: impl Fn(u16, Protocol) -> bool,
    ) -> Result<LeaseSet, Exhausted> {
        let place = self.places.as_ref().map(|places| places.lease(holder, |_| true)).transpose()?;
        let gpu = self.gpus.lease(holder)?;
        let tty = self.ttys.lease(holder, |_| true)?;
        let ports = ports
            .iter()
            .map(|&port| Ok((port, self.ports.lease(holder, |host| free(host, port.protocol))?)))
            .collect::<Result<_, Exhausted>>()?;
        Ok(LeaseSet { ports, tty, gpu, place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{GpuDevice, GpuHealth};

    fn id(text: &str) -> MandelboxId {
        text.parse().unwrap()
    }

    fn pools(ports: std::ops::Range<u16>, ttys: std::ops::Range<u16>) -> Pools {
        Pools::new(ports, Duration::ZERO, ttys, 3, Instant::now)
    }

    fn three() -> Vec<ContainerPort> {
        ["32262/tcp", "32263/udp", "32273/tcp"].map(|p| p.parse().unwrap()).to_vec()
    }

    #[test]
    fn what_cannot_be_had_whole_is_given_back() {
        let pools = pools(2000..2005, 10..20);
        let first = pools.lease(&id("a"), &three(), |_, _| true).unwrap();
        let error = pools.lease(&id("b"), &three(), |_, _| true).unwrap_err();
        assert_eq!(error.resource, "port");
        assert_eq!(pools.ports.held(), 3, "the two ports and the TTY of b went back");
        assert_eq!(pools.ttys.held(), 1);
        drop(first);
        assert_eq!((pools.ports.held(), pools.ttys.held()), (0, 0));
    }

    #[test]
    fn exhaustion_says_who_holds_what() {
        let pools = pools(2000..2999, 10..12);
        let _a = pools.lease(&id("alpha"), &three(), |_, _| true).unwrap();
        let _b = pools.lease(&id("beta"), &three(), |_, _| true).unwrap();
        let error = pools.lease(&id("c"), &three(), |_, _| true).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no TTY is free: 2 held (10 by alpha, 11 by beta), 0 resting after use, 0 unusable"
        );
    }

    #[test]
    fn a_port_that_cannot_be_bound_is_passed_over() {
        let pools = pools(2000..2010, 10..20);
        let set = pools.lease(&id("a"), &three(), |port, _| port % 2 == 1).unwrap();
        assert!(set.ports.iter().all(|(_, lease)| lease.value() % 2 == 1));
    }

    #[test]
    fn no_more_mandelboxes_than_allowed() {
        let pools = pools(2000..2099, 10..20).limited_to(1, Instant::now);
        let first = pools.lease(&id("a"), &three(), |_, _| true).unwrap();
        let error = pools.lease(&id("b"), &three(), |_, _| true).unwrap_err();
        assert!(error.to_string().contains("mandelbox.capacity"), "{error}");
        drop(first);
        assert!(pools.lease(&id("b"), &three(), |_, _| true).is_ok());
    }

    #[test]
    fn a_gpu_slot_belongs_to_the_set() {
        let pools = pools(2000..2099, 10..20);
        let device = GpuDevice {
            index: 0,
            uuid: "GPU-0".into(),
            name: "x".into(),
            memory_bytes: 1,
            node: None,
            attachment: Default::default(),
        };
        pools.gpus.update(vec![device], &[("GPU-0".into(), GpuHealth::Healthy)]);
        let sets: Vec<_> =
            ["a", "b", "c"].map(|name| pools.lease(&id(name), &three(), |_, _| true).unwrap()).into();
        assert!(sets.iter().all(|set| set.gpu.is_some()));
        assert_eq!(pools.lease(&id("d"), &three(), |_, _| true).unwrap_err().resource, "GPU slot");
    }
}
