//! Waiting on conditions, with deadlines.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

const PAUSE: Duration = Duration::from_millis(10);

/// Asks again and again until the answer is `Some`; fails when `deadline` has passed, and then says `what` was
/// waited for. One question may outlast the deadline, so each needs its own.
pub async fn until<T>(what: &str, deadline: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        ensure!(start.elapsed() < deadline, "no {what} within {deadline:?}");
        tokio::time::sleep(PAUSE).await;
    }
}
