//! What operators can measure, in OpenMetrics text. Counters and histograms are fed by those who act; gauges are
//! read from the host's state when somebody asks.

use std::{sync::atomic::AtomicU64, time::Duration};

use host_core::{
    gpu::{GpuHealth, GpuStats},
    lease::GpuSlots,
    lifecycle::{EndReason, Phase, Stage},
};
use prometheus_client::{
    encoding::{
        EncodeLabelSet,
        text::{encode_eof, encode_registry},
    },
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::{host::Host, telemetry::Dispatch};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStage {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByComponent {
    component: &'static str,
}

/// Upper bounds in seconds: a daemonless start takes a few ms, a pull minutes.
const BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// The metrics that events feed.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    spin_up: Histogram,
    stages: Family<ByStage, Histogram, fn() -> Histogram>,
    failures: Family<ByStage, Counter>,
    ended: Family<ByReason, Counter>,
    up: Family<ByComponent, Gauge>,
    collector_failures: Family<ByComponent, Counter>,
    telemetry: Option<Dispatch>,
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        let mut metrics = Self {
            registry: Registry::with_prefix("host_service"),
            spin_up: histogram(),
            stages: Family::new_with_constructor(histogram),
            failures: Family::default(),
            ended: Family::default(),
            up: Family::default(),
            collector_failures: Family::default(),
            telemetry: None,
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    /// They also tell how many records `telemetry` had to drop.
    pub fn with_telemetry(telemetry: Dispatch) -> Self {
        Self { telemetry: Some(telemetry), ..Self::default() }
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        let seconds = Unit::Seconds;
        r.register_with_unit(
            "spin_up",
            "From an allocated row to an answered client",
            seconds.clone(),
            self.spin_up.clone(),
        );
        r.register_with_unit(
            "spin_up_stage",
            "One stage of a spin-up, failed or not",
            seconds,
            self.stages.clone(),
        );
        r.register("spin_up_failures", "Spin-ups that failed, by stage", self.failures.clone());
        r.register("mandelboxes_ended", "Mandelboxes that ended, by reason", self.ended.clone());
        r.register("up", "1 while the component answers", self.up.clone());
        r.register(
            "collector_failures",
            "Collections of figures that failed",
            self.collector_failures.clone(),
        );
        for &stage in Stage::ALL {
            // Counted from 0, so that the first failure is seen as a change.
            let _ = self.failures.get_or_create(&ByStage { stage: stage.as_str() });
        }
    }

    pub(crate) fn spun_up(&self, took: Duration) {
        self.spin_up.observe(took.as_secs_f64());
    }

    pub(crate) fn stage(&self, stage: Stage, took: Duration) {
        self.stages.get_or_create(&ByStage { stage: stage.as_str() }).observe(took.as_secs_f64());
    }

    pub(crate) fn ended(&self, reason: &EndReason) {
        if let EndReason::SpinUpFailed { stage, .. } = reason {
            // Counted from 0, so that the first failure is seen as a change.
            let _ = self.failures.get_or_create(&ByStage { stage: stage.as_str() }).inc();
        }
        self.ended.get_or_create(&ByReason { reason: reason.name() }).inc();
    }

    pub(crate) fn runtime_up(&self, up: bool) {
        self.up.get_or_create(&ByComponent { component: "runtime" }).set(up.into());
    }

    pub(crate) fn pubsub_up(&self, up: bool) {
        self.up.get_or_create(&ByComponent { component: "pubsub" }).set(up.into());
    }

    pub(crate) fn collector_failed(&self, component: &'static str) {
        self.collector_failures.get_or_create(&ByComponent { component }).inc();
    }

    /// Everything, as OpenMetrics text.
    ///
    /// # Errors
    /// Never in practice: it is written to memory.
    pub fn text(&self, host: &Host) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        let mut gauges = gauges(host);
        if let Some(telemetry) = &self.telemetry {
            let dropped = usize::try_from(telemetry.dropped()).unwrap_or(usize::MAX);
            gauges.one(
                "telemetry_dropped_records",
                "Records that telemetry plugins had no room for, since the start",
                count(dropped),
            );
        }
        encode_registry(&mut text, &gauges.0)?;
        encode_registry(&mut text, &self.registry)?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// Gauges made for one scrape.
struct Gauges(Registry);

type Labels = Vec<(&'static str, String)>;

impl Gauges {
    fn add(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.0.register(name, help, family);
    }

    fn one(&mut self, name: &str, help: &str, value: f64) {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value);
        self.0.register(name, help, gauge);
    }
}

fn gauges(host: &Host) -> Gauges {
    let mut gauges = Gauges(Registry::with_prefix("host_service"));
    let condition = host.condition();
    let resources = condition.resources;
    gauges.one(
        "draining",
        "1 while no new mandelboxes are taken",
        f64::from(u8::from(condition.draining.is_some())),
    );
    gauges.one(
        "waiting_requests",
        "Client requests that wait for their mandelbox",
        count(host.lobby().waiting()),
    );
    gauges.one(
        "pubsub_undelivered",
        "Statuses of mandelboxes that wait until the control plane can be told",
        count(host.undelivered()),
    );
    gauges.one("uptime_seconds", "Since the service was started", host.uptime().as_secs_f64());
    gauges.one(
        "memory_available_bytes",
        "Memory that can be had without swapping",
        resources.memory_available_bytes,
    );
    gauges.one("cpu_idle_cores", "Idle processors", resources.idle_cores);
    gauges.one("load1", "Load average of a minute", resources.load1);
    gauges.one("disk_free_bytes", "Free space under paths.root", resources.disk_free_bytes);
    mandelboxes(host, &mut gauges);
    leases(host, &mut gauges);
    gpus(host, &condition.gpus, &mut gauges);
    gauges
}

fn mandelboxes(host: &Host, gauges: &mut Gauges) {
    let all = host.board().all();
    let phases: Vec<_> = all.iter().map(|mandelbox| mandelbox.state().phase.name()).collect();
    let counts = Phase::NAMES.map(|name| {
        let here = phases.iter().filter(|phase| **phase == name).count();
        (vec![("phase", name.to_owned())], count(here))
    });
    gauges.add("mandelboxes", "Mandelboxes on this host, by phase", counts);
}

fn leases(host: &Host, gauges: &mut Gauges) {
    let pools = host.pools();
    let gpu_slots = pools.gpus.capacity().unwrap_or_default() as usize;
    let pools = [
        ("port", pools.ports.held(), pools.ports.size()),
        ("tty", pools.ttys.held(), pools.ttys.size()),
        ("gpu_slot", pools.gpus.held(), gpu_slots),
    ];
    let labelled = |resource: &str, value| (vec![("resource", resource.to_owned())], count(value));
    gauges.add("leases_held", "Leases held, by resource", pools.map(|(name, held, _)| labelled(name, held)));
    gauges.add(
        "leases_size",
        "Leases there are, by resource",
        pools.map(|(name, _, size)| labelled(name, size)),
    );
}

#[allow(clippy::cast_precision_loss, reason = "bytes of GPU memory are below 2^52")]
fn gpus(host: &Host, stats: &[GpuStats], gauges: &mut Gauges) {
    let slots = host.pools().gpus.slots();
    let healthy = slots.iter().map(|slot| {
        let labels = vec![("uuid", slot.device.uuid.clone()), ("index", slot.device.index.to_string())];
        (labels, f64::from(u8::from(slot.health == GpuHealth::Healthy)))
    });
    gauges.add("gpu_healthy", "1 while the GPU may get new mandelboxes", healthy);
    let uuid = |slot: &GpuSlots| vec![("uuid", slot.device.uuid.clone())];
    let memory = slots.iter().map(|slot| (uuid(slot), slot.device.memory_bytes as f64));
    gauges.add("gpu_memory_bytes", "All memory of the GPU", memory);
    let mandelboxes = slots.iter().map(|slot| (uuid(slot), count(slot.holders.len())));
    gauges.add("gpu_mandelboxes", "Mandelboxes on the GPU", mandelboxes);
    let free = |gpu: &GpuStats| (by_uuid(gpu), gpu.memory_free_bytes as f64);
    gauges.add("gpu_memory_free_bytes", "GPU memory not in use", stats.iter().map(free));
    type Figure = fn(&GpuStats) -> Option<u32>;
    let figures: [(&str, &str, Figure); 5] = [
        ("gpu_utilization_percent", "GPU utilisation", |gpu| gpu.utilization_percent),
        ("gpu_encoder_percent", "Video encoder utilisation", |gpu| gpu.encoder_percent),
        ("gpu_encoder_sessions", "Video encoder sessions", |gpu| gpu.encoder_sessions),
        ("gpu_temperature_celsius", "GPU temperature", |gpu| gpu.temperature_celsius),
        ("gpu_power_milliwatts", "GPU power draw", |gpu| gpu.power_mw),
    ];
    for (name, help, figure) in figures {
        gauges.add(name, help, stats.iter().filter_map(|gpu| Some((by_uuid(gpu), f64::from(figure(gpu)?)))));
    }
}

fn by_uuid(gpu: &GpuStats) -> Labels {
    vec![("uuid", gpu.uuid.clone())]
}

#[allow(clippy::cast_precision_loss, reason = "counts of this host are far below 2^52")]
fn count(number: usize) -> f64 {
    number as f64
}
