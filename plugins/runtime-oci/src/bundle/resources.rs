//! What its processes may use.

use host_core::{PluginError, runtime::Limits};
use oci_spec::runtime::{
    LinuxCpu, LinuxCpuBuilder, LinuxMemory, LinuxMemoryBuilder, LinuxPids, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder,
};

use super::{Place, incomplete, invalid, number};

/// Microseconds in which a quota may be used; the kernel's usual.
const PERIOD_US: u64 = 100_000;
/// The kernel takes no quota of less than a millisecond per period.
const LEAST_NANO_CPUS: u64 = 10_000_000;

/// Without devices, which are [`super::devices`]. A limit of 0 is none, as for the engines.
pub(super) fn resources(limits: &Limits, place: &Place<'_>) -> Result<LinuxResources, PluginError> {
    let mut resources = LinuxResourcesBuilder::default().build().map_err(incomplete)?;
    resources.set_memory(memory(limits, place)?).set_cpu(cpu(limits)?).set_pids(pids(limits)?);
    Ok(resources)
}

/// The sum of memory and swap is limited to the same, which means no swap.
fn memory(limits: &Limits, place: &Place<'_>) -> Result<Option<LinuxMemory>, PluginError> {
    let Some(bytes) = limits.memory_bytes.filter(|bytes| *bytes > 0) else {
        return Ok(None);
    };
    let bytes = number("limits.memory_bytes", bytes)?;
    let mut memory = LinuxMemoryBuilder::default().limit(bytes).build().map_err(incomplete)?;
    memory.set_swap(place.counts_swap.then_some(bytes));
    Ok(Some(memory))
}

fn cpu(limits: &Limits) -> Result<Option<LinuxCpu>, PluginError> {
    let shares = limits.cpu_shares.filter(|shares| *shares > 0);
    let nano_cpus = limits.nano_cpus.filter(|nano_cpus| *nano_cpus > 0);
    if shares.is_none() && nano_cpus.is_none() {
        return Ok(None);
    }
    let mut cpu = LinuxCpuBuilder::default().build().map_err(incomplete)?;
    cpu.set_shares(shares);
    if let Some(nano_cpus) = nano_cpus {
        cpu.set_period(Some(PERIOD_US)).set_quota(Some(quota(nano_cpus)?));
    }
    Ok(Some(cpu))
}

fn quota(nano_cpus: u64) -> Result<i64, PluginError> {
    if nano_cpus < LEAST_NANO_CPUS {
        return Err(invalid(format!(
            "limits.nano_cpus = {nano_cpus} is less than {LEAST_NANO_CPUS}, a hundredth CPU"
        )));
    }
    let quota = u128::from(nano_cpus) * u128::from(PERIOD_US) / 1_000_000_000;
    number("limits.nano_cpus", u64::try_from(quota).unwrap_or(u64::MAX))
}

fn pids(limits: &Limits) -> Result<Option<LinuxPids>, PluginError> {
    let Some(most) = limits.pids.filter(|most| *most > 0) else {
        return Ok(None);
    };
    LinuxPidsBuilder::default().limit(number("limits.pids", most)?).build().map(Some).map_err(incomplete)
}
