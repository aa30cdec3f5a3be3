//! What GPUs cost the service: `cargo bench -p gpu-nvml`. A driver that answers at once stands for NVIDIA's, so the figures
//! are what the plugin and its bindings cost, not what a driver takes; where there is one, it is asked as well.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use gpu_nvml::{Config, NvmlGpu};
use host_core::{
    gpu::{Gpu, Result},
    lease::{GpuPool, Placement},
};
use nvml_stand_in::{Scenario, StandIn};

const ROUNDS: usize = 2000;

#[tokio::main]
async fn main() -> Result<()> {
    println!("{:<52}{:>7}{:>10}{:>10}{:>10}", "µs", "n", "p50", "p99", "max");
    let driver = StandIn::new(&Scenario::of(8)).expect("the driver's stand-in");
    let config = Config { library: driver.library(), cdi: vec![], ..Config::default() };
    let gpu = NvmlGpu::open(config, false).await?;
    let round = rounds("enumeration with figures, 8 GPUs", &gpu).await?;
    let leases = leases(&gpu).await?;
    if Path::new("/dev/nvidiactl").exists() {
        let real = NvmlGpu::open(Config::default(), false).await?;
        rounds("the same over NVIDIA's driver", &real).await?;
    }
    goal("enumeration with figures of 8 GPUs under 5 ms", round < Duration::from_millis(5));
    goal("a lease under 50 µs", leases < Duration::from_micros(50));
    Ok(())
}

async fn rounds(name: &str, gpu: &NvmlGpu) -> Result<Duration> {
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        gpu.stats().await?;
        took.push(begun.elapsed());
    }
    Ok(row(name, took))
}

/// Of the last of 24 slots, on a pool with a memory floor: the longest search there is.
async fn leases(gpu: &NvmlGpu) -> Result<Duration> {
    let pool = GpuPool::new(3).placed(Placement::Pack, 1 << 30);
    pool.update(gpu.enumerate().await?, &gpu.health().await?);
    pool.observe(&gpu.stats().await?);
    let holder = "mandelbox".parse().expect("an identifier");
    let _held: Vec<_> = (0..23).map_while(|_| pool.lease(&holder).ok().flatten()).collect();
    let took = (0..ROUNDS).map(|_| {
        let begun = Instant::now();
        let lease = pool.lease(&holder).expect("a slot");
        let took = begun.elapsed();
        drop(lease);
        took
    });
    Ok(row("a lease, the last of 24", took.collect()))
}

/// Prints percentiles; the 99th.
fn row(name: &str, mut took: Vec<Duration>) -> Duration {
    took.sort();
    let at = |share: usize| took[took.len() * share / 100];
    let us = |duration: Duration| duration.as_secs_f64() * 1e6;
    let max = took[took.len() - 1];
    println!("{name:<52}{:>7}{:>10.1}{:>10.1}{:>10.1}", took.len(), us(at(50)), us(at(99)), us(max));
    at(99)
}

fn goal(text: &str, met: bool) {
    println!("goal: {text}: {}", if met { "met" } else { "MISSED" });
}
