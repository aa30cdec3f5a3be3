//! What the machine has left. Each figure is collected by itself: one that fails keeps its last value and stops no
//! other, least of all the heartbeat.

use std::path::{Path, PathBuf};

use procfs::{Current, CurrentSI, KernelStats, LoadAverage, Meminfo};

/// The figures, in their own units.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Resources {
    /// Memory that can be had without swapping.
    pub memory_available_bytes: f64,
    /// Idle processors, averaged since the last collection.
    pub idle_cores: f64,
    /// Load average of a minute.
    pub load1: f64,
    /// Free space under `[paths] root`.
    pub disk_free_bytes: f64,
}

/// Collects [`Resources`].
#[derive(Debug)]
pub(crate) struct Collector {
    disk: PathBuf,
    last: Resources,
    ticks: Option<Ticks>,
}

/// Processor time so far, in the kernel's ticks.
#[derive(Debug, Clone, Copy)]
struct Ticks {
    idle: u64,
    total: u64,
    processors: usize,
}

impl Collector {
    pub(crate) fn new(disk: &Path) -> Self {
        Self { disk: disk.to_owned(), last: Resources::default(), ticks: ticks().ok() }
    }

    /// The figures now; `failed` is told which could not be collected.
    pub(crate) fn collect(&mut self, failed: &dyn Fn(&'static str)) -> Resources {
        let idle = self.idle_cores();
        keep(&mut self.last.idle_cores, idle, "cpu", failed);
        keep(&mut self.last.memory_available_bytes, memory(), "memory", failed);
        keep(&mut self.last.load1, load(), "load", failed);
        keep(&mut self.last.disk_free_bytes, disk(&self.disk), "disk", failed);
        self.last
    }

    #[allow(clippy::cast_precision_loss, reason = "ticks and processors are far below 2^52")]
    fn idle_cores(&mut self) -> anyhow::Result<f64> {
        let now = ticks()?;
        let before = self.ticks.replace(now).unwrap_or(now);
        let total = now.total.saturating_sub(before.total);
        if total == 0 {
            return Ok(if self.last.idle_cores > 0.0 { self.last.idle_cores } else { now.processors as f64 });
        }
        Ok(now.idle.saturating_sub(before.idle) as f64 / total as f64 * now.processors as f64)
    }
}

fn keep(last: &mut f64, now: anyhow::Result<f64>, what: &'static str, failed: &dyn Fn(&'static str)) {
    match now {
        Ok(value) => *last = value,
        Err(error) => {
            failed(what);
            tracing::debug!(what, %error, "a figure could not be collected");
        }
    }
}

fn ticks() -> anyhow::Result<Ticks> {
    let stats = KernelStats::current()?;
    let cpu = stats.total;
    let idle = cpu.idle + cpu.iowait.unwrap_or_default();
    let busy = cpu.user + cpu.nice + cpu.system;
    let rest = [cpu.irq, cpu.softirq, cpu.steal].into_iter().flatten().sum::<u64>();
    Ok(Ticks { idle, total: idle + busy + rest, processors: stats.cpu_time.len() })
}

#[allow(clippy::cast_precision_loss, reason = "bytes of memory are below 2^52")]
fn memory() -> anyhow::Result<f64> {
    let memory = Meminfo::current()?;
    Ok(memory.mem_available.unwrap_or(memory.mem_free) as f64)
}

fn load() -> anyhow::Result<f64> {
    Ok(f64::from(LoadAverage::current()?.one))
}

#[allow(clippy::cast_precision_loss, reason = "bytes of a disk are below 2^63 and need no last digit")]
fn disk(path: &Path) -> anyhow::Result<f64> {
    let disk = rustix::fs::statvfs(path)?;
    Ok(disk.f_bavail as f64 * disk.f_frsize as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_of_this_machine_is_plausible() {
        let resources = Collector::new(Path::new("/")).collect(&|_| {});
        assert!(resources.memory_available_bytes > 1e6, "{resources:?}");
        assert!(resources.idle_cores >= 0.0 && resources.idle_cores < 4096.0, "{resources:?}");
        assert!(resources.disk_free_bytes > 0.0, "{resources:?}");
    }

    #[test]
    fn one_figure_that_fails_is_told_and_stops_no_other() {
        let failed = std::cell::RefCell::new(Vec::new());
        let mut collector = Collector::new(Path::new("/does/not/exist"));
        let resources = collector.collect(&|what| failed.borrow_mut().push(what));
        assert!(resources.memory_available_bytes > 1e6);
        assert!(resources.disk_free_bytes.abs() < 1.0);
        assert_eq!(failed.into_inner(), ["disk"]);
    }
}
