//! `status`

use std::time::Duration;

use super::{
    failure::Failure,
    output::{GREEN, Out, RED, YELLOW},
};
use crate::{
    admin::views::{GpuView, ListeningView, PluginsView, StatusView, UsageView},
    client::Client,
};

pub(crate) async fn status(client: &Client, json: bool, out: &mut Out) -> Result<(), Failure> {
    let status = client.status().await?;
    if json {
        return Ok(out.json(&status)?);
    }
    out.fields(&fields(&status))?;
    if !status.gpus.is_empty() {
        out.line(format_args!(""))?;
        let header = ["GPU", "NAME", "MEMORY FREE", "USE", "MANDELBOXES", "HEALTH"];
        out.table(&header, status.gpus.iter().map(gpu).collect())?;
    }
    Ok(())
}

fn fields(status: &StatusView) -> Vec<(&'static str, String)> {
    let (instance, left) = (&status.instance, &status.resources);
    let (place, machine) = (&instance.region, &instance.instance_type);
    let total: usize = status.mandelboxes.values().sum();
    let uptime = Duration::from_secs(status.uptime_seconds);
    let (memory, disk) = (bytes(left.memory_available_bytes), bytes(left.disk_free_bytes));
    let idle = nanos(left.idle_nanocpus);
    let mut fields = vec![
        (
            "instance",
            format!("{} at {} ({place}, {machine})", instance.name, instance.ip),
        ),
        ("state", state(status)),
        ("profile", status.profile.clone()),
        ("plugins", plugins(&status.plugins)),
        (
            "version",
            format!("{} ({})", status.version, short(&status.commit)),
        ),
        ("uptime", humantime::format_duration(uptime).to_string()),
    ];
    if let Some(listening) = &status.listening {
        let ListeningView { http, metrics } = listening;
        fields.push(("listening", format!("clients {http}, metrics {metrics}")));
    }
    fields.extend([
        (
            "mandelboxes",
            format!("{total} of {}{}", status.capacity, phases(status)),
        ),
        ("leases", leases(status)),
        (
            "left",
            format!(
                "memory {memory}, disk {disk}, {idle:.1} CPUs idle, load {:.2}",
                left.load_1m
            ),
        ),
    ]);
    fields
}

fn plugins(plugins: &PluginsView) -> String {
    let PluginsView {
        runtime,
        gpu,
        pubsub,
        telemetry,
    } = plugins;
    format!(
        "runtime {runtime}, gpu {gpu}, pubsub {pubsub}, telemetry {}",
        list(telemetry)
    )
}

fn state(status: &StatusView) -> String {
    let condition = &status.condition;
    let mut troubles = Vec::new();
    if let Some(cause) = &condition.draining {
        troubles.push(format!("{YELLOW}draining{YELLOW:#}, ordered by {cause}"));
    }
    if let Some(error) = &condition.runtime_error {
        troubles.push(format!("{RED}engine down{RED:#}: {error}"));
    }
    if let Some(error) = &condition.pubsub_error {
        troubles.push(format!("{RED}control plane down{RED:#}: {error}"));
    }
    if troubles.is_empty() {
        format!("{GREEN}ready{GREEN:#}")
    } else {
        troubles.join("; ")
    }
}

fn phases(status: &StatusView) -> String {
    let phases: Vec<_> = status
        .mandelboxes
        .iter()
        .map(|(phase, count)| format!("{count} {phase}"))
        .collect();
    if phases.is_empty() {
        String::new()
    } else {
        format!(" ({})", phases.join(", "))
    }
}

fn leases(status: &StatusView) -> String {
    let usage = |what: &str, usage: UsageView| format!("{} of {} {what}", usage.held, usage.size);
    let leases = status.leases;
    let gpus = leases.gpu_slots.map(|slots| usage("GPU slots", slots));
    let all = [
        Some(usage("ports", leases.ports)),
        Some(usage("TTYs", leases.ttys)),
        gpus,
    ];
    all.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn gpu(gpu: &GpuView) -> Vec<String> {
    vec![
        gpu.index.to_string(),
        gpu.name.clone(),
        gpu.memory_free_bytes.map_or_else(String::new, bytes) + " of " + &bytes(gpu.memory_bytes),
        gpu.utilization_percent
            .map_or_else(|| "-".to_owned(), |percent| format!("{percent} %")),
        gpu.mandelboxes.len().to_string(),
        gpu.unhealthy.clone().unwrap_or_else(|| "healthy".to_owned()),
    ]
}

/// `a, b`, or `none`.
pub(crate) fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// Enough of a hash to find it.
fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

#[allow(clippy::cast_precision_loss, reason = "one digit after the point is shown")]
fn nanos(count: u64) -> f64 {
    count as f64 / 1e9
}

/// `3.2 GiB`
#[allow(clippy::cast_precision_loss, reason = "one digit after the point is shown")]
pub(crate) fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut size = count as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (15_846_100_000, "14.8 GiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn a_short_commit_stays_as_it_is() {
        assert_eq!(short("unknown"), "unknown");
        assert_eq!(short("0123456789abcdef"), "0123456789ab");
    }
}
