//! What the host service costs, beside what the engine costs without it.
//!
//! `make bench` runs everything; `cargo bench -p host-tests --bench costs -- spin-up memory` only these sections.
//! Whatever is compared is measured in turns in the same run, so that what else the machine does meets both alike.
//! docs/performance.md says what each figure means.

mod alone;
mod client;
mod daemonless;
mod figures;
mod floor;
mod memory;
mod spin_up;
mod start;
mod transport;

use std::{
    env,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use host_tests::engine::Engine;

use crate::figures::say;

const SECTIONS: [&str; 5] = ["spin-up", "daemonless", "start", "memory", "transport"];

fn main() -> Result<()> {
    if let Some(done) = alone::dispatch() {
        return done;
    }
    // An engine's network can be entered by one thread only.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(costs())
}

async fn costs() -> Result<()> {
    // cargo passes `--bench`.
    let mut sections: Vec<String> = env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    if let Some(unknown) = sections.iter().find(|name| !SECTIONS.contains(&name.as_str())) {
        bail!("no section {unknown}; there are {}", SECTIONS.join(", "));
    }
    if sections.is_empty() {
        sections = SECTIONS.map(str::to_owned).to_vec();
    }
    let engine = Engine::scratch().await?;
    describe_machine(&engine).await?;
    for section in sections {
        match section.as_str() {
            "spin-up" => spin_up::measure(&engine).await?,
            "daemonless" => daemonless::measure(&engine).await?,
            "start" => start::measure(&engine)?,
            "memory" => memory::measure(&engine).await?,
            _ => transport::measure().await?,
        }
    }
    Ok(())
}

/// The figures mean little without it.
async fn describe_machine(engine: &Engine) -> Result<()> {
    let version = engine.client().version().await?;
    let processors = std::thread::available_parallelism()?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    say(format_args!(
        "{processors} processors, load {load}, Docker {}, kernel {}",
        version.version.unwrap_or_default(),
        version.kernel_version.unwrap_or_default(),
    ))
}

/// How often things that take a second or so are repeated: `BENCH_ROUNDS`.
fn rounds() -> Result<usize> {
    match env::var("BENCH_ROUNDS") {
        Ok(text) => text.parse().map_err(|_| anyhow::anyhow!("BENCH_ROUNDS={text} is no number")),
        Err(_) => Ok(30),
    }
}

/// Waits until the machine has nothing to do: an engine is busy for a while with what it has removed, and who is measured
/// next would pay for that. Not for ever, because others may use the machine.
async fn settle() -> Result<()> {
    const LOOK: Duration = Duration::from_millis(50);
    const PATIENCE: Duration = Duration::from_secs(2);
    const IDLE: f64 = 0.9;
    let begun = Instant::now();
    let mut before = processors()?;
    while begun.elapsed() < PATIENCE {
        tokio::time::sleep(LOOK).await;
        let now = processors()?;
        let (idle, all) = (now.0 - before.0, now.1 - before.1);
        if idle >= all * IDLE {
            return Ok(());
        }
        before = now;
    }
    Ok(())
}

/// How long the processors have been idle, and have been, in ticks.
fn processors() -> Result<(f64, f64)> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let ticks = text.lines().next().unwrap_or_default().split_whitespace().skip(1).map(str::parse);
    // user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in the first two already.
    let ticks: Vec<f64> = ticks.take(8).collect::<Result<_, _>>()?;
    Ok((ticks.iter().skip(3).take(2).sum(), ticks.iter().sum()))
}
