//! The owner task of one mandelbox: from its row to the last trace of it.

use std::{convert::Infallible, io, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use host_core::{
    MandelboxId,
    lease::LeaseSet,
    lifecycle::{EndReason, Phase, Stage},
    pubsub::{MandelboxRow, MandelboxStatus},
};
use tokio::sync::Mutex;

use super::{Shared, blocking, spin_up::spin_up, take_down::take_down};
use crate::{
    files::Files,
    lobby::Seat,
    mandelbox::{EndOrder, Mandelbox},
};

/// What a mandelbox has in hand. It lives outside of the spin-up, so that nothing is given back when the spin-up
/// fails, is cancelled or panics: only [`take_down`] gives back, and only after the container is gone.
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

/// Spins it up, keeps it, takes it down.
pub(super) async fn own(shared: Arc<Shared>, mandelbox: Arc<Mandelbox>) -> Ended {
    let mut estate = Estate::default();
    let life = AssertUnwindSafe(live(&shared, &mandelbox, &mut estate)).catch_unwind().await;
    mandelbox.end(EndOrder { reason: life.unwrap_or(EndReason::Panicked), grace: None });
    while AssertUnwindSafe(take_down(&shared, &mandelbox, &mut estate)).catch_unwind().await.is_err() {
        tracing::error!("taking a mandelbox down panicked; trying again");
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = shared.hurry.cancelled() => {
                // Not to be handed out while something may still use them.
                std::mem::forget(estate.leases.take());
                break;
            }
        }
    }
    Ended { id: mandelbox.id().clone(), spent: spent(&mandelbox, estate.claimed) }
}

/// How an owner ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub id: MandelboxId,
    /// Its row, when that is not to be planned again.
    pub spent: Option<MandelboxRow>,
}

/// What is no longer to be planned: nothing where the row could not even be asked for, and all of it where it was ours.
fn spent(mandelbox: &Mandelbox, claimed: bool) -> Option<MandelboxRow> {
    let unasked =
        matches!(mandelbox.state().phase, Phase::Gone(EndReason::SpinUpFailed { stage: Stage::Claim, .. }));
    let status = if claimed { MandelboxStatus::Dying } else { mandelbox.row.status };
    (!unasked).then(|| MandelboxRow { status, ..mandelbox.row.clone() })
}

/// Until its end is ordered or its spin-up fails.
async fn live(shared: &Shared, mandelbox: &Mandelbox, estate: &mut Estate) -> EndReason {
    let life = async {
        let never: Infallible = match spin_up(shared, mandelbox, estate).await {
            Ok(()) => std::future::pending().await,
            Err(reason) => return reason,
        };
        match never {}
    };
    tokio::select! {
        biased;
        order = mandelbox.end_ordered() => order.reason,
        reason = life => reason,
    }
}
