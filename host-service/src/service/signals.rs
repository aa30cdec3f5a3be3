//! From signals to drains.

use std::time::Duration;

use host_core::planner::DrainCause;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::host::{DrainOrder, Host};

/// The process's signals: each wakes [`Signals::next`] once.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// The first signal drains, the second hurries, the third kills.
pub(super) async fn obey(mut signals: Signals, host: Host, killed: CancellationToken) {
    signals.next().await;
    host.drain(DrainOrder { cause: DrainCause::Signal, deadline: None, force: false });
    signals.next().await;
    tracing::warn!("a second signal: ending every session now; a third one kills the service");
    host.drain(DrainOrder { cause: DrainCause::Signal, deadline: Some(Duration::ZERO), force: true });
    signals.next().await;
    killed.cancel();
}
