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

use std::env;

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
