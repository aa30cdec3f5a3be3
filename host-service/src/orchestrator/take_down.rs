//! From whatever a mandelbox has in hand to nothing. The order is what keeps others safe: the client is told first,
//! the container goes before its leases return, and the row goes when nothing of it is left on this host.
//!
//! Every step is repeated until it works; only the end of the service cuts that short, and then the record stays for
//! the next one to find.

use std::{future::Future, time::Duration};

use host_core::{
    PluginError, chain,
    lifecycle::{EndReason, Event, Phase, Stage},
    pubsub::MandelboxStatus,
};

use super::{Shared, blocking, owner::Estate};
use crate::{
    deadline::within,
    lobby::Failure,
    mandelbox::{EndOrder, Mandelbox},
    retry::Pauses,
};

/// Between tries to reach an engine that does not answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Takes everything down that `estate` holds.
pub(super) async fn take_down(shared: &Shared, mandelbox: &Mandelbox, estate: &mut Estate) {
    let order = mandelbox.end_ordered().await;
    begin(shared, mandelbox, estate, &order.reason);
    let down = TakeDown { shared, mandelbox };
    let has_row = estate.claimed && order.reason != EndReason::RowDeleted;
    let dying = async {
        if has_row && order.reason != EndReason::RowDying {
            down.tell_dying().await;
        }
    };
    let removed = async {
        !estate.engine_asked || (down.stop(&order).await, down.remove_container().await).1
    };
    let (removed, ()) = tokio::join!(removed, dying);
    if !removed {
        tracing::error!(container = %mandelbox.container, "the container could not be removed before the service ended");
        // Never to be handed out again while the container may live; the record tells the next service.
        std::mem::forget(estate.leases.take());
        mandelbox.advance(Event::Removed);
        return;
    }
    down.remove_files().await;
    estate.leases = None;
    if has_row {
        let (name, id) = (&shared.facts.name, mandelbox.id());
        shared.persist("removing the row", || shared.pubsub.remove(name, id)).await;
    }
    estate.seat = None;
    tracing::info!(reason = order.reason.name(), "gone");
    mandelbox.advance(Event::Removed);
}

/// Says why, and tells a client that still waits.
fn begin(shared: &Shared, mandelbox: &Mandelbox, estate: &mut Estate, reason: &EndReason) {
    let phase = mandelbox.state().phase;
    mandelbox.advance(Event::End(reason.clone()));
    shared.metrics.ended(reason);
    match reason {
        EndReason::SpinUpFailed { stage, error } => tracing::error!(%stage, error, "spin-up failed"),
        EndReason::Panicked => tracing::error!(phase = phase.name(), "the task of a mandelbox panicked"),
        _ => tracing::info!(phase = phase.name(), %reason, "ending"),
    }
    if let Some(seat) = &mut estate.seat {
        seat.answer(Err(failure(reason, &phase)));
    }
}

/// What a client is told. The details of a failed step are the operator's.
fn failure(reason: &EndReason, phase: &Phase) -> Failure {
    let stage = match phase {
        Phase::AwaitingClient => Stage::Client,
        Phase::AwaitingApplication => Stage::Application,
        _ => Stage::Start,
    };
    match reason {
        EndReason::Drained => Failure::Draining,
        EndReason::SpinUpFailed { stage, .. } => {
            Failure::SpinUpFailed { stage: *stage, message: "the host's log tells more".to_owned() }
        }
        other => Failure::SpinUpFailed { stage, message: other.to_string() },
    }
}

struct TakeDown<'a> {
    shared: &'a Shared,
    mandelbox: &'a Mandelbox,
}

impl TakeDown<'_> {
    async fn tell_dying(&self) {
        let (name, id) = (&self.shared.facts.name, self.mandelbox.id());
        let told = self.shared.pubsub.set_status(name, id, MandelboxStatus::Dying);
        if let Err(error) = within(self.shared.settings.pubsub.timeout, "setting the row to DYING", told).await {
            tracing::warn!(error = %chain(&error), "the control plane could not be told that the mandelbox ends");
        }
    }

    /// Gives the processes their grace, unless there is nothing left to be graceful to. A later order may cut the
    /// grace short; what is still there is killed by the removal.
    async fn stop(&self, order: &EndOrder) {
        if !order.reason.deserves_grace() {
            return;
        }
        let settings = &self.shared.settings.mandelbox;
        let container = self.mandelbox.container.clone().into();
        let mut orders = self.mandelbox.end_orders();
        let mut grace = order.grace.unwrap_or(settings.stop_grace);
        while !grace.is_zero() {
            let stop = self.shared.runtime.stop(&container, grace);
            tokio::select! {
                stopped = within(grace + settings.timeouts.stop, "stopping the container", stop) => {
                    if let Err(error) = stopped {
                        tracing::warn!(error = %chain(&error), "the container could not be stopped; removing it");
                    }
                    return;
                }
                Ok(()) = orders.changed() => {
                    grace = orders.borrow().as_ref().and_then(|order| order.grace).unwrap_or(grace);
                }
            }
        }
    }

    async fn remove_container(&self) -> bool {
        let limit = self.shared.settings.mandelbox.timeouts.remove;
        let container = self.mandelbox.container.clone().into();
        self.until_done("removing the container", || {
            within(limit, "removing the container", self.shared.runtime.remove(&container))
        })
        .await
    }

    async fn remove_files(&self) {
        self.until_done("removing the files", || {
            let (root, records, id) =
                (self.shared.root.clone(), self.shared.records.clone(), self.mandelbox.id().clone());
            async move {
                let removal = blocking(move || root.remove(&id).and_then(|()| records.remove(&id)));
                removal.await.map_err(|error| {
                    PluginError::new(host_core::ErrorKind::Internal, "the file system refused").with_source(error)
                })
            }
        })
        .await;
    }

    /// Repeats until it works; `false` when the service ended first.
    async fn until_done<F>(&self, doing: &'static str, operation: impl Fn() -> F) -> bool
    where
        F: Future<Output = Result<(), PluginError>>,
    {
        let mut pauses = Pauses::up_to(LONGEST_PAUSE);
        loop {
            let Err(error) = operation().await else { return true };
            tracing::warn!(doing, error = %chain(&error), "taking a mandelbox down is delayed");
            tokio::select! {
                () = pauses.pause() => {}
                () = self.shared.hurry.cancelled() => return false,
            }
        }
    }
}
