//! Many at once, and changes of mind.

use std::{collections::BTreeSet, time::Duration};

use futures::future::try_join_all;
use host_core::runtime::{ContainerState, Selector};

use super::{
    Fixture,
    trial::{LABEL, Trial},
};
use crate::{
    ensure,
    report::{PATIENCE, Unmet, Verdict},
};

const CROWD: usize = 50;
const EMULATED_CROWD: usize = 8;
/// When to give up, in milliseconds; from before the first request to after the last answer of a slow engine.
const GIVE_UP_AFTER_MS: [u64; 12] = [0, 1, 2, 4, 8, 16, 32, 64, 100, 150, 250, 500];

pub(super) async fn fifty_at_once_do_not_disturb_each_other(fixture: &dyn Fixture) -> Verdict {
    // An emulated processor would not be done within the component's own deadlines.
    let crowd = if *PATIENCE > 1 { EMULATED_CROWD } else { CROWD };
    let trials: Result<Vec<_>, _> = (0..crowd).map(|_| Trial::of(fixture)?.serving()).collect();
    let trials = trials?;
    let ids = try_join_all(trials.iter().map(Trial::run)).await?;
    let ids: BTreeSet<_> = ids.into_iter().collect();
    ensure!(ids.len() == crowd, "{crowd} containers have {} ids", ids.len());
    for trial in &trials {
        let state = trial.seen().await?.state;
        ensure!(state == ContainerState::Running, "among many, it is {state:?}");
    }
    try_join_all(trials.iter().map(Trial::remove)).await?;
    let left = fixture.runtime().list(&Selector([(LABEL.to_owned(), None)].into())).await?;
    ensure!(left.is_empty(), "removed, there is {left:?}");
    Ok(())
}

pub(super) async fn removing_at_once_from_many_sides_succeeds(fixture: &dyn Fixture) -> Verdict {
    let trial = Trial::of(fixture)?.serving()?;
    trial.start().await?;
    let stop = async { Ok::<_, Unmet>(trial.runtime.stop(&trial.name(), Duration::from_secs(30)).await?) };
    let remove_all = try_join_all((0..5).map(|_| async {
        trial.remove().await?;
        let left = trial.runtime.inspect(&trial.name()).await?;
        ensure!(left.is_none(), "removed, it is {left:?}");
        Ok(())
    }));
    futures::future::try_join(stop, remove_all).await.map(drop)
}

pub(super) async fn a_spin_up_given_up_at_any_point_can_be_removed_by_name(fixture: &dyn Fixture) -> Verdict {
    for after in GIVE_UP_AFTER_MS.map(Duration::from_millis) {
        let trial = Trial::of(fixture)?.serving()?;
        // Whether it got anywhere does not matter.
        let _ = tokio::time::timeout(after, trial.start()).await;
        trial.remove().await?;
        let left = trial.runtime.inspect(&trial.name()).await?;
        ensure!(left.is_none(), "given up after {after:?} and removed, it is {left:?}");
        // Nothing of it is on its way either: its name and its ports are free.
        trial.start().await?;
        trial.remove().await?;
    }
    Ok(())
}
