//! Watches: the full state first and after every change, and never an old one last.

use host_core::pubsub::{DesiredState, InstanceStatus, MandelboxStatus};

use super::{ControlPlane, DEADLINE, Stage, Watcher};
use crate::{
    behaviours, ensure,
    report::{Behaviour, Unmet, Verdict},
};

pub(super) fn behaviours() -> Vec<Behaviour<dyn ControlPlane>> {
    behaviours![dyn ControlPlane, DEADLINE;
        a_watch_gives_the_full_state_first,
        a_watch_of_a_host_without_a_row_is_empty,
        every_change_gives_a_new_full_state,
        a_slow_watcher_sees_the_last_state,
        two_watchers_see_the_same,
        another_hosts_rows_are_never_shown,
        the_control_planes_draining_is_seen,
        a_cut_watch_ends_and_the_next_one_has_missed_nothing,
        dropping_a_watch_leaves_the_others,
    ]
}

async fn a_watch_gives_the_full_state_first(plane: &dyn ControlPlane) -> Verdict {
    let (stage, other) = (Stage::new(plane).await?, Stage::new(plane).await?);
    let mut rows = Vec::new();
    for status in MandelboxStatus::ALL {
        rows.push(stage.row(*status).await?);
        other.row(*status).await?;
    }
    rows.sort_by(|one, other| one.id.cmp(&other.id));
    let full = DesiredState { instance: Some(InstanceStatus::Active), mandelboxes: rows };
    let first = stage.watch().await?.next().await?;
    ensure!(first == full, "the first state is {first:?}, there is {full:?}");
    Ok(())
}

async fn a_watch_of_a_host_without_a_row_is_empty(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::without_row(plane).await?;
    let mut watcher = stage.watch().await?;
    let first = watcher.next().await?;
    ensure!(first == DesiredState::default(), "there is nothing, but {first:?}");
    stage.insert_instance(InstanceStatus::PreConnection).await?;
    watcher.until(|state| state.instance == Some(InstanceStatus::PreConnection)).await?;
    Ok(())
}

async fn every_change_gives_a_new_full_state(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let mut watcher = stage.watch().await?;
    let first = stage.row(MandelboxStatus::Allocated).await?;
    watcher.until(|state| state.mandelboxes == [first.clone()]).await?;

    let second = stage.row(MandelboxStatus::Allocated).await?;
    let state = watcher.until(|state| state.mandelboxes.contains(&second)).await?;
    ensure!(state.mandelboxes.contains(&first), "the row before is left out: {state:?}");

    let running = MandelboxStatus::Running;
    stage.pubsub.set_status(&stage.host, &first.id, running).await?;
    let moved = |state: &DesiredState| state.mandelboxes.iter().any(|row| row.status == running);
    let state = watcher.until(moved).await?;
    ensure!(state.mandelboxes.contains(&second), "the row beside is left out: {state:?}");

    plane.delete_mandelbox(&first.id).await?;
    watcher.until(|state| state.mandelboxes == [second.clone()]).await?;
    plane.delete_instance(&stage.host).await?;
    watcher.until(|state| *state == DesiredState::default()).await?;
    Ok(())
}

async fn a_slow_watcher_sees_the_last_state(plane: &dyn ControlPlane) -> Verdict {
    const CHANGES: usize = 200;
    let stage = Stage::new(plane).await?;
    let mut watcher = stage.watch().await?;
    watcher.next().await?;
    for n in 0..CHANGES {
        let row = stage.row(MandelboxStatus::Allocated).await?;
        if n % 2 == 0 {
            plane.delete_mandelbox(&row.id).await?;
        }
    }
    watcher.until(|state| state.mandelboxes.len() == CHANGES / 2).await?;
    stage.pubsub.mark_draining(&stage.host).await?;
    let last = watcher.until(|state| state.instance == Some(InstanceStatus::Draining)).await?;
    ensure!(last.mandelboxes.len() == CHANGES / 2, "{} rows are left", last.mandelboxes.len());
    Ok(())
}

async fn two_watchers_see_the_same(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let again = plane.connect().await?;
    let (mut one, mut other) = (stage.watch().await?, Watcher(again.watch(&stage.host).await?));
    let row = stage.row(MandelboxStatus::Allocated).await?;
    let has_row = |state: &DesiredState| state.mandelboxes == [row.clone()];
    let (one, other) = (one.until(has_row).await?, other.until(has_row).await?);
    ensure!(one == other, "one sees {one:?}, the other {other:?}");
    Ok(())
}

async fn another_hosts_rows_are_never_shown(plane: &dyn ControlPlane) -> Verdict {
    let (stage, other) = (Stage::new(plane).await?, Stage::new(plane).await?);
    let mut watcher = stage.watch().await?;
    let foreign = other.row(MandelboxStatus::Allocated).await?;
    other.pubsub.mark_draining(&other.host).await?;
    let own = stage.row(MandelboxStatus::Allocated).await?;
    loop {
        let state = watcher.next().await?;
        let is_own = state.instance == Some(InstanceStatus::Active) && !state.mandelboxes.contains(&foreign);
        ensure!(is_own, "another host's state is shown: {state:?}");
        if state.mandelboxes == [own.clone()] {
            return Ok(());
        }
    }
}

async fn the_control_planes_draining_is_seen(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let mut watcher = stage.watch().await?;
    for status in [InstanceStatus::Draining, InstanceStatus::Unresponsive] {
        plane.set_instance_status(&stage.host, status).await?;
        watcher.until(|state| state.instance == Some(status)).await?;
    }
    Ok(())
}

async fn a_cut_watch_ends_and_the_next_one_has_missed_nothing(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let mut watcher = stage.watch().await?;
    watcher.next().await?;
    if !plane.cut().await? {
        return Err(Unmet::Lacking("a way to cut connections".to_owned()));
    }
    watcher.end().await;
    let row = stage.row(MandelboxStatus::Allocated).await?;
    let first = stage.watch().await?.next().await?;
    ensure!(first.mandelboxes == [row], "the state after the cut is {first:?}");
    Ok(())
}

async fn dropping_a_watch_leaves_the_others(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let mut kept = stage.watch().await?;
    for _ in 0..10 {
        drop(stage.watch().await?);
    }
    let row = stage.row(MandelboxStatus::Allocated).await?;
    kept.until(|state| state.mandelboxes == [row.clone()]).await?;
    Ok(())
}
