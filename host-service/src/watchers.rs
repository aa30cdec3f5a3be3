//! The two ears of the host: each subscribes, passes on what it hears, and subscribes again when the connection is
//! lost. After every subscription the full state is read, so nothing that happened meanwhile is missed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use host_core::{
    MandelboxId, PluginError, chain,
    lifecycle::Phase,
    planner::LABEL_RUN,
    pubsub::DesiredState,
    runtime::{ContainerId, RuntimeEvent, Selector},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, interval, timeout},
};

use crate::{
    deadline::within,
    host::Condition,
    mandelbox::Board,
    orchestrator::{Shared, Sighting},
    retry::Pauses,
};

/// A silent loss of events, which no engine should have, costs at most this.
const LIST_EVERY: Duration = Duration::from_secs(30);
/// A watch of the control plane that yields nothing for this long is made anew.
const WATCH_ANEW: Duration = Duration::from_secs(60);
/// Between tries to reach what does not answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Keeps `desired` at what the control plane wants. Runs until it is dropped.
pub(crate) async fn watch_pubsub(
    shared: Arc<Shared>,
    desired: watch::Sender<Option<DesiredState>>,
    condition: watch::Sender<Condition>,
) {
    let mut pauses = Pauses::up_to(LONGEST_PAUSE);
    'anew: loop {
        let began = Instant::now();
        let error = match subscribe(&shared).await {
            Ok(mut states) => loop {
                // A connection that says nothing may be a dead one: it is made anew, and with it the full state read.
                let Ok(state) = timeout(WATCH_ANEW, states.next()).await else { continue 'anew };
                match state {
                    Some(Ok(state)) => {
                        set_error(&condition, |c| &mut c.pubsub_error, None);
                        shared.metrics.pubsub_up(true);
                        desired.send_replace(Some(state));
                    }
                    Some(Err(error)) => break chain(&error),
                    None => break "the connection was lost".to_owned(),
                }
            },
            Err(error) => chain(&error),
        };
        // What goes on, a wrong secret for example, is told once.
        let is_known = condition.borrow().pubsub_error.as_ref() == Some(&error);
        if is_known {
            tracing::debug!(error, "the control plane is still not heard");
        } else {
            tracing::warn!(error, "the control plane is not heard; watching again");
        }
        shared.metrics.pubsub_up(false);
        set_error(&condition, |c| &mut c.pubsub_error, Some(error));
        // One state is no proof: where only reading works, each watch shows one before it ends.
        if began.elapsed() > LONGEST_PAUSE {
            pauses.reset();
        }
        pauses.pause().await;
    }
}

async fn subscribe(
    shared: &Shared,
) -> Result<BoxStream<'static, Result<DesiredState, PluginError>>, PluginError> {
    within(
        shared.settings.pubsub.timeout,
        "watching the control plane",
        shared.pubsub.watch(&shared.facts.name),
    )
    .await
}

/// Passes on what the engine does to this host's containers. Runs until it is dropped.
pub(crate) async fn watch_runtime(
    shared: Arc<Shared>,
    sightings: mpsc::Sender<Sighting>,
    condition: watch::Sender<Condition>,
) {
    let mut pauses = Pauses::up_to(LONGEST_PAUSE);
    loop {
        let ended = hear_runtime(&shared, &sightings, &condition, &mut pauses).await;
        let error = ended.map_or_else(|error| chain(&error), |()| "the connection was lost".to_owned());
        if sightings.is_closed() {
            return;
        }
        tracing::warn!(error, "the container engine is not heard; subscribing again");
        shared.metrics.runtime_up(false);
        set_error(&condition, |c| &mut c.runtime_error, Some(error));
        pauses.pause().await;
    }
}

/// One subscription, until its connection is lost.
async fn hear_runtime(
    shared: &Shared,
    sightings: &mpsc::Sender<Sighting>,
    condition: &watch::Sender<Condition>,
    pauses: &mut Pauses,
) -> Result<(), PluginError> {
    let selector = Selector::label(LABEL_RUN, shared.run.as_str());
    let limit = shared.settings.mandelbox.timeouts.start;
    let mut events = within(limit, "subscribing to events", shared.runtime.events(&selector)).await?;
    let mut lists = interval(LIST_EVERY);
    loop {
        let sighting = tokio::select! {
            event = events.next() => match event {
                Some(Ok(RuntimeEvent::Container(event))) => Sighting::Event(event),
                Some(Ok(RuntimeEvent::Gap)) => list(shared, &selector).await?,
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            // The first tick is at once: what happened before the subscription.
            _ = lists.tick() => {
                let list = list(shared, &selector).await?;
                pauses.reset();
                set_error(condition, |c| &mut c.runtime_error, None);
                shared.metrics.runtime_up(true);
                list
            }
        };
        if sightings.send(sighting).await.is_err() {
            return Ok(());
        }
    }
}

async fn list(shared: &Shared, selector: &Selector) -> Result<Sighting, PluginError> {
    let expected = expected(&shared.board);
    let limit = shared.settings.mandelbox.timeouts.start;
    let containers = within(limit, "listing containers", shared.runtime.list(selector)).await?;
    Ok(Sighting::List { containers, expected })
}

/// Containers that have been started and are not being taken down.
fn expected(board: &Board) -> BTreeMap<MandelboxId, ContainerId> {
    let started = board.all().into_iter().filter_map(|mandelbox| {
        let state = mandelbox.state();
        let starting = matches!(state.phase, Phase::Claiming | Phase::Launching);
        let container = state.container.filter(|_| !starting && !mandelbox.is_ending())?;
        Some((mandelbox.id().clone(), container))
    });
    started.collect()
}

fn set_error(
    condition: &watch::Sender<Condition>,
    which: fn(&mut Condition) -> &mut Option<String>,
    error: Option<String>,
) {
    condition.send_if_modified(|condition| {
        let place = which(condition);
        let changed = *place != error;
        *place = error;
        changed
    });
}
