//! `status`

use std::time::Duration;

use indicatif::HumanBytes;

use super::{
    failure::Failure,
    output::{Fields, GREEN, Out, RED, YELLOW},
};
use crate::{
    admin::views::{ConditionView, GpuView, InstanceView, PluginsView, ResourcesView, StatusView, UsageView},
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
        let header =
            ["GPU", "NAME", "MEMORY FREE", "USE", "ENCODER", "HEAT", "POWER", "MANDELBOXES", "HEALTH"];
        out.table(&header, status.gpus.iter().map(gpu).collect())?;
    }
    Ok(())
}

fn fields(status: &StatusView) -> Fields {
    let InstanceView { name, ip, region, instance_type, .. } = &status.instance;
    let listening = status.listening.as_ref();
    let total: usize = status.mandelboxes.values().sum();
    let uptime = Duration::from_secs(status.uptime_seconds);
    Fields::default()
        .with("instance", format_args!("{name} at {ip} ({region}, {instance_type})"))
        .with("state", state(&status.condition))
        .with("profile", &status.profile)
        .with("plugins", plugins(&status.plugins))
        .with("version", format_args!("{} ({})", status.version, short(&status.commit)))
        .with("uptime", humantime::format_duration(uptime))
        .maybe("clients", listening.map(|listening| format!("https://{}", listening.http)))
        .maybe("metrics", listening.map(|listening| format!("http://{}/metrics", listening.metrics)))
        .with("mandelboxes", format_args!("{total} of {}{}", status.capacity, phases(status)))
        .with("leases", leases(status))
        .with("left", left(&status.resources))
}

fn left(resources: &ResourcesView) -> String {
    let memory = HumanBytes(resources.memory_available_bytes);
    let disk = HumanBytes(resources.disk_free_bytes);
    let (idle, load) = (billionths(resources.idle_nanocpus), resources.load_1m);
    format!("memory {memory}, disk {disk}, {idle:.1} CPUs idle, load {load:.2}")
}

fn plugins(plugins: &PluginsView) -> String {
    let PluginsView { runtime, gpu, pubsub, telemetry } = plugins;
    format!("runtime {runtime}, gpu {gpu}, pubsub {pubsub}, telemetry {}", list(telemetry))
}

fn state(condition: &ConditionView) -> String {
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
    if condition.undelivered > 0 {
        troubles.push(format!("{YELLOW}undelivered statuses{YELLOW:#}: {}", condition.undelivered));
    }
    if troubles.is_empty() { format!("{GREEN}ready{GREEN:#}") } else { troubles.join("; ") }
}

fn phases(status: &StatusView) -> String {
    let phases: Vec<_> = status.mandelboxes.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
    if phases.is_empty() { String::new() } else { format!(" ({})", phases.join(", ")) }
}

fn leases(status: &StatusView) -> String {
    let usage = |what: &str, usage: UsageView| format!("{} of {} {what}", usage.held, usage.size);
    let leases = status.leases;
    let gpus = leases.gpu_slots.map(|slots| usage("GPU slots", slots));
    let all = [Some(usage("ports", leases.ports)), Some(usage("TTYs", leases.ttys)), gpus];
    all.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn gpu(gpu: &GpuView) -> Vec<String> {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let free = gpu.memory_free_bytes.map(|bytes| HumanBytes(bytes).to_string());
    vec![
        gpu.index.to_string(),
        gpu.name.clone(),
        format!("{} of {}", or_dash(free), HumanBytes(gpu.memory_bytes)),
        or_dash(gpu.utilization_percent.map(|percent| format!("{percent} %"))),
        or_dash(encoder(gpu)),
        or_dash(gpu.temperature_celsius.map(|celsius| format!("{celsius} °C"))),
        or_dash(gpu.power_mw.map(|milliwatts| format!("{} W", milliwatts.div_ceil(1000)))),
        gpu.mandelboxes.len().to_string(),
        gpu.unhealthy.clone().unwrap_or_else(|| "healthy".to_owned()),
    ]
}

/// `20 % (2)`, the number of sessions in brackets.
fn encoder(gpu: &GpuView) -> Option<String> {
    let sessions = gpu.encoder_sessions.map(|sessions| format!(" ({sessions})")).unwrap_or_default();
    Some(format!("{} %{sessions}", gpu.encoder_percent?))
}

/// `a, b`, or `none`.
pub(crate) fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Enough of a hash to find it.
fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

#[allow(clippy::cast_precision_loss, reason = "one digit after the point is shown")]
fn billionths(count: u64) -> f64 {
    count as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_not_well_is_told() {
        assert!(state(&ConditionView::default()).contains("ready"));
        let condition = ConditionView {
            draining: Some("signal".into()),
            pubsub_error: Some("refused".into()),
            undelivered: 2,
            ..ConditionView::default()
        };
        let told = anstream::adapter::strip_str(&state(&condition)).to_string();
        assert_eq!(told, "draining, ordered by signal; control plane down: refused; undelivered statuses: 2");
    }

    #[test]
    fn a_short_commit_stays_as_it_is() {
        assert_eq!(short("unknown"), "unknown");
        assert_eq!(short("0123456789abcdef"), "0123456789ab");
    }
}
