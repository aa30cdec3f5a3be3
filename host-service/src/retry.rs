//! Pauses between tries: exponential, with jitter, so that a fleet does not knock in step.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// Pauses that grow from a tenth of a second until they are half of `longest` to all of it, without end.
#[derive(Debug)]
pub(crate) struct Pauses {
    longest: Duration,
    next: backon::ExponentialBackoff,
}

impl Pauses {
    /// Starts short.
    pub(crate) fn up_to(longest: Duration) -> Self {
        Self { longest, next: Self::growing(longest) }
    }

    /// Starts short again, after something worked.
    pub(crate) fn reset(&mut self) {
        self.next = Self::growing(self.longest);
    }

    /// Waits for the next pause.
    pub(crate) async fn pause(&mut self) {
        tokio::time::sleep(self.next.next().unwrap_or(self.longest)).await;
    }

    fn growing(longest: Duration) -> backon::ExponentialBackoff {
        ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(100))
            // Jitter adds up to as much again.
            .with_max_delay(longest / 2)
            .with_jitter()
            .without_max_times()
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_a_fleets_are_not_alike() {
        let longest = Duration::from_secs(5);
        let pauses = || Pauses::up_to(longest).next.take(20).collect::<Vec<_>>();
        let (one, other) = (pauses(), pauses());
        assert_ne!(one, other);
        assert!(one[0] <= Duration::from_millis(200), "{one:?}");
        assert!(one.iter().all(|pause| *pause <= longest), "{one:?}");
        assert!(one[10..].iter().all(|pause| *pause >= longest / 2), "{one:?}");
    }
}
