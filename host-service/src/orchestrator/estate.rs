//! What a mandelbox holds on this host.

use std::{io, sync::Arc};

use host_core::lease::LeaseSet;
use tokio::sync::Mutex;

use super::blocking;
use crate::{files::Files, lobby::Seat};

/// What a mandelbox has in hand. It lives outside of the spin-up, so that nothing is given back when the spin-up
/// fails, is cancelled or panics: only [`take_down`](super::take_down) gives back, and only after the container is gone.
#[derive(Debug, Default)]
pub(super) struct Estate {
    pub leases: Option<LeaseSet>,
    pub disk: Disk,
    pub seat: Option<Seat>,
    /// The row is this host's: it was claimed.
    pub claimed: bool,
    /// The engine was asked for a container; there may be one.
    pub engine_asked: bool,
}

/// What a mandelbox has on disk. Work on it goes on when its future is dropped, so all of it goes through one lock:
/// whoever removes waits for whoever still makes.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk(Arc<Mutex<Made>>);

/// Noted by the work itself, on the thread that does it.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub record: bool,
    pub files: Option<Files>,
}

impl Disk {
    /// Does work after all earlier work.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Made) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let mut made = self.0.clone().lock_owned().await;
        blocking(move || work(&mut made)).await
    }
}
