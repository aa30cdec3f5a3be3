//! GPU slots: each device takes a number of mandelboxes.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Deserialize;

use super::Exhausted;
use crate::{
    gpu::{GpuDevice, GpuHealth, GpuStats},
    id::MandelboxId,
};

/// Which of several GPUs with room takes the next mandelbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// The one with the fewest: each has as much of a GPU as there can be.
    #[default]
    Spread,
    /// The one with the most: whole GPUs stay free.
    Pack,
}

/// The slots of all devices. Clones share them.
#[derive(Debug, Clone)]
pub struct GpuPool {
    slots_per_gpu: u32,
    placement: Placement,
    /// Memory that each mandelbox is to find free; 0 for any.
    memory_floor_bytes: u64,
    state: Arc<Mutex<BTreeMap<String, Slot>>>,
}

/// One device and who is on it. A device that is lost keeps its holders until they end.
#[derive(Debug)]
struct Slot {
    device: GpuDevice,
    health: GpuHealth,
    holders: Vec<MandelboxId>,
    /// As last told, if ever.
    memory_free_bytes: Option<u64>,
    /// Leases given since then, whose use of memory no figure shows yet.
    unseen: u64,
}

/// A device as the pool sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuSlots {
    /// Which.
    pub device: GpuDevice,
    /// Whether it may get more.
    pub health: GpuHealth,
    /// Who is on it.
    pub holders: Vec<MandelboxId>,
}

impl GpuPool {
    /// No device yet; see [`GpuPool::update`].
    pub fn new(slots_per_gpu: u32) -> Self {
        let placement = Placement::default();
        Self { slots_per_gpu, placement, memory_floor_bytes: 0, state: Arc::default() }
    }

    /// Chooses devices so, and only such as have this much free memory for every mandelbox.
    #[must_use]
    pub fn placed(self, placement: Placement, memory_floor_bytes: u64) -> Self {
        Self { placement, memory_floor_bytes, ..self }
    }

    /// Takes over what the GPU plugin found; those that became healthy or unhealthy by it. Devices that are gone stay
    /// known and get no new mandelbox: a host that has lost its GPUs is not one that never had any. Leases stay as they
    /// are.
    pub fn update(&self, devices: Vec<GpuDevice>, health: &[(String, GpuHealth)]) -> Vec<GpuSlots> {
        let mut state = self.state();
        let before: BTreeMap<_, _> =
            state.iter().map(|(uuid, slot)| (uuid.clone(), slot.is_healthy())).collect();
        let told = |uuid: &str| health.iter().find(|(of, _)| of == uuid).map(|(_, health)| health.clone());
        for (uuid, slot) in state.iter_mut() {
            slot.health = match told(uuid) {
                Some(GpuHealth::Unhealthy(reason)) => GpuHealth::Unhealthy(reason),
                _ => GpuHealth::Unhealthy("it is no longer enumerated".to_owned()),
            };
        }
        for device in devices {
            let health = told(&device.uuid).unwrap_or(GpuHealth::Healthy);
            let slot = state.remove(&device.uuid).unwrap_or_else(|| Slot::new(device.clone()));
            state.insert(device.uuid.clone(), Slot { device, health, ..slot });
        }
        let changed =
            |(uuid, slot): &(&String, &Slot)| before.get(*uuid).copied().unwrap_or(true) != slot.is_healthy();
        state.iter().filter(changed).map(|(_, slot)| slot.view()).collect()
    }

    /// Nothing is known of any device any more, and none gets a new mandelbox until the next [`GpuPool::update`].
    /// Those that were healthy.
    pub fn doubt(&self, reason: &str) -> Vec<GpuSlots> {
        let mut state = self.state();
        let doubted = state.values_mut().filter(|slot| slot.is_healthy()).map(|slot| {
            slot.health = GpuHealth::Unhealthy(reason.to_owned());
            slot.view()
        });
        doubted.collect()
    }

    /// Takes over figures.
    pub fn observe(&self, stats: &[GpuStats]) {
        let mut state = self.state();
        for figures in stats {
            if let Some(slot) = state.get_mut(&figures.uuid) {
                (slot.memory_free_bytes, slot.unseen) = (Some(figures.memory_free_bytes), 0);
            }
        }
    }

    /// A slot on a healthy device with room, as [`Placement`] says; `None` on a host without GPUs.
    ///
    /// # Errors
    /// Every healthy device is full, or short of memory.
    pub fn lease(&self, holder: &MandelboxId) -> Result<Option<GpuLease>, Exhausted> {
        let mut state = self.state();
        if state.is_empty() {
            return Ok(None);
        }
        let room = state.values_mut().filter(|slot| self.usable(slot) > 0);
        let chosen = match self.placement {
            Placement::Spread => room.min_by_key(|slot| (slot.holders.len(), slot.device.index)),
            Placement::Pack => room.min_by_key(|slot| (Reverse(slot.holders.len()), slot.device.index)),
        };
        let Some(slot) = chosen else {
            return Err(self.exhausted(&state));
        };
        slot.holders.push(holder.clone());
        slot.unseen += 1;
        let device = slot.device.clone();
        Ok(Some(GpuLease { device, holder: holder.clone(), pool: self.clone() }))
    }

    /// Every device, by index.
    pub fn slots(&self) -> Vec<GpuSlots> {
        let mut slots: Vec<_> = self.state().values().map(Slot::view).collect();
        slots.sort_by_key(|slot| slot.device.index);
        slots
    }

    /// How many mandelboxes there can be: the slots of the healthy devices, and those that are held on others. `None` on a
    /// host without GPUs.
    pub fn capacity(&self) -> Option<u32> {
        let state = self.state();
        let slots = state.values().map(|slot| match slot.is_healthy() {
            true => self.slots_of(slot),
            false => u32::try_from(slot.holders.len()).unwrap_or(u32::MAX),
        });
        (!state.is_empty()).then(|| slots.sum())
    }

    /// How many slots are held.
    pub fn held(&self) -> usize {
        self.state().values().map(|slot| slot.holders.len()).sum()
    }

    fn state(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many mandelboxes a device can have: one with little memory has fewer.
    fn slots_of(&self, slot: &Slot) -> u32 {
        let by_memory = slot.device.memory_bytes.checked_div(self.memory_floor_bytes).unwrap_or(u64::MAX);
        self.slots_per_gpu.min(u32::try_from(by_memory).unwrap_or(u32::MAX))
    }

    /// How many more a device can have now.
    fn usable(&self, slot: &Slot) -> usize {
        let free = (self.slots_of(slot) as usize).saturating_sub(slot.holders.len());
        let wanted = self.memory_floor_bytes.saturating_mul(slot.unseen + 1);
        let has_memory = slot.memory_free_bytes.is_none_or(|free| free >= wanted);
        if slot.is_healthy() && has_memory { free } else { 0 }
    }

    fn exhausted(&self, state: &BTreeMap<String, Slot>) -> Exhausted {
        let holders = state.values().flat_map(|slot| {
            slot.holders.iter().map(|holder| (format!("GPU {}", slot.device.index), holder.clone()))
        });
        let unusable = |slot: &Slot| (self.slots_of(slot) as usize).saturating_sub(slot.holders.len());
        Exhausted {
            resource: "GPU slot",
            holders: holders.collect(),
            resting: 0,
            unusable: state.values().map(unusable).sum(),
        }
    }

    fn give_back(&self, uuid: &str, holder: &MandelboxId) {
        if let Some(slot) = self.state().get_mut(uuid)
            && let Some(place) = slot.holders.iter().position(|h| h == holder)
        {
            slot.holders.swap_remove(place);
            slot.unseen = slot.unseen.min(slot.holders.len() as u64);
        }
    }
}

impl Slot {
    fn new(device: GpuDevice) -> Self {
        let health = GpuHealth::Healthy;
        Self { device, health, holders: Vec::new(), memory_free_bytes: None, unseen: 0 }
    }

    fn is_healthy(&self) -> bool {
        self.health == GpuHealth::Healthy
    }

    fn view(&self) -> GpuSlots {
        GpuSlots { device: self.device.clone(), health: self.health.clone(), holders: self.holders.clone() }
    }
}

/// One slot on one device, given back when dropped.
#[derive(Debug)]
pub struct GpuLease {
    device: GpuDevice,
    holder: MandelboxId,
    pool: GpuPool,
}

impl GpuLease {
    /// The device as it was when leased.
    pub fn device(&self) -> &GpuDevice {
        &self.device
    }
}

impl Drop for GpuLease {
    fn drop(&mut self) {
        self.pool.give_back(&self.device.uuid, &self.holder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> MandelboxId {
        text.parse().unwrap()
    }

    fn device(index: u32) -> GpuDevice {
        GpuDevice {
            index,
            uuid: format!("GPU-{index}"),
            name: "x".into(),
            memory_bytes: 1,
            node: None,
            attachment: Default::default(),
        }
    }

    #[test]
    fn the_least_loaded_healthy_device_is_taken() {
        let pool = GpuPool::new(2);
        let sick = ("GPU-1".to_owned(), GpuHealth::Unhealthy("XID 79".into()));
        pool.update(vec![device(0), device(1), device(2)], &[sick]);
        let leases: Vec<_> = (0..4).map(|n| pool.lease(&id(&n.to_string())).unwrap().unwrap()).collect();
        assert_eq!(leases.iter().map(|l| l.device().index).collect::<Vec<_>>(), [0, 2, 0, 2]);
        let error = pool.lease(&id("late")).unwrap_err();
        assert_eq!((error.holders.len(), error.unusable), (4, 2));
        drop(leases);
        assert_eq!(pool.held(), 0);
    }

    #[test]
    fn a_lost_device_keeps_its_holders_and_comes_back_with_them() {
        let pool = GpuPool::new(1);
        pool.update(vec![device(0)], &[]);
        let lease = pool.lease(&id("a")).unwrap().unwrap();
        pool.update(vec![], &[]);
        assert_eq!(pool.capacity(), Some(1), "a is there still, and that is all there can be");
        assert!(pool.lease(&id("b")).is_err());
        pool.update(vec![device(0)], &[]);
        assert!(pool.lease(&id("b")).is_err(), "a still holds the only slot");
        drop(lease);
        assert!(pool.lease(&id("b")).is_ok());
    }

    #[test]
    fn a_host_that_lost_its_gpus_leases_none_and_says_so() {
        let pool = GpuPool::new(1);
        pool.update(vec![device(0)], &[]);
        pool.update(vec![], &[]);
        assert_eq!(pool.lease(&id("a")).unwrap_err().unusable, 1);
    }

    #[test]
    fn whoever_packs_fills_one_device_after_the_other() {
        let pool = GpuPool::new(2).placed(Placement::Pack, 0);
        pool.update(vec![device(0), device(1)], &[]);
        let mut leases: Vec<_> = (0..3).map(|n| pool.lease(&id(&n.to_string())).unwrap().unwrap()).collect();
        assert_eq!(leases.iter().map(|l| l.device().index).collect::<Vec<_>>(), [0, 0, 1]);
        drop(leases.remove(0));
        assert_eq!(pool.lease(&id("next")).unwrap().unwrap().device().index, 0, "one each: the first");
    }

    #[test]
    fn a_device_that_is_short_of_memory_takes_nobody() {
        let with_memory = |index| GpuDevice { memory_bytes: 10, ..device(index) };
        let free = |uuid: &str, memory_free_bytes| GpuStats {
            uuid: uuid.into(),
            memory_free_bytes,
            ..GpuStats::default()
        };
        let pool = GpuPool::new(3).placed(Placement::Spread, 4);
        pool.update(vec![with_memory(0), with_memory(1), device(2)], &[]);
        assert_eq!(pool.capacity(), Some(4), "two fit on each, and none where there is less than one needs");
        pool.observe(&[free("GPU-0", 7), free("GPU-1", 10)]);
        let leases: Vec<_> = ["a", "b", "c"].map(|name| pool.lease(&id(name)).unwrap().unwrap()).into();
        assert_eq!(leases.iter().map(|l| l.device().index).collect::<Vec<_>>(), [0, 1, 1]);
        assert_eq!(
            pool.lease(&id("d")).unwrap_err().unusable,
            1,
            "what a has leased is not free, though unused yet"
        );
        pool.observe(&[free("GPU-0", 6)]);
        assert_eq!(pool.lease(&id("d")).unwrap().unwrap().device().index, 0);
        drop(leases);
        let again: Vec<_> = ["e", "f"].map(|name| pool.lease(&id(name)).unwrap().unwrap()).into();
        assert_eq!(again.len(), 2, "what was given back before any figure showed it is free at once");
    }

    #[test]
    fn changes_of_health_are_told_once_and_with_those_they_concern() {
        let pool = GpuPool::new(2);
        let sick = |reason: &str| vec![("GPU-0".to_owned(), GpuHealth::Unhealthy(reason.into()))];
        assert_eq!(pool.update(vec![device(0), device(1)], &[]), []);
        let lease = pool.lease(&id("a")).unwrap();
        let changed = pool.update(vec![device(0), device(1)], &sick("XID 79"));
        assert_eq!((changed.len(), &changed[0].holders), (1, &vec![id("a")]));
        assert_eq!(pool.update(vec![device(1)], &sick("fell off the bus")), [], "it was sick before");
        assert_eq!(
            pool.slots()[0].health,
            GpuHealth::Unhealthy("fell off the bus".into()),
            "the plugin knows why"
        );
        assert_eq!(pool.update(vec![device(0), device(1)], &[])[0].health, GpuHealth::Healthy);
        assert_eq!(pool.doubt("silence").len(), 2);
        assert_eq!((pool.capacity(), pool.doubt("silence").len()), (Some(1), 0));
        drop(lease);
    }

    /// Measured, with much room for a busy machine and a debug build: 50 µs are the goal.
    #[test]
    fn a_lease_is_cheap() {
        let pool = GpuPool::new(64);
        pool.update((0..8).map(device).collect(), &[]);
        let holder = id("a");
        let mut took: Vec<_> = (0..1000)
            .map(|_| {
                let begun = std::time::Instant::now();
                let lease = pool.lease(&holder).unwrap();
                let took = begun.elapsed();
                drop(lease);
                took
            })
            .collect();
        took.sort();
        println!("a lease: median {:?}, 99th {:?}", took[500], took[990]);
        assert!(took[500] < std::time::Duration::from_micros(50), "{took:?}");
    }

    #[test]
    fn a_host_without_gpus_leases_none() {
        assert!(GpuPool::new(3).lease(&id("a")).unwrap().is_none());
    }
}
