//! The owner task of one mandelbox: from its row to the last trace of it.

use std::{convert::Infallible, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use host_core::{
    lease::LeaseSet,
    lifecycle::{EndReason, Phase, Stage},
    pubsub::{MandelboxRow, MandelboxStatus},
};

use super::{Shared, spin_up::spin_up, take_down::take_down};
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
    pub files: Option<Files>,
    pub seat: Option<Seat>,
    /// The row is this host's: it was claimed.
    pub claimed: bool,
    /// The engine was asked for a container; there may be one.
    pub engine_asked: bool,
}

/// Spins it up, keeps it, takes it down. Returns its row unless the row could not even be claimed, so that it may be
/// tried again.
pub(super) async fn own(shared: Arc<Shared>, mandelbox: Arc<Mandelbox>) -> Option<MandelboxRow> {
    let mut estate = Estate::default();
    let life = AssertUnwindSafe(live(&shared, &mandelbox, &mut estate)).catch_unwind().await;
    mandelbox.end(EndOrder { reason: life.unwrap_or(EndReason::Panicked), grace: None });
    // A panic here would hand out leases that are still in use. Rather none of them ever returns.
    while AssertUnwindSafe(take_down(&shared, &mandelbox, &mut estate)).catch_unwind().await.is_err() {
        tracing::error!("taking a mandelbox down panicked; trying again");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    shared.board.remove(mandelbox.id());
    spent(&mandelbox, estate.claimed)
}

/// What is no longer to be planned: nothing where the row could not even be asked for, and all of it where it was ours.
fn spent(mandelbox: &Mandelbox, claimed: bool) -> Option<MandelboxRow> {
    let unasked = matches!(
        mandelbox.state().phase,
        Phase::Gone(EndReason::SpinUpFailed { stage: Stage::Claim, .. })
    );
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
