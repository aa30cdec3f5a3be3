//! What is remembered of GPUs from one round of questions to the next.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use host_core::gpu::GpuDevice;

/// Keyed by UUID: faults and counters by that of the GPU, devices by their own, which is another for a MIG instance.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Every device that was ever seen, as it was last, and the GPU that it is or is of.
    pub(crate) devices: BTreeMap<String, Seen>,
    faults: BTreeMap<String, Fault>,
    uncorrected: BTreeMap<String, u64>,
    /// GPUs by their places, to know what a call that hangs is about.
    pub(crate) places: BTreeMap<u32, String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) device: GpuDevice,
    pub(crate) gpu: String,
}

#[derive(Debug)]
struct Fault {
    text: String,
    at: Instant,
}

impl Memory {
    /// Something happened that a GPU does not shrug off. What it repeats is told once.
    pub(crate) fn fault(&mut self, gpu: &str, text: String) {
        if self.faults.get(gpu).is_none_or(|fault| fault.text != text) {
            tracing::warn!(gpu, fault = text, "a GPU has a fault");
        }
        self.faults.insert(gpu.to_owned(), Fault { text, at: Instant::now() });
    }

    /// Takes the counter of ECC errors that could not be corrected. One that was there when the GPU was first seen is
    /// old, and one that fell was reset.
    pub(crate) fn uncorrected(&mut self, gpu: &str, count: u64) {
        if let Some(before) = self.uncorrected.insert(gpu.to_owned(), count)
            && count > before
        {
            self.fault(gpu, format!("{} ECC errors that could not be corrected", count - before));
        }
    }

    /// The fault that a GPU has not yet outlived.
    pub(crate) fn is_faulty(&mut self, gpu: &str, recovery: Duration) -> Option<String> {
        let fault = self.faults.get(gpu)?;
        if fault.at.elapsed() < recovery {
            return Some(format!("{}, less than {} ago", fault.text, humantime::format_duration(recovery)));
        }
        tracing::info!(gpu, fault = fault.text, "a GPU has recovered");
        self.faults.remove(gpu);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn only_new_ecc_errors_are_a_fault() {
        let mut memory = Memory::default();
        memory.uncorrected("GPU-1", 5);
        assert_eq!(memory.is_faulty("GPU-1", LONG), None, "they were there before");
        memory.uncorrected("GPU-1", 7);
        assert!(memory.is_faulty("GPU-1", LONG).unwrap().starts_with("2 ECC errors"));
        assert_eq!(memory.is_faulty("GPU-2", LONG), None);
    }

    #[test]
    fn a_counter_that_was_reset_is_no_fault() {
        let mut memory = Memory::default();
        memory.uncorrected("GPU-1", 5);
        memory.uncorrected("GPU-1", 0);
        assert_eq!(memory.is_faulty("GPU-1", LONG), None);
    }

    #[test]
    fn a_fault_is_outlived() {
        let mut memory = Memory::default();
        memory.fault("GPU-1", "XID 48".into());
        assert!(memory.is_faulty("GPU-1", LONG).is_some());
        assert_eq!(memory.is_faulty("GPU-1", Duration::ZERO), None);
        assert_eq!(memory.is_faulty("GPU-1", LONG), None, "and then forgotten");
    }
}
