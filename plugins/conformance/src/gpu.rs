//! What every `Gpu` must do.
//!
//! [`behaviours()`] needs nothing but the trait and changes nothing, so it runs over real devices as well.
//! [`fault_behaviours`] needs a [`Bench`] on which devices and their driver can be broken, and at least two devices.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use async_trait::async_trait;
use futures::FutureExt;
use host_core::gpu::{Gpu, GpuDevice, GpuHealth, GpuStats};

use crate::{
    behaviours, ensure,
    report::{Behaviour, Unmet, Verdict},
};

const DEADLINE: Duration = Duration::from_secs(20);

/// What a mandelbox without any NVIDIA device finds in `NVIDIA_VISIBLE_DEVICES`.
const NO_DEVICE: [&str; 2] = ["void", "none"];

/// A `Gpu` whose devices can be broken. What is done here is seen by every call that begins afterwards, and undone
/// by [`Bench::mend`].
#[async_trait]
pub trait Bench: Send + Sync {
    /// The plugin under test, with at least two devices.
    fn gpu(&self) -> &dyn Gpu;

    /// The device reports a fault, such as an XID error, and still answers.
    async fn sicken(&self, uuid: &str);

    /// The device falls off the bus.
    async fn lose(&self, uuid: &str);

    /// Calls into the driver do not return.
    async fn hang(&self);

    /// Everything works again, also calls that hung.
    async fn mend(&self);
}

/// Those of the trait alone.
pub fn behaviours() -> Vec<Behaviour<dyn Gpu>> {
    behaviours![dyn Gpu, DEADLINE;
        enumeration_is_stable,
        devices_can_be_told_apart,
        a_device_says_what_it_is,
        an_attachment_gives_one_device_and_no_other,
        stats_are_of_known_devices_and_possible,
        every_healthy_device_has_stats,
        health_covers_every_device_once,
        concurrent_calls_agree,
        a_dropped_call_does_no_harm,
    ]
}

/// Those that need devices to break.
pub fn fault_behaviours() -> Vec<Behaviour<dyn Bench>> {
    behaviours![dyn Bench, DEADLINE;
        a_sick_device_is_unhealthy_and_still_enumerated,
        a_lost_device_is_unhealthy_and_has_no_stats,
        the_others_keep_their_identity_when_one_is_lost,
        recovery_is_noticed,
        a_hung_call_can_be_dropped_and_works_later,
    ]
}

async fn enumeration_is_stable(gpu: &dyn Gpu) -> Verdict {
    let (first, second) = (gpu.enumerate().await?, gpu.enumerate().await?);
    ensure!(first == second, "{first:?} became {second:?}");
    Ok(())
}

async fn devices_can_be_told_apart(gpu: &dyn Gpu) -> Verdict {
    let devices = gpu.enumerate().await?;
    let uuids: HashSet<_> = devices.iter().map(|device| &device.uuid).collect();
    let indexes: HashSet<_> = devices.iter().map(|device| device.index).collect();
    ensure!(uuids.len() == devices.len(), "a UUID is given twice: {devices:?}");
    ensure!(indexes.len() == devices.len(), "an index is given twice: {devices:?}");
    Ok(())
}

async fn a_device_says_what_it_is(gpu: &dyn Gpu) -> Verdict {
    for device in at_least(1, gpu.enumerate().await?)? {
        let plain = |text: &str| !text.is_empty() && !text.contains(|c: char| c.is_control() || c == ',');
        ensure!(plain(&device.uuid), "{:?} is no UUID to pass on in a list", device.uuid);
        ensure!(plain(&device.name), "{:?} is no name", device.name);
        ensure!(device.memory_bytes > 0, "{} has no memory", device.uuid);
    }
    Ok(())
}

async fn an_attachment_gives_one_device_and_no_other(gpu: &dyn Gpu) -> Verdict {
    let mut seen = HashSet::new();
    for device in at_least(1, gpu.enumerate().await?)? {
        let Some(visible) = device.attachment.env.get("NVIDIA_VISIBLE_DEVICES") else {
            return Err(Unmet::Broken(format!(
                "{} leaves NVIDIA_VISIBLE_DEVICES to the image, which may say all",
                device.uuid
            )));
        };
        let own = *visible == device.uuid || NO_DEVICE.contains(&visible.as_str());
        ensure!(own, "{} makes {visible:?} visible", device.uuid);
        for request in &device.attachment.requests {
            ensure!(request.ids == [device.uuid.clone()], "{} requests {:?}", device.uuid, request.ids);
        }
        ensure!(seen.insert(identity(&device)), "{device:?} is given as another one is");
    }
    Ok(())
}

/// Everything in an attachment that names a device.
fn identity(device: &GpuDevice) -> String {
    let attachment = &device.attachment;
    format!("{:?} {:?} {:?} {:?}", attachment.cdi, attachment.requests, attachment.devices, attachment.env)
}

async fn stats_are_of_known_devices_and_possible(gpu: &dyn Gpu) -> Verdict {
    let memory: BTreeMap<_, _> = by_uuid(gpu).await?;
    let mut seen = HashSet::new();
    for stats in gpu.stats().await? {
        let Some(memory_bytes) = memory.get(&stats.uuid) else {
            return Err(Unmet::Broken(format!("{} is not enumerated", stats.uuid)));
        };
        ensure!(stats.memory_free_bytes <= *memory_bytes, "more memory is free than there is: {stats:?}");
        ensure!(percentages(&stats).all(|percent| percent <= 100), "over 100 %: {stats:?}");
        ensure!(stats.temperature_celsius < Some(200), "too hot to be true: {stats:?}");
        ensure!(seen.insert(stats.uuid.clone()), "{} comes twice", stats.uuid);
    }
    Ok(())
}

fn percentages(stats: &GpuStats) -> impl Iterator<Item = u32> {
    [stats.utilization_percent, stats.encoder_percent].into_iter().flatten()
}

async fn every_healthy_device_has_stats(gpu: &dyn Gpu) -> Verdict {
    let counted: BTreeSet<_> = gpu.stats().await?.into_iter().map(|stats| stats.uuid).collect();
    for (uuid, health) in gpu.health().await? {
        let counts = health != GpuHealth::Healthy || counted.contains(&uuid);
        ensure!(counts, "{uuid} is healthy and has no stats");
    }
    Ok(())
}

async fn health_covers_every_device_once(gpu: &dyn Gpu) -> Verdict {
    let health = gpu.health().await?;
    let known: BTreeSet<_> = health.iter().map(|(uuid, _)| uuid.clone()).collect();
    ensure!(known.len() == health.len(), "a device comes twice: {health:?}");
    for device in gpu.enumerate().await? {
        ensure!(known.contains(&device.uuid), "{} has no health", device.uuid);
    }
    let silent = GpuHealth::Unhealthy(String::new());
    ensure!(!health.iter().any(|(_, health)| *health == silent), "unhealthy without a reason: {health:?}");
    Ok(())
}

async fn concurrent_calls_agree(gpu: &dyn Gpu) -> Verdict {
    let all = futures::future::try_join_all((0..20).map(|_| gpu.enumerate())).await?;
    ensure!(all.windows(2).all(|pair| pair[0] == pair[1]), "answers differ: {all:?}");
    Ok(())
}

async fn a_dropped_call_does_no_harm(gpu: &dyn Gpu) -> Verdict {
    let before = gpu.enumerate().await?;
    for _ in 0..20 {
        // One poll starts it; then it is dropped, finished or not.
        drop(gpu.stats().now_or_never());
        drop(gpu.enumerate().now_or_never());
    }
    ensure!(gpu.enumerate().await? == before, "the devices changed");
    Ok(())
}

async fn a_sick_device_is_unhealthy_and_still_enumerated(bench: &dyn Bench) -> Verdict {
    let [sick, other, ..] = two(bench.gpu()).await?;
    bench.sicken(&sick).await;
    let seen = (health_of(bench.gpu(), &sick).await, health_of(bench.gpu(), &other).await);
    let enumerated = by_uuid(bench.gpu()).await;
    bench.mend().await;
    let (sick_health, other_health) = (seen.0?, seen.1?);
    ensure!(matches!(sick_health, Some(GpuHealth::Unhealthy(_))), "the sick one is {sick_health:?}");
    ensure!(other_health == Some(GpuHealth::Healthy), "the other one is {other_health:?}");
    ensure!(enumerated?.contains_key(&sick), "the sick one is not enumerated");
    Ok(())
}

async fn a_lost_device_is_unhealthy_and_has_no_stats(bench: &dyn Bench) -> Verdict {
    let [lost, other, ..] = two(bench.gpu()).await?;
    bench.lose(&lost).await;
    let health = health_of(bench.gpu(), &lost).await;
    let stats = bench.gpu().stats().await;
    bench.mend().await;
    let (health, stats) = (health?, stats?);
    ensure!(matches!(health, Some(GpuHealth::Unhealthy(_))), "the lost one is {health:?}");
    ensure!(!stats.iter().any(|stats| stats.uuid == lost), "the lost one has stats");
    ensure!(stats.iter().any(|stats| stats.uuid == other), "the other one has none");
    Ok(())
}

async fn the_others_keep_their_identity_when_one_is_lost(bench: &dyn Bench) -> Verdict {
    let before = bench.gpu().enumerate().await?;
    let [lost, ..] = two(bench.gpu()).await?;
    bench.lose(&lost).await;
    let after = bench.gpu().enumerate().await;
    bench.mend().await;
    let unindexed = |device: &GpuDevice| GpuDevice { index: 0, ..device.clone() };
    let others = |devices: Vec<GpuDevice>| -> Vec<_> {
        devices.iter().filter(|device| device.uuid != lost).map(unindexed).collect()
    };
    let (before, after) = (others(before), others(after?));
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(())
}

async fn recovery_is_noticed(bench: &dyn Bench) -> Verdict {
    let before = bench.gpu().enumerate().await?;
    let [sick, lost, ..] = two(bench.gpu()).await?;
    bench.sicken(&sick).await;
    bench.lose(&lost).await;
    bench.mend().await;
    let health = bench.gpu().health().await?;
    ensure!(
        health.iter().all(|(_, health)| *health == GpuHealth::Healthy),
        "not all are healthy: {health:?}"
    );
    let after = bench.gpu().enumerate().await?;
    ensure!(before == after, "{before:?} came back as {after:?}");
    Ok(())
}

async fn a_hung_call_can_be_dropped_and_works_later(bench: &dyn Bench) -> Verdict {
    bench.hang().await;
    let patience = Duration::from_millis(200);
    let mut waiting = bench.gpu().enumerate();
    let hung = tokio::time::timeout(patience, &mut waiting).await.is_err();
    let dropped = tokio::time::timeout(patience, bench.gpu().stats()).await.is_err();
    bench.mend().await;
    ensure!(hung && dropped, "the bench did not make calls hang");
    waiting.await?;
    bench.gpu().stats().await?;
    Ok(())
}

async fn by_uuid(gpu: &dyn Gpu) -> Result<BTreeMap<String, u64>, Unmet> {
    let devices = gpu.enumerate().await?;
    Ok(devices.into_iter().map(|device| (device.uuid, device.memory_bytes)).collect())
}

async fn health_of(gpu: &dyn Gpu, uuid: &str) -> Result<Option<GpuHealth>, Unmet> {
    let health = gpu.health().await?;
    Ok(health.into_iter().find(|(of, _)| of == uuid).map(|(_, health)| health))
}

async fn two(gpu: &dyn Gpu) -> Result<[String; 2], Unmet> {
    let devices = at_least(2, gpu.enumerate().await?)?;
    Ok([devices[0].uuid.clone(), devices[1].uuid.clone()])
}

fn at_least(count: usize, devices: Vec<GpuDevice>) -> Result<Vec<GpuDevice>, Unmet> {
    if devices.len() < count {
        return Err(Unmet::Lacking(format!("{count} devices; there are {}", devices.len())));
    }
    Ok(devices)
}
