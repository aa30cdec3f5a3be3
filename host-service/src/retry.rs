//! Pauses between tries: exponential, with jitter, so that a fleet does not knock in step.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// Pauses that grow from a tenth of a second to `longest`, without end.
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
            .with_max_delay(longest)
            .with_jitter()
            .without_max_times()
            .build()
    }
}
