//! Two tasks that look after the host: one collects figures and the GPUs' health, the other reports them and removes
//! stale rows. Neither can stop the other: a report goes out with the last figures there are.

use std::{future::pending, sync::Arc, time::Duration};

use host_core::{
    PluginError, chain,
    gpu::{Gpu, GpuHealth, GpuStats},
    lease::{GpuSlots, Pools},
    pubsub::{Heartbeat, StaleAfter},
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, interval_at, timeout},
};

use crate::{
    deadline::within,
    host::Condition,
    orchestrator::{Shared, blocking},
    resources::{Collector, Resources},
    service::capacity,
};

/// So many times in a row the GPUs may not be seen before none of them gets a new mandelbox, and their figures not be had
/// before none are shown: old ones would pass for new.
const BLIND: u32 = 2;

/// Collects until it is dropped.
pub(crate) async fn collect(shared: Arc<Shared>, gpu: Arc<dyn Gpu>, condition: watch::Sender<Condition>) {
    let mut collector = Collector::new(&shared.settings.paths.root);
    let mut every = interval(shared.settings.gpu.poll);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let limit = shared.settings.gpu.timeout;
    let (mut blind, mut failed) = (0, 0);
    loop {
        every.tick().await;
        let metrics = shared.metrics.clone();
        // A disk that hangs must not take a thread of the runtime with it.
        let collected = blocking(move || {
            let resources = collector.collect(&|what| metrics.collector_failed(what));
            Ok((collector, resources))
        });
        let Ok((back, resources)) = collected.await else {
            collector = Collector::new(&shared.settings.paths.root);
            continue;
        };
        collector = back;
        let seen = look_at_gpus(&shared.pools, gpu.as_ref(), limit).await;
        blind = if seen.is_err() { blind + 1 } else { 0 };
        if let (Err(error), true) = (&seen, blind == BLIND) {
            shared.pools.gpus.doubt(&chain(error)).iter().for_each(tell_of_gpu);
        }
        let gpus = match seen {
            Ok(()) => figures_of_gpus(&shared.pools, gpu.as_ref(), limit).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &gpus {
            shared.metrics.collector_failed("gpu");
            if failed == 0 {
                tracing::warn!(error = %chain(error), "the GPUs could not be asked");
            }
        }
        failed = if gpus.is_err() { failed + 1 } else { 0 };
        condition.send_modify(|condition| {
            condition.resources = resources;
            match gpus {
                Ok(gpus) => condition.gpus = gpus,
                Err(_) if failed >= BLIND => condition.gpus.clear(),
                Err(_) => {}
            }
        });
    }
}

/// Tells the pool which GPUs there are and how they do.
pub(crate) async fn look_at_gpus(pools: &Pools, gpu: &dyn Gpu, limit: Duration) -> Result<(), PluginError> {
    let look = async { Ok((gpu.enumerate().await?, gpu.health().await?)) };
    let (devices, health) = within(limit, "asking for the GPUs", look).await?;
    pools.gpus.update(devices, &health).iter().for_each(tell_of_gpu);
    Ok(())
}

/// The GPUs' figures; tells the pool what memory is left.
pub(crate) async fn figures_of_gpus(
    pools: &Pools,
    gpu: &dyn Gpu,
    limit: Duration,
) -> Result<Vec<GpuStats>, PluginError> {
    let stats = within(limit, "asking for the GPUs' figures", gpu.stats()).await?;
    pools.gpus.observe(&stats);
    Ok(stats)
}

/// Those on a GPU that is not well go on: their programs know best what they can do without it.
fn tell_of_gpu(slots: &GpuSlots) {
    let GpuSlots { device, health, holders } = slots;
    match health {
        GpuHealth::Healthy => tracing::info!(gpu = device.uuid, "a GPU is well again and gets mandelboxes"),
        GpuHealth::Unhealthy(reason) => {
            let mandelboxes = holders.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            tracing::warn!(
                gpu = device.uuid,
                reason,
                mandelboxes,
                "a GPU is not well and gets no new mandelboxes"
            );
        }
    }
}

/// Reports until it is dropped.
pub(crate) async fn report(shared: Arc<Shared>, mut condition: watch::Receiver<Condition>) {
    let pubsub = &shared.settings.pubsub;
    // Not at once: what is there when the service starts must first be seen and taken on.
    let mut stale = interval_at(Instant::now() + pubsub.stale_check, pubsub.stale_check);
    stale.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let beats = async {
        let mut told = capacity(&shared.settings, &shared.pools);
        loop {
            due(&shared, &mut condition, told).await;
            told = capacity(&shared.settings, &shared.pools);
            let heartbeat = heartbeat(&condition.borrow(), told);
            beat(&shared, &heartbeat).await;
        }
    };
    let sweeps = async {
        loop {
            stale.tick().await;
            sweep(&shared).await;
        }
    };
    tokio::join!(beats, sweeps);
}

/// Waits for the next heartbeat: about a minute, but not while the control plane takes what a lost GPU had for free.
async fn due(shared: &Shared, condition: &mut watch::Receiver<Condition>, told: u32) {
    let changed = async {
        while capacity(&shared.settings, &shared.pools) == told {
            // Nobody looks any more at what could change.
            if condition.changed().await.is_err() {
                pending().await
            }
        }
    };
    let _ = timeout(jittered(shared.settings.pubsub.heartbeat), changed).await;
}

/// Up to a tenth more or less, so that a fleet does not beat in step.
fn jittered(period: Duration) -> Duration {
    period.mul_f64(0.9 + 0.2 * rand::random::<f64>())
}

async fn beat(shared: &Shared, heartbeat: &Heartbeat) {
    let beat = shared.pubsub.heartbeat(&shared.facts.name, heartbeat);
    if let Err(error) = within(shared.settings.pubsub.timeout, "the heartbeat", beat).await {
        tracing::warn!(error = %chain(&error), "the heartbeat could not be reported");
    }
}

async fn sweep(shared: &Shared) {
    let settings = &shared.settings.pubsub;
    let after = StaleAfter { allocated: settings.stale_allocated, connecting: settings.stale_connecting };
    let working_on: Vec<_> = shared.board.all().iter().map(|mandelbox| mandelbox.id().clone()).collect();
    let removal = shared.pubsub.remove_stale(&shared.facts.name, after, &working_on);
    match within(settings.timeout, "removing stale rows", removal).await {
        Ok(removed) if removed.is_empty() => {}
        Ok(removed) => tracing::info!(?removed, "stale rows removed"),
        Err(error) => tracing::debug!(error = %chain(&error), "stale rows could not be removed"),
    }
}

/// In the database's units.
#[allow(clippy::cast_possible_truncation, reason = "figures of a machine are far below 2^63")]
pub(crate) fn heartbeat(condition: &Condition, capacity: u32) -> Heartbeat {
    let Resources { memory_available_bytes, idle_cores, .. } = condition.resources;
    let free: u64 = condition.gpus.iter().map(|gpu| gpu.memory_free_bytes).sum();
    let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Heartbeat {
        at_ms: at.as_millis() as i64,
        memory_remaining_kb: (memory_available_bytes / 1024.0) as i64,
        nanocpus_remaining: (idle_cores * 1e9) as i64,
        gpu_vram_remaining_kb: (free / 1024) as i64,
        capacity,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_in_the_databases_units() {
        let gpus = vec![GpuStats { memory_free_bytes: 4096, ..GpuStats::default() }; 2];
        let resources = Resources { memory_available_bytes: 2048.0, idle_cores: 1.5, ..Resources::default() };
        let beat = heartbeat(&Condition { gpus, resources, ..Condition::default() }, 7);
        let figures =
            (beat.memory_remaining_kb, beat.nanocpus_remaining, beat.gpu_vram_remaining_kb, beat.capacity);
        assert_eq!(figures, (2, 1_500_000_000, 8, 7));
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        for _ in 0..1000 {
            let period = jittered(Duration::from_secs(60));
            assert!((54.0..=66.0).contains(&period.as_secs_f64()), "{period:?}");
        }
    }
}
