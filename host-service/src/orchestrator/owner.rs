//! The owner task of one mandelbox: from its row to the last trace of it.

use std::{convert::Infallible, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use super::{Shared, estate::Estate, spin_up::spin_up, take_down::take_down};
use crate::mandelbox::{EndOrder, Mandelbox};
use futures::FutureExt;
use host_core::{
    MandelboxId,
    lifecycle::{EndReason, Phase, Stage},
    pubsub::{MandelboxRow, MandelboxStatus},
};

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
