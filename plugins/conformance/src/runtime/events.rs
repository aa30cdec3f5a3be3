//! What happens to containers, as it is told.

use futures::{StreamExt, stream::BoxStream};
use host_core::runtime::{
    ContainerChange, ContainerId, ContainerState, Exit, Result as Outcome, RuntimeEvent, Selector,
};

use super::{
    Fixture,
    trial::{LABEL, Trial},
};
use crate::{
    ensure,
    report::{Unmet, Verdict},
};

type Events = BoxStream<'static, Outcome<RuntimeEvent>>;
type Told = Vec<(ContainerId, ContainerChange)>;

async fn subscribed(trial: &Trial<'_>) -> Result<Events, Unmet> {
    let selector = Selector::label(LABEL, trial.spec.name.as_str());
    Ok(trial.runtime.events(&selector).await?)
}

/// Everything told, up to and with the first change that `is_last`.
async fn until(events: &mut Events, is_last: impl Fn(ContainerChange) -> bool) -> Result<Told, Unmet> {
    let mut told = Told::new();
    while let Some(event) = events.next().await {
        let RuntimeEvent::Container(event) = event? else {
            return Err(Unmet::Broken("events were lost, on an unbroken stream".to_owned()));
        };
        told.push((event.id, event.change));
        if is_last(event.change) {
            return Ok(told);
        }
    }
    Err(Unmet::Broken(format!("the stream ended after {told:?}")))
}

/// Everything told, up to and with the first end.
pub(super) async fn until_exit(mut events: Events) -> Result<Told, Unmet> {
    until(&mut events, |change| matches!(change, ContainerChange::Exited(_))).await
}

/// Whether it was told that the kernel killed for memory.
pub(super) fn tells_oom(told: &Told) -> bool {
    told.iter().any(|(_, change)| {
        matches!(change, ContainerChange::Oom | ContainerChange::Exited(Exit { oom: true, .. }))
    })
}

/// One life, told in the order in which it was lived.
fn is_a_life(told: &Told, id: &ContainerId, code: i32) -> Verdict {
    let exit = Exit { code: Some(code), oom: false };
    let expected = [
        ContainerChange::Created,
        ContainerChange::Started,
        ContainerChange::Exited(exit),
        ContainerChange::Removed,
    ]
    .map(|change| (id.clone(), change));
    ensure!(told == &expected, "told {told:?} instead of {expected:?}");
    Ok(())
}

pub(super) async fn events_tell_a_life_in_order(fixture: &dyn Fixture) -> Verdict {
    let trial = Trial::of(fixture)?.told(&["exit-at-once", "7"]);
    let mut events = subscribed(&trial).await?;
    let id = trial.start().await?;
    let is_exit = |change| matches!(change, ContainerChange::Exited(_));
    let mut told = until(&mut events, is_exit).await?;
    trial.ends_with(7).await?;
    trial.remove().await?;
    told.extend(until(&mut events, |change| change == ContainerChange::Removed).await?);
    is_a_life(&told, &id, 7)
}

pub(super) async fn events_of_others_are_left_out(fixture: &dyn Fixture) -> Verdict {
    let (ours, other) = (Trial::of(fixture)?, Trial::of(fixture)?);
    let mut events = subscribed(&ours).await?;
    other.create().await?;
    other.remove().await?;
    let id = ours.create().await?;
    let told = until(&mut events, |_| true).await?;
    ensure!(told == [(id, ContainerChange::Created)], "told {told:?}");
    Ok(())
}

pub(super) async fn nothing_is_lost_between_subscribing_and_reading(fixture: &dyn Fixture) -> Verdict {
    for _ in 0..5 {
        let trial = Trial::of(fixture)?.told(&["exit-at-once", "3"]);
        let mut events = subscribed(&trial).await?;
        let id = trial.start().await?;
        trial.exit().await?;
        trial.remove().await?;
        let told = until(&mut events, |change| change == ContainerChange::Removed).await?;
        is_a_life(&told, &id, 3)?;
    }
    Ok(())
}

pub(super) async fn a_broken_stream_ends_and_a_list_tells_the_rest(fixture: &dyn Fixture) -> Verdict {
    let trial = Trial::of(fixture)?;
    trial.create().await?;
    let mut events = subscribed(&trial).await?;
    fixture.restart().await?;
    while let Some(Ok(_)) = events.next().await {}
    let again = subscribed(&trial).await?;
    let found = trial.runtime.list(&Selector::label(LABEL, trial.spec.name.as_str())).await?;
    let states: Vec<_> = found.into_iter().map(|container| container.state).collect();
    ensure!(states == [ContainerState::Created], "after the restart there is {states:?}");

    let mut again = again;
    trial.runtime.start(&trial.name()).await?;
    let told = until(&mut again, |change| change == ContainerChange::Started).await?;
    ensure!(told.len() == 1, "told {told:?}");
    Ok(())
}
