//! Figures that move as those of a streaming host do: a few encoder sessions come and go, and load, memory, heat and
//! power follow them. A pure function of seed and time.

use std::time::Duration;

use host_core::gpu::GpuStats;

/// 0 to 1000.
type Permille = u32;

/// What one device shows `at` this time after it came up.
pub(crate) fn figures(uuid: &str, memory_bytes: u64, seed: u64, at: Duration) -> GpuStats {
    let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
    let wave = |figure, period_s: u64| noise(seed ^ figure, at_ms, period_s * 1000);
    let sessions = wave(1, 60) * 4 / 1001;
    let load: Permille = sessions * 250 + wave(2, 10) / 4;
    let encoder: Permille = sessions * 200 + sessions.min(1) * wave(3, 5) / 5;
    let used: Permille = 20 + sessions * 200 + wave(4, 30) / 10;
    GpuStats {
        uuid: uuid.to_owned(),
        memory_free_bytes: memory_bytes - memory_bytes / 1000 * u64::from(used),
        utilization_percent: Some(load / 10),
        encoder_percent: Some(encoder / 10),
        encoder_sessions: Some(sessions),
        temperature_celsius: Some(34 + load / 22),
        power_mw: Some(15_000 + load * 200),
    }
}

/// Random values one period apart, joined by straight lines.
fn noise(seed: u64, at_ms: u64, period_ms: u64) -> Permille {
    let (step, into) = (at_ms / period_ms, at_ms % period_ms);
    let value = |step: u64| hash(seed ^ step.rotate_left(32)) % 1001;
    let value = (value(step) * (period_ms - into) + value(step + 1) * into) / period_ms;
    Permille::try_from(value).unwrap_or(1000)
}

/// The finalizer of SplitMix64: every bit of the result depends on every bit of `x`.
fn hash(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A seed of its own for every device.
pub(crate) fn device_seed(seed: u64, slot: usize) -> u64 {
    hash(hash(seed) ^ slot as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seed: u64, seconds: u64) -> GpuStats {
        figures("GPU-sim", 24 << 30, device_seed(seed, 0), Duration::from_secs(seconds))
    }

    proptest! {
        #[test]
        fn figures_are_possible_at_any_time(seed: u64, slot in 0usize..64, memory_bytes in 1u64.., seconds in 0u64..1 << 40) {
            let stats = figures("GPU-sim", memory_bytes, device_seed(seed, slot), Duration::from_secs(seconds));
            prop_assert!(stats.memory_free_bytes <= memory_bytes);
            prop_assert!(stats.utilization_percent <= Some(100));
            prop_assert!(stats.encoder_percent <= Some(100));
            prop_assert!(stats.encoder_sessions <= Some(3));
            prop_assert!((Some(30)..Some(90)).contains(&stats.temperature_celsius));
            prop_assert!((Some(10_000)..Some(250_000)).contains(&stats.power_mw));
        }

        #[test]
        fn no_figure_jumps(seed: u64, seconds in 0u64..1 << 40) {
            let (now, later) = (at(seed, seconds), at(seed, seconds + 1));
            if now.encoder_sessions == later.encoder_sessions {
                let load = |stats: &GpuStats| stats.utilization_percent.unwrap_or(0);
                prop_assert!(load(&now).abs_diff(load(&later)) <= 4);
            }
        }
    }

    #[test]
    fn figures_follow_seed_and_time_alone() {
        assert_eq!(at(7, 100), at(7, 100));
        assert!((0..60).any(|seconds| at(7, seconds) != at(8, seconds)));
        assert!((0..60).any(|seconds| at(7, seconds) != at(7, seconds + 1)));
        let sessions: std::collections::BTreeSet<_> = (0..3600).map(|s| at(7, s).encoder_sessions).collect();
        assert_eq!(sessions.len(), 4, "an hour shows 0 to 3 sessions");
    }
}
