//! Claims: exactly one winner.

use std::sync::Arc;

use futures::FutureExt;
use host_core::{
    MandelboxId,
    pubsub::{Claim, MandelboxRow, MandelboxStatus},
};
use tokio::{sync::Barrier, task::JoinSet};

use super::{ControlPlane, DEADLINE, Stage, Step, new_id};
use crate::{
    behaviours, ensure,
    report::{Behaviour, Unmet, Verdict},
};

pub(super) fn behaviours() -> Vec<Behaviour<dyn ControlPlane>> {
    behaviours![dyn ControlPlane, DEADLINE;
        a_claim_moves_the_row_and_returns_it,
        a_claim_is_seen_by_watchers,
        of_fifty_concurrent_claims_one_wins,
        every_row_of_a_burst_is_won_once,
        only_an_allocated_row_can_be_claimed,
        an_absent_row_cannot_be_claimed,
        another_hosts_row_cannot_be_claimed,
        a_dropped_claim_leaves_a_whole_row,
    ]
}

async fn a_claim_moves_the_row_and_returns_it(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let row = stage.row(MandelboxStatus::Allocated).await?;
    let answer = stage.pubsub.claim(&stage.host, &row.id).await?;
    let claimed = MandelboxRow {
        status: MandelboxStatus::Connecting,
        ..row
    };
    ensure!(answer == Claim::Won(claimed.clone()), "the answer is {answer:?}");
    let written = plane.mandelbox(&claimed.id).await?;
    ensure!(written == Some(claimed.clone()), "the row is {written:?}");
    let again = stage.pubsub.claim(&stage.host, &claimed.id).await?;
    ensure!(again == Claim::Lost, "it was won twice: {again:?}");
    Ok(())
}

async fn a_claim_is_seen_by_watchers(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let row = stage.row(MandelboxStatus::Allocated).await?;
    let mut watcher = stage.watch().await?;
    stage.pubsub.claim(&stage.host, &row.id).await?;
    let connecting = |row: &MandelboxRow| row.status == MandelboxStatus::Connecting;
    watcher
        .until(|state| state.mandelboxes.iter().any(connecting))
        .await?;
    Ok(())
}

async fn of_fifty_concurrent_claims_one_wins(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let row = stage.row(MandelboxStatus::Allocated).await?;
    let won = claim_at_once(&stage, 50, std::slice::from_ref(&row)).await?;
    ensure!(won == [row.id], "there were {} winners", won.len());
    Ok(())
}

async fn every_row_of_a_burst_is_won_once(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let mut rows = Vec::new();
    for _ in 0..50 {
        rows.push(stage.row(MandelboxStatus::Allocated).await?);
    }
    let mut won = claim_at_once(&stage, 4, &rows).await?;
    won.sort();
    let mut all: Vec<_> = rows.into_iter().map(|row| row.id).collect();
    all.sort();
    ensure!(won == all, "of {} rows {} claims were won", all.len(), won.len());
    Ok(())
}

/// So many callers, each with a connection of its own, claim every row, all beginning at once. Returns what was won.
async fn claim_at_once(stage: &Stage<'_>, callers: usize, rows: &[MandelboxRow]) -> Step<Vec<MandelboxId>> {
    let start = Arc::new(Barrier::new(callers));
    let mut claims = JoinSet::new();
    for _ in 0..callers {
        let (pubsub, start, host) = (
            stage.plane.connect().await?,
            Arc::clone(&start),
            stage.host.clone(),
        );
        let rows = rows.to_vec();
        claims.spawn(async move {
            start.wait().await;
            let mut won = Vec::new();
            for row in rows {
                if let Claim::Won(row) = pubsub.claim(&host, &row.id).await? {
                    won.push(row.id);
                }
            }
            Ok::<_, Unmet>(won)
        });
    }
    let mut won = Vec::new();
    while let Some(claimed) = claims.join_next().await {
        won.extend(claimed.map_err(|error| Unmet::Broken(error.to_string()))??);
    }
    Ok(won)
}

async fn only_an_allocated_row_can_be_claimed(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    for status in &MandelboxStatus::ALL[1..] {
        let row = stage.row(*status).await?;
        let answer = stage.pubsub.claim(&stage.host, &row.id).await?;
        ensure!(
            answer == Claim::Lost,
            "a row in {status} was answered by {answer:?}"
        );
        let after = plane.mandelbox(&row.id).await?;
        ensure!(after == Some(row), "a row in {status} became {after:?}");
    }
    Ok(())
}

async fn an_absent_row_cannot_be_claimed(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let id = new_id()?;
    let answer = stage.pubsub.claim(&stage.host, &id).await?;
    ensure!(answer == Claim::Lost, "the answer is {answer:?}");
    let after = plane.mandelbox(&id).await?;
    ensure!(after.is_none(), "a row came into being: {after:?}");
    Ok(())
}

async fn another_hosts_row_cannot_be_claimed(plane: &dyn ControlPlane) -> Verdict {
    let (stage, other) = (Stage::new(plane).await?, Stage::new(plane).await?);
    let row = other.row(MandelboxStatus::Allocated).await?;
    let answer = stage.pubsub.claim(&stage.host, &row.id).await?;
    ensure!(answer == Claim::Lost, "the answer is {answer:?}");
    let after = plane.mandelbox(&row.id).await?;
    ensure!(after == Some(row), "the row became {after:?}");
    Ok(())
}

async fn a_dropped_claim_leaves_a_whole_row(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let row = stage.row(MandelboxStatus::Allocated).await?;
    // One poll starts it; then it is dropped, whether it took effect or not.
    drop(stage.pubsub.claim(&stage.host, &row.id).now_or_never());
    stage.pubsub.claim(&stage.host, &row.id).await?;
    let claimed = MandelboxRow {
        status: MandelboxStatus::Connecting,
        ..row
    };
    let after = plane.mandelbox(&claimed.id).await?;
    ensure!(after == Some(claimed), "the row is {after:?}");
    Ok(())
}
