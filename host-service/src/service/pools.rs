//! What there is to lease.

use host_config::Settings;
use host_core::lease::Pools;

/// The service's own ports are never leased, and the search begins anywhere, so that a restarted service does not
/// begin with ports its predecessor's clients still know.
pub(super) fn pools(settings: &Settings) -> Pools {
    let own = [settings.http.listen.port(), settings.metrics.listen.port()];
    let mut ports: Vec<u16> =
        settings.mandelbox.port_range.numbers().filter(|port| !own.contains(port)).collect();
    let begin = rand::random_range(0..ports.len().max(1));
    ports.rotate_left(begin);
    warn_of_ephemeral_ports(settings);
    let now = || tokio::time::Instant::now().into_std();
    let mandelbox = &settings.mandelbox;
    let pools = Pools::new(
        ports,
        mandelbox.port_quarantine,
        mandelbox.tty_range.numbers(),
        settings.gpu.slots_per_gpu,
        now,
    )
    .placed(settings.gpu.placement, settings.gpu.memory_floor_bytes);
    match mandelbox.capacity.map(u16::try_from) {
        Some(Ok(capacity)) => pools.limited_to(capacity, now),
        // More than there are ports or none given: no limit of its own.
        Some(Err(_)) | None => pools,
    }
}

fn warn_of_ephemeral_ports(settings: &Settings) {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = range.split_whitespace().filter_map(|bound| bound.parse::<u16>().ok());
    let (Some(low), Some(high)) = (bounds.next(), bounds.next()) else { return };
    let ours = settings.mandelbox.port_range;
    if ours.start <= high && low <= ours.end {
        tracing::warn!(%ours, low, high, "mandelbox.port_range overlaps the ports that the kernel gives to clients");
    }
}

/// How many mandelboxes fit as things are, by whatever is scarcest.
pub(crate) fn capacity(settings: &Settings, pools: &Pools) -> u32 {
    let per_mandelbox = settings.mandelbox.ports.len().max(1);
    let fits = pools.ttys.size().min(pools.ports.size() / per_mandelbox);
    let fits = u32::try_from(fits).unwrap_or(u32::MAX);
    [settings.mandelbox.capacity, pools.gpus.capacity()].into_iter().flatten().fold(fits, u32::min)
}
