//! GPU slots: each device takes a number of mandelboxes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Exhausted;
use crate::{
    gpu::{GpuDevice, GpuHealth},
    id::MandelboxId,
};

/// The slots of all devices. Clones share them.
#[derive(Debug, Clone)]
pub struct GpuPool {
    slots_per_gpu: u32,
    state: Arc<Mutex<BTreeMap<String, Slot>>>,
}

/// One device and who is on it. A device that is lost keeps its holders until they end.
#[derive(Debug)]
struct Slot {
    device: GpuDevice,
    health: GpuHealth,
    holders: Vec<MandelboxId>,
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
        Self { slots_per_gpu, state: Arc::default() }
    }

    /// Takes over what the GPU plugin found. Devices that are gone stay known and get no new mandelbox: a host that
    /// has lost its GPUs is not one that never had any. Leases stay as they are.
    pub fn update(&self, devices: Vec<GpuDevice>, health: &[(String, GpuHealth)]) {
        let mut state = self.state();
        let lost = "it is no longer enumerated";
        state.values_mut().for_each(|slot| slot.health = GpuHealth::Unhealthy(lost.to_owned()));
        for device in devices {
            let told = health.iter().find(|(uuid, _)| *uuid == device.uuid);
            let health = told.map_or(GpuHealth::Healthy, |(_, health)| health.clone());
            let holders = state.remove(&device.uuid).map(|slot| slot.holders).unwrap_or_default();
            state.insert(device.uuid.clone(), Slot { device, health, holders });
        }
    }

    /// A slot on the healthy device with the fewest holders; `None` on a host without GPUs.
    ///
    /// # Errors
    /// Every healthy device is full.
    pub fn lease(&self, holder: &MandelboxId) -> Result<Option<GpuLease>, Exhausted> {
        let mut state = self.state();
        if state.is_empty() {
            return Ok(None);
        }
        let slots = self.slots_per_gpu as usize;
        let room = state.values_mut().filter(|s| s.health == GpuHealth::Healthy && s.holders.len() < slots);
        let Some(slot) = room.min_by_key(|slot| (slot.holders.len(), slot.device.index)) else {
            return Err(exhausted(&state, self.slots_per_gpu));
        };
        slot.holders.push(holder.clone());
        let device = slot.device.clone();
        Ok(Some(GpuLease { device, holder: holder.clone(), pool: self.clone() }))
    }

    /// Every device, by index.
    pub fn slots(&self) -> Vec<GpuSlots> {
        let mut slots: Vec<_> = self.state().values().map(Slot::view).collect();
        slots.sort_by_key(|slot| slot.device.index);
        slots
    }

    /// How many slots the healthy devices have together; `None` on a host without GPUs.
    pub fn capacity(&self) -> Option<u32> {
        let state = self.state();
        let healthy = state.values().filter(|slot| slot.health == GpuHealth::Healthy).count();
        (!state.is_empty())
            .then(|| u32::try_from(healthy).unwrap_or(u32::MAX).saturating_mul(self.slots_per_gpu))
    }

    /// How many slots are held.
    pub fn held(&self) -> usize {
        self.state().values().map(|slot| slot.holders.len()).sum()
    }

    fn state(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, uuid: &str, holder: &MandelboxId) {
        if let Some(slot) = self.state().get_mut(uuid)
            && let Some(place) = slot.holders.iter().position(|h| h == holder)
        {
            slot.holders.swap_remove(place);
        }
    }
}

impl Slot {
    fn view(&self) -> GpuSlots {
        GpuSlots { device: self.device.clone(), health: self.health.clone(), holders: self.holders.clone() }
    }
}

fn exhausted(state: &BTreeMap<String, Slot>, slots_per_gpu: u32) -> Exhausted {
    let holders = state.values().flat_map(|slot| {
        slot.holders.iter().map(|holder| (format!("GPU {}", slot.device.index), holder.clone()))
    });
    let unhealthy = state.values().filter(|slot| slot.health != GpuHealth::Healthy);
    Exhausted {
        resource: "GPU slot",
        holders: holders.collect(),
        resting: 0,
        unusable: unhealthy.map(|slot| (slots_per_gpu as usize).saturating_sub(slot.holders.len())).sum(),
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
        assert_eq!(pool.capacity(), Some(0));
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
    fn a_host_without_gpus_leases_none() {
        assert!(GpuPool::new(3).lease(&id("a")).unwrap().is_none());
    }
}
