//! From the running host to what the admin API says of it.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use host_core::{
    gpu::{GpuHealth, GpuStats},
    lease::{GpuSlots, Pool, Pools},
    lifecycle::{Phase, Timing},
    planner::DrainCause,
    runtime::ContainerPort,
};

use super::views::{
    ConditionView, ContainerView, EndView, GpuView, InstanceView, LeasesView, ListeningView, MandelboxView,
    PluginsView, PortView, ResourcesView, StatusView, TimingView, UsageView,
};
use crate::{
    build_info,
    host::{Condition, Host},
    mandelbox::{Board, Mandelbox},
    resources::Resources,
    service::capacity,
};

/// The whole service at a glance.
pub(crate) fn status(host: &Host) -> StatusView {
    let (settings, facts, condition) = (host.settings(), host.facts(), host.condition());
    StatusView {
        version: build_info::VERSION.to_owned(),
        commit: build_info::COMMIT.to_owned(),
        profile: host.profile().name().to_owned(),
        uptime_seconds: host.uptime().as_secs(),
        instance: InstanceView {
            name: facts.name.to_string(),
            cloud_id: facts.cloud_id.clone(),
            image_id: facts.image_id.clone(),
            region: facts.region.clone(),
            instance_type: facts.instance_type.clone(),
            ip: facts.ip.clone(),
        },
        listening: condition.listening.map(|listening| ListeningView {
            http: listening.http.to_string(),
            metrics: listening.metrics.to_string(),
        }),
        plugins: PluginsView {
            runtime: settings.runtime.plugin.clone(),
            gpu: settings.gpu.plugin.clone(),
            pubsub: settings.pubsub.plugin.clone(),
            telemetry: settings.telemetry.plugins.clone(),
        },
        capacity: capacity(settings, host.pools()),
        mandelboxes: phases(host.board()),
        leases: leases(host.pools()),
        resources: resources(condition.resources),
        gpus: gpus(host.pools(), &condition.gpus),
        condition: view(condition, host.undelivered()),
    }
}

fn view(condition: Condition, undelivered: usize) -> ConditionView {
    ConditionView {
        draining: condition.draining.map(|cause| drain_cause(cause).to_owned()),
        runtime_error: condition.runtime_error,
        pubsub_error: condition.pubsub_error,
        undelivered,
    }
}

/// A stable name of who ordered a drain.
pub(crate) fn drain_cause(cause: DrainCause) -> &'static str {
    match cause {
        DrainCause::ControlPlane => "control_plane",
        DrainCause::GivenUp => "given_up",
        DrainCause::Unregistered => "unregistered",
        DrainCause::Signal => "signal",
        DrainCause::Operator => "operator",
        DrainCause::Interruption => "interruption",
        DrainCause::Failure => "failure",
    }
}

fn phases(board: &Board) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for mandelbox in board.all() {
        let name = mandelbox.state().phase.name();
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    counts
}

fn leases(pools: &Pools) -> LeasesView {
    let usage = |pool: &Pool| UsageView { held: pool.held(), size: pool.size() };
    let held_slots = || pools.gpus.slots().iter().map(|slots| slots.holders.len()).sum();
    LeasesView {
        ports: usage(&pools.ports),
        ttys: usage(&pools.ttys),
        gpu_slots: pools.gpus.capacity().map(|size| UsageView { held: held_slots(), size: size as usize }),
    }
}

fn resources(resources: Resources) -> ResourcesView {
    ResourcesView {
        memory_available_bytes: whole(resources.memory_available_bytes),
        idle_nanocpus: whole(resources.idle_cores * 1e9),
        load_1m: resources.load1,
        disk_free_bytes: whole(resources.disk_free_bytes),
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "a cast from a float saturates, and no machine has 2^64 bytes"
)]
fn whole(figure: f64) -> u64 {
    figure as u64
}

fn gpus(pools: &Pools, stats: &[GpuStats]) -> Vec<GpuView> {
    let view = |slots: GpuSlots| {
        let stats = stats.iter().find(|stats| stats.uuid == slots.device.uuid);
        GpuView {
            index: slots.device.index,
            name: slots.device.name,
            memory_bytes: slots.device.memory_bytes,
            memory_free_bytes: stats.map(|stats| stats.memory_free_bytes),
            utilization_percent: stats.and_then(|stats| stats.utilization_percent),
            encoder_percent: stats.and_then(|stats| stats.encoder_percent),
            encoder_sessions: stats.and_then(|stats| stats.encoder_sessions),
            temperature_celsius: stats.and_then(|stats| stats.temperature_celsius),
            power_mw: stats.and_then(|stats| stats.power_mw),
            unhealthy: match slots.health {
                GpuHealth::Healthy => None,
                GpuHealth::Unhealthy(reason) => Some(reason),
            },
            mandelboxes: slots.holders,
            uuid: slots.device.uuid,
        }
    };
    pools.gpus.slots().into_iter().map(view).collect()
}

/// One mandelbox.
pub(crate) fn mandelbox(mandelbox: &Mandelbox) -> MandelboxView {
    let state = mandelbox.state();
    MandelboxView {
        id: mandelbox.row.id.clone(),
        app: mandelbox.app.clone(),
        user: mandelbox.row.user.clone(),
        session: mandelbox.row.session.clone(),
        phase: state.phase.name().to_owned(),
        phase_since_unix_ms: unix_ms(state.since),
        created_unix_ms: unix_ms(mandelbox.created),
        end: end(&state.phase),
        container: ContainerView {
            name: mandelbox.container.to_string(),
            id: state.container.map(|id| id.0),
        },
        ports: ports(&state.ports),
        tty: state.tty,
        gpu: state.gpu.map(|device| device.uuid),
        timings: state.timings.iter().map(timing).collect(),
    }
}

/// Why it ends, if it does.
pub(crate) fn end(phase: &Phase) -> Option<EndView> {
    match phase {
        Phase::Ending(reason) | Phase::Gone(reason) => Some(reason.into()),
        _ => None,
    }
}

/// Published ports.
pub(crate) fn ports(ports: &[(ContainerPort, u16)]) -> Vec<PortView> {
    let view =
        |(container, host): &(ContainerPort, u16)| PortView { container: container.to_string(), host: *host };
    ports.iter().map(view).collect()
}

fn timing((stage, took): &Timing) -> TimingView {
    TimingView { stage: *stage, micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX) }
}

/// A clock before 1970 is 0.
fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
