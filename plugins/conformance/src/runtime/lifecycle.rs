//! One container from its creation to its removal.

use std::time::Duration;

use host_core::{
    ErrorKind,
    runtime::{ContainerId, ContainerRef, ContainerState, LogOptions, Selector},
};
use tokio::time::Instant;

use super::{
    Fixture,
    trial::{LABEL, Trial, new_name},
};
use crate::{ensure, report::Verdict};

/// More than any trial's container needs to end.
const LONG: Duration = Duration::from_secs(30);
/// How much longer than said a loaded machine may take.
const SLACK: Duration = Duration::from_secs(10);

/// An operation must fail, and with this kind.
macro_rules! ensure_fails {
    ($outcome:expr, $($kind:pat_param)|+, $($text:tt)+) => {
        match $outcome {
            Ok(_) => {
                let text = ::std::format!($($text)+);
                return Err($crate::report::Unmet::Broken(::std::format!("{text} succeeded")));
            }
            Err(error) => $crate::ensure!(
                matches!(error.kind(), $($kind)|+),
                "{} failed as {}: {error}", ::std::format!($($text)+), error.kind().as_str()
            ),
        }
    };
}
pub(super) use ensure_fails;

pub(super) async fn it_is_healthy(fixture: &dyn Fixture) -> Verdict {
    let info = fixture.runtime().health().await?;
    ensure!(!info.name.is_empty() && !info.version.is_empty(), "it does not say what it is: {info:?}");
    Ok(())
}

pub(super) async fn a_container_is_created_then_runs_then_has_ended_then_is_gone(
    fixture: &dyn Fixture,
) -> Verdict {
    let trial = Trial::of(fixture)?;
    let id = trial.create().await?;
    let created = trial.seen().await?;
    ensure!(created.state == ContainerState::Created, "created, it is {:?}", created.state);
    ensure!(created.name == trial.spec.name.as_str(), "its name is {:?}", created.name);
    ensure!(created.id == id, "its id became {:?}", created.id);

    trial.runtime.start(&trial.name()).await?;
    let state = trial.seen().await?.state;
    ensure!(state == ContainerState::Running, "started, it is {state:?}");

    trial.announced().await;
    trial.runtime.stop(&trial.name(), LONG).await?;
    let state = trial.seen().await?.state;
    ensure!(matches!(state, ContainerState::Exited(_)), "stopped, it is {state:?}");

    trial.remove().await?;
    let left = trial.runtime.inspect(&trial.name()).await?;
    ensure!(left.is_none(), "removed, it is {left:?}");
    let left = trial.runtime.list(&Selector::label(LABEL, trial.spec.name.as_str())).await?;
    ensure!(left.is_empty(), "removed, it is still listed: {left:?}");
    Ok(())
}

pub(super) async fn id_and_name_mean_the_same_container(fixture: &dyn Fixture) -> Verdict {
    let trial = Trial::of(fixture)?;
    let id: ContainerRef = trial.create().await?.into();
    trial.runtime.start(&id).await?;
    let by_id = trial.runtime.inspect(&id).await?;
    let by_name = trial.runtime.inspect(&trial.name()).await?;
    ensure!(by_id.is_some() && by_id == by_name, "{by_id:?} is not {by_name:?}");
    trial.announced().await;
    trial.runtime.stop(&id, LONG).await?;
    trial.runtime.remove(&id).await?;
    let left = trial.runtime.inspect(&trial.name()).await?;
    ensure!(left.is_none(), "removed by id, there is {left:?} by name");
    Ok(())
}

pub(super) async fn starting_what_runs_succeeds(fixture: &dyn Fixture) -> Verdict {
    let trial = Trial::of(fixture)?;
    trial.start().await?;
    trial.runtime.start(&trial.name()).await?;
    let state = trial.seen().await?.state;
    ensure!(state == ContainerState::Running, "started twice, it is {state:?}");
    Ok(())
}

pub(super) async fn stopping_what_does_not_run_succeeds(fixture: &dyn Fixture) -> Verdict {
    let trial = Trial::of(fixture)?;
    trial.create().await?;
    trial.runtime.stop(&trial.name(), LONG).await?;
    let state = trial.seen().await?.state;
    ensure!(state == ContainerState::Created, "stopped before its start, it is {state:?}");

    trial.runtime.start(&trial.name()).await?;
    trial.announced().await;
    trial.runtime.stop(&trial.name(), LONG).await?;
    let first = trial.seen().await?.state;
    trial.runtime.stop(&trial.name(), LONG).await?;
    let second = trial.seen().await?.state;
    ensure!(first == second, "stopped again, {first:?} became {second:?}");
    Ok(())
}

pub(super) async fn stopping_and_removing_the_absent_succeeds(fixture: &dyn Fixture) -> Verdict {
    let runtime = fixture.runtime();
    let by_name = ContainerRef::Name(new_name()?);
    let by_id = ContainerRef::Id(ContainerId("0".repeat(64)));
    for absent in [by_name, by_id] {
        runtime.stop(&absent, LONG).await?;
        runtime.remove(&absent).await?;
    }
    let trial = Trial::of(fixture)?;
    trial.create().await?;
    trial.remove().await?;
    trial.remove().await
}

pub(super) async fn what_is_absent_is_told(fixture: &dyn Fixture) -> Verdict {
    let runtime = fixture.runtime();
    let absent = ContainerRef::Name(new_name()?);
    let seen = runtime.inspect(&absent).await?;
    ensure!(seen.is_none(), "inspecting the absent gave {seen:?}");
    ensure_fails!(runtime.start(&absent).await, ErrorKind::NotFound, "starting the absent");
    let log = runtime.logs(&absent, LogOptions::default()).await;
    ensure_fails!(log, ErrorKind::NotFound, "reading the log of the absent");
    Ok(())
}

pub(super) async fn a_taken_name_is_a_conflict_and_disturbs_nobody(fixture: &dyn Fixture) -> Verdict {
    let trial = Trial::of(fixture)?;
    trial.start().await?;
    let before = trial.seen().await?;
    let second = trial.runtime.create(&trial.spec).await;
    ensure_fails!(second, ErrorKind::Conflict, "creating the same name again");
    let after = trial.seen().await?;
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(())
}

pub(super) async fn a_name_is_free_as_soon_as_its_container_is_removed(fixture: &dyn Fixture) -> Verdict {
    let trial = Trial::of(fixture)?;
    for _ in 0..3 {
        trial.start().await?;
        trial.remove().await?;
    }
    Ok(())
}

pub(super) async fn what_runs_can_be_removed(fixture: &dyn Fixture) -> Verdict {
    let trial = Trial::of(fixture)?.told(&["ignore-sigterm"]);
    trial.start().await?;
    trial.remove().await?;
    let left = trial.runtime.inspect(&trial.name()).await?;
    ensure!(left.is_none(), "removed, it is {left:?}");
    Ok(())
}

pub(super) async fn an_exit_code_is_told(fixture: &dyn Fixture) -> Verdict {
    for code in [0, 1, 7, 255] {
        let trial = Trial::of(fixture)?.told(&["exit-at-once", &code.to_string()]);
        trial.start().await?;
        trial.ends_with(code).await?;
    }
    Ok(())
}

pub(super) async fn a_container_that_heeds_sigterm_ends_before_its_grace(fixture: &dyn Fixture) -> Verdict {
    let trial = Trial::of(fixture)?;
    trial.run().await?;
    let begun = Instant::now();
    trial.runtime.stop(&trial.name(), LONG).await?;
    let took = begun.elapsed();
    ensure!(took < LONG, "it took {took:?}, all of its grace");
    // The test mandelbox ends in good order, which shows that it was asked and not killed.
    trial.ends_with(0).await
}

pub(super) async fn a_container_that_ignores_sigterm_is_killed_after_its_grace(
    fixture: &dyn Fixture,
) -> Verdict {
    for grace in [Duration::from_millis(300), Duration::from_secs(1)] {
        let trial = Trial::of(fixture)?.told(&["ignore-sigterm"]);
        trial.run().await?;
        let begun = Instant::now();
        trial.runtime.stop(&trial.name(), grace).await?;
        let took = begun.elapsed();
        ensure!(took >= grace, "of {grace:?} of grace it had {took:?}");
        ensure!(took < grace + SLACK, "with {grace:?} of grace it took {took:?}");
        trial.ends_with(137).await?;
    }
    Ok(())
}

pub(super) async fn no_grace_is_no_wait(fixture: &dyn Fixture) -> Verdict {
    let trial = Trial::of(fixture)?.told(&["ignore-sigterm"]);
    trial.run().await?;
    let begun = Instant::now();
    trial.runtime.stop(&trial.name(), Duration::ZERO).await?;
    let took = begun.elapsed();
    ensure!(took < SLACK, "without grace it took {took:?}");
    trial.ends_with(137).await
}
