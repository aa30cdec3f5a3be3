//! Between tries.

use std::time::Duration;

const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// Each pause is at most twice as long as the last one, up to a minute, and anything between half of that and all of
/// it.
#[derive(Debug, Default)]
pub struct Pauses {
    failures: u32,
}

impl Pauses {
    /// The pause after one more failure.
    pub fn next_pause(&mut self) -> Duration {
        let longest = SHORTEST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        longest.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// It worked: the next pause is a short one. Whether there had been a failure.
    pub fn reset(&mut self) -> bool {
        std::mem::take(&mut self.failures) > 0
    }

    /// Whether the last try failed.
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_minute_and_are_never_the_same() {
        let mut pauses = Pauses::default();
        let seen: Vec<_> = (0..40).map(|_| pauses.next_pause()).collect();
        assert!(seen[0] >= SHORTEST / 2 && seen[0] <= SHORTEST, "{seen:?}");
        assert!(seen.iter().all(|pause| *pause <= LONGEST), "{seen:?}");
        assert!(seen[10..].iter().all(|pause| *pause >= LONGEST / 2), "{seen:?}");
        assert!(seen[10..].windows(2).any(|two| two[0] != two[1]), "there is no jitter: {seen:?}");
        assert!(pauses.reset() && !pauses.is_failing() && pauses.next_pause() <= SHORTEST);
    }
}
