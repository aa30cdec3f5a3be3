//! From whatever a mandelbox has in hand to nothing. The order is what keeps others safe: the client is told first,
//! the container goes before its leases return, and the row goes when nothing of it is left on this host.
//!
//! Every step is repeated until it works; only the end of the service cuts that short, and then the record stays for
//! the next one to find.

use std::{future::Future, time::Duration};

use futures::TryFutureExt;
use host_core::{
    PluginError, chain,
    lifecycle::{EndReason, Event, Phase, Stage},
    pubsub::MandelboxStatus,
    runtime::ContainerId,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    Shared,
    estate::{Disk, Estate, Made},
};
use crate::{
    deadline::within,
    lobby::Failure,
    mandelbox::{EndOrder, Mandelbox},
    retry::Pauses,
};

/// Between tries to reach an engine that does not answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What an engine gets beyond the grace to report the end of a container.
const KILL_MARGIN: Duration = Duration::from_secs(2);

/// Takes everything down that `estate` holds.
pub(super) async fn take_down(shared: &Shared, mandelbox: &Mandelbox, estate: &mut Estate) {
    // Listened to from before the order is read, so that none is missed.
    let orders = mandelbox.end_orders();
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
        if !estate.engine_asked {
            return true;
        }
        down.stop(&order, orders).await;
        down.remove_container().await
    };
    let (removed, ()) = tokio::join!(removed, dying);
    if removed {
        estate.leases = None;
        down.remove_files(&estate.disk).await;
    } else {
        tracing::error!(container = %mandelbox.container, "the container could not be removed before the service ended");
        // Never to be handed out again while the container may live; the record tells the next service.
        std::mem::forget(estate.leases.take());
    }
    mandelbox.advance(Event::Removed);
    shared.settled.notify_one();
    if has_row && removed {
        let (name, id) = (&shared.facts.name, mandelbox.id());
        shared.persist("removing the row", || shared.pubsub.remove(name, id)).await;
    }
    estate.seat = None;
    tracing::info!(reason = order.reason.name(), "gone");
}

/// Removes the mandelbox's container, and no other that has its name: by the engine's id where that is known, and
/// else only when it bears our labels.
pub(super) async fn remove_own(
    shared: &Shared,
    mandelbox: &Mandelbox,
    container: Option<ContainerId>,
) -> Result<(), PluginError> {
    let limit = shared.settings.mandelbox.timeouts.remove;
    let removal = async {
        let container = match container {
            Some(id) => Some(id),
            None => {
                let named = shared.runtime.inspect(&mandelbox.container.clone().into()).await?;
                named.filter(|found| shared.is_ours(found, mandelbox)).map(|found| found.id)
            }
        };
        match container {
            Some(id) => shared.runtime.remove(&id.into()).await,
            None => Ok(()),
        }
    };
    within(limit, "removing the container", removal).await
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
        if let Err(error) =
            within(self.shared.settings.pubsub.timeout, "setting the row to DYING", told).await
        {
            tracing::warn!(error = %chain(&error), "the control plane could not be told that the mandelbox ends");
        }
    }

    /// Gives the processes their grace, unless there is nothing left to be graceful to. A later order may cut the
    /// grace short; what is still there is killed by the removal.
    async fn stop(&self, order: &EndOrder, mut orders: watch::Receiver<Option<EndOrder>>) {
        let Some(container) = self.mandelbox.state().container.filter(|_| order.reason.deserves_grace())
        else {
            return;
        };
        let grace_of = |order: &EndOrder| order.grace.unwrap_or(self.shared.settings.mandelbox.stop_grace);
        let grace = grace_of(order);
        if grace.is_zero() {
            return;
        }
        let container = container.into();
        let mut stop = std::pin::pin!(self.shared.runtime.stop(&container, grace));
        // The engine kills at the end of the grace; a moment more, and the removal does.
        let mut until = Instant::now() + grace + KILL_MARGIN;
        loop {
            tokio::select! {
                stopped = &mut stop => {
                    if let Err(error) = stopped {
                        tracing::warn!(error = %chain(&error), "the container could not be stopped; removing it");
                    }
                    return;
                }
                () = sleep_until(until) => return,
                Ok(()) = orders.changed() => {
                    let later = orders.borrow_and_update().as_ref().map(grace_of).unwrap_or(grace);
                    until = until.min(Instant::now() + later);
                }
            }
        }
    }

    async fn remove_container(&self) -> bool {
        self.until_done("removing the container", || {
            remove_own(self.shared, self.mandelbox, self.mandelbox.state().container)
        })
        .await
    }

    async fn remove_files(&self, disk: &Disk) {
        self.until_done("removing the files", || {
            let (root, records) = (self.shared.root.clone(), self.shared.records.clone());
            let id = self.mandelbox.id().clone();
            let removal = disk.run(move |made| {
                if made.files.is_some() {
                    root.remove(&id)?;
                }
                if made.record {
                    records.remove(&id)?;
                }
                *made = Made::default();
                Ok(())
            });
            removal.map_err(|error| {
                PluginError::new(host_core::ErrorKind::Internal, "the file system refused").with_source(error)
            })
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
            let done = tokio::select! {
                done = operation() => done,
                // Whatever it waits for may never come; a disk that hangs finishes by itself or not at all.
                () = self.shared.hurry.cancelled() => return false,
            };
            let Err(error) = done else { return true };
            tracing::warn!(doing, error = %chain(&error), "taking a mandelbox down is delayed");
            tokio::select! {
                () = pauses.pause() => {}
                () = self.shared.hurry.cancelled() => return false,
            }
        }
    }
}
