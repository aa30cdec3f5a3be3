//! Mandelboxes' rows: allocated, moved forward, removed.

use std::{collections::BTreeSet, time::Duration};

use host_core::{
    ErrorKind, MandelboxId, PluginError,
    pubsub::{MandelboxStatus, StaleAfter},
};
use tokio::task::JoinSet;

use super::{ControlPlane, DEADLINE, Stage, allocation, new_id};
use crate::{
    behaviours, ensure,
    report::{Behaviour, Unmet, Verdict},
};

pub(super) fn behaviours() -> Vec<Behaviour<dyn ControlPlane>> {
    behaviours![dyn ControlPlane, DEADLINE;
        a_status_never_moves_backwards,
        a_status_of_a_gone_row_stays_gone,
        another_hosts_row_cannot_be_moved_or_removed,
        removing_is_seen_and_repeatable,
        stale_rows_are_removed_by_status_and_age,
        what_is_worked_on_is_never_stale,
        an_allocation_is_a_fresh_row_of_this_host,
        an_id_can_be_allocated_once,
        of_concurrent_allocations_of_one_id_one_succeeds,
        nothing_can_be_allocated_to_a_host_without_a_row,
    ]
}

const AFTER: StaleAfter =
    StaleAfter { allocated: Duration::from_secs(10), connecting: Duration::from_secs(90) };

async fn a_status_never_moves_backwards(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    for from in MandelboxStatus::ALL {
        for to in MandelboxStatus::ALL {
            let row = stage.row(*from).await?;
            stage.pubsub.set_status(&stage.host, &row.id, *to).await?;
            stage.pubsub.set_status(&stage.host, &row.id, *to).await?;
            let after = stage.status_of(&row.id).await?;
            ensure!(after == Some(*from.max(to)), "{from} set to {to} became {after:?}");
        }
    }
    Ok(())
}

async fn a_status_of_a_gone_row_stays_gone(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let row = stage.row(MandelboxStatus::Connecting).await?;
    plane.delete_mandelbox(&row.id).await?;
    stage.pubsub.set_status(&stage.host, &row.id, MandelboxStatus::Running).await?;
    let after = stage.status_of(&row.id).await?;
    ensure!(after.is_none(), "the row came back as {after:?}");
    Ok(())
}

async fn another_hosts_row_cannot_be_moved_or_removed(plane: &dyn ControlPlane) -> Verdict {
    let (stage, other) = (Stage::new(plane).await?, Stage::new(plane).await?);
    let row = other.row(MandelboxStatus::Running).await?;
    stage.pubsub.set_status(&stage.host, &row.id, MandelboxStatus::Dying).await?;
    stage.pubsub.remove(&stage.host, &row.id).await?;
    let after = plane.mandelbox(&row.id).await?;
    ensure!(after == Some(row), "the row became {after:?}");
    Ok(())
}

async fn removing_is_seen_and_repeatable(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let (gone, left) = (stage.row(MandelboxStatus::Dying).await?, stage.row(MandelboxStatus::Running).await?);
    let mut watcher = stage.watch().await?;
    stage.pubsub.remove(&stage.host, &gone.id).await?;
    stage.pubsub.remove(&stage.host, &gone.id).await?;
    stage.pubsub.remove(&stage.host, &new_id()?).await?;
    watcher.until(|state| state.mandelboxes == [left.clone()]).await?;
    Ok(())
}

async fn stale_rows_are_removed_by_status_and_age(plane: &dyn ControlPlane) -> Verdict {
    use MandelboxStatus::{Allocated, Connecting, Dying, Running};
    let (stage, other) = (Stage::new(plane).await?, Stage::new(plane).await?);
    let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
    let (mut stale, mut kept) = (BTreeSet::new(), Vec::new());
    for (status, age) in [(Allocated, minute), (Connecting, hour)] {
        stale.insert(stage.aged_row(status, age).await?);
    }
    let none = Duration::ZERO;
    for (status, age) in [(Allocated, none), (Connecting, minute), (Running, hour), (Dying, hour)] {
        kept.push(stage.aged_row(status, age).await?);
    }
    kept.push(other.aged_row(Allocated, hour).await?);

    let removed = stage.pubsub.remove_stale(&stage.host, AFTER, &[]).await?;
    let removed: BTreeSet<MandelboxId> = removed.into_iter().collect();
    ensure!(removed == stale, "{removed:?} were removed, {stale:?} were stale");
    for id in &stale {
        let status = stage.status_of(id).await?;
        ensure!(status.is_none(), "a stale row is left in {status:?}");
    }
    for id in &kept {
        ensure!(stage.status_of(id).await?.is_some(), "a row that is not stale is gone");
    }
    let again = stage.pubsub.remove_stale(&stage.host, AFTER, &[]).await?;
    ensure!(again.is_empty(), "{again:?} were removed again");
    Ok(())
}

async fn what_is_worked_on_is_never_stale(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let hour = Duration::from_secs(3600);
    let working_on = [
        stage.aged_row(MandelboxStatus::Allocated, hour).await?,
        stage.aged_row(MandelboxStatus::Connecting, hour).await?,
        new_id()?,
    ];
    let stale = stage.aged_row(MandelboxStatus::Connecting, hour).await?;
    let removed = stage.pubsub.remove_stale(&stage.host, AFTER, &working_on).await?;
    ensure!(removed == [stale], "{removed:?} were removed");
    for id in &working_on[..2] {
        ensure!(stage.status_of(id).await?.is_some(), "a row that is worked on is gone");
    }
    Ok(())
}

async fn an_allocation_is_a_fresh_row_of_this_host(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let mut watcher = stage.watch().await?;
    let new = allocation()?;
    stage.pubsub.allocate(&stage.host, &new).await?;
    let state = watcher.until(|state| !state.mandelboxes.is_empty()).await?;
    let row = &state.mandelboxes[0];
    let same = (&row.id, &row.user, &row.session) == (&new.id, &new.user, &new.session);
    ensure!(same && row.status == MandelboxStatus::Allocated, "{new:?} became {row:?}");
    let removed = stage.pubsub.remove_stale(&stage.host, AFTER, &[]).await?;
    ensure!(removed.is_empty(), "it is stale at once: {row:?}");
    Ok(())
}

async fn an_id_can_be_allocated_once(plane: &dyn ControlPlane) -> Verdict {
    let (stage, other) = (Stage::new(plane).await?, Stage::new(plane).await?);
    let new = allocation()?;
    stage.pubsub.allocate(&stage.host, &new).await?;
    let row = plane.mandelbox(&new.id).await?;
    let row = row.ok_or_else(|| Unmet::Broken("the row is not there".to_owned()))?;
    stage.pubsub.claim(&stage.host, &row).await?;
    for host in [&stage.host, &other.host] {
        let answer = stage.pubsub.allocate(host, &new).await;
        let kind = answer.as_ref().err().map(PluginError::kind);
        ensure!(kind == Some(ErrorKind::Conflict), "the answer is {answer:?}");
    }
    let status = stage.status_of(&new.id).await?;
    ensure!(status == Some(MandelboxStatus::Connecting), "the row became {status:?}");
    Ok(())
}

async fn of_concurrent_allocations_of_one_id_one_succeeds(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let new = allocation()?;
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        let (pubsub, host, new) = (plane.connect().await?, stage.host.clone(), new.clone());
        calls.spawn(async move { pubsub.allocate(&host, &new).await });
    }
    let mut succeeded = 0;
    while let Some(answer) = calls.join_next().await {
        match answer.map_err(|error| Unmet::Broken(error.to_string()))? {
            Ok(()) => succeeded += 1,
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(succeeded == 1, "{succeeded} succeeded");
    Ok(())
}

async fn nothing_can_be_allocated_to_a_host_without_a_row(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::without_row(plane).await?;
    let answer = stage.pubsub.allocate(&stage.host, &allocation()?).await;
    let kind = answer.as_ref().err().map(PluginError::kind);
    ensure!(kind == Some(ErrorKind::NotFound), "the answer is {answer:?}");
    Ok(())
}
