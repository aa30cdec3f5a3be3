//! What the process occupies: at rest, with mandelboxes, and after them.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use futures::future::try_join_all;
use host_tests::{
    engine::Engine,
    service::{Builder, Service},
};

use crate::{
    client::{Admin, fresh, request, timed},
    figures::{goal, say, title},
};

const MANDELBOXES: usize = 50;
const GOAL_MB: f64 = 20.0;
/// Until what was busy counts as idle: threads for file system work end after ten seconds without any.
const REST: Duration = Duration::from_secs(12);

/// Megabytes (10⁶ bytes).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    rss: f64,
    /// Without the share that other processes have of the same pages.
    pss: f64,
}

pub(crate) async fn measure(engine: &Engine) -> Result<()> {
    title("Memory")?;
    say(format_args!("{:<44}{:>10}{:>10}", "MB", "RSS", "PSS"))?;
    let docker = of("docker", Service::on(engine)).await?;
    let sim = of("sim", Service::with("[runtime]\nplugin = \"sim\"\n")).await?;
    goal("RSS below 20 MB at rest", docker.max(sim) < GOAL_MB)
}

/// The largest RSS while there was no mandelbox.
async fn of(runtime: &str, builder: Builder) -> Result<f64> {
    let service = builder.set(format!("gpu.sim.count={MANDELBOXES}")).start().await?;
    let admin = Admin::of(&service)?;
    let started = tell(&service, &format!("{runtime}: started")).await?;
    let ids: Vec<_> = (0..MANDELBOXES).map(|n| format!("memory-{n}")).collect();
    try_join_all(ids.iter().map(|id| ask(&service, id))).await?;
    tell(&service, &format!("{runtime}: with {MANDELBOXES} mandelboxes")).await?;
    try_join_all(ids.iter().map(|id| admin.stop(id, Some(Duration::ZERO)))).await?;
    let after = tell(&service, &format!("{runtime}: after {MANDELBOXES} mandelboxes")).await?;
    service.end_cleanly().await?;
    Ok(started.rss.max(after.rss))
}

/// As one of many clients: on a connection of its own, which ends with the answer.
async fn ask(service: &Service, id: &str) -> Result<()> {
    timed(request(&fresh()?, service, id), 200).await.map(drop)
}

async fn tell(service: &Service, when: &str) -> Result<Memory> {
    tokio::time::sleep(REST).await;
    let memory = read(service.pid())?;
    say(format_args!("{when:<44}{:>10.1}{:>10.1}", memory.rss, memory.pss))?;
    Ok(memory)
}

impl Memory {
    pub(crate) fn pss(self) -> f64 {
        self.pss
    }
}

pub(crate) fn read(pid: u32) -> Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let megabytes = |key: &str| -> Result<f64> {
        let line =
            text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}"))?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024.0 / 1e6)
    };
    Ok(Memory { rss: megabytes("Rss:")?, pss: megabytes("Pss:")? })
}
