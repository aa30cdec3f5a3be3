//! Claims: exactly one winner.

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use host_core::{
    MandelboxId,
    pubsub::{Claim, MandelboxRow, MandelboxStatus},
};
use tokio::{sync::Barrier, task::JoinSet};

use super::{ControlPlane, DEADLINE, Stage, Step, row, valid};
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
        a_claim_of_an_id_given_away_anew_is_lost,
        a_dropped_claim_leaves_a_whole_row,
    ]
}

async fn a_claim_moves_the_row_and_returns_it(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let row = stage.row(MandelboxStatus::Allocated).await?;
    let answer = stage.pubsub.claim(&stage.host, &row).await?;
    let claimed = MandelboxRow { status: MandelboxStatus::Connecting, ..row };
    ensure!(answer == Claim::Won(claimed.clone()), "the answer is {answer:?}");
    let written = plane.mandelbox(&claimed.id).await?;
    ensure!(written == Some(claimed.clone()), "the row is {written:?}");
    let again = stage.pubsub.claim(&stage.host, &claimed).await?;
    ensure!(again == Claim::Lost, "it was won twice: {again:?}");
    Ok(())
}

async fn a_claim_is_seen_by_watchers(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let row = stage.row(MandelboxStatus::Allocated).await?;
    let mut watcher = stage.watch().await?;
    stage.pubsub.claim(&stage.host, &row).await?;
    let connecting = |row: &MandelboxRow| row.status == MandelboxStatus::Connecting;
    watcher.until(|state| state.mandelboxes.iter().any(connecting)).await?;
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
        let (pubsub, start, host) = (stage.plane.connect().await?, Arc::clone(&start), stage.host.clone());
        let rows = rows.to_vec();
        claims.spawn(async move {
            start.wait().await;
            let mut won = Vec::new();
            for row in rows {
                if let Claim::Won(row) = pubsub.claim(&host, &row).await? {
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
        // As the caller saw it before it moved on.
        let seen = MandelboxRow { status: MandelboxStatus::Allocated, ..row.clone() };
        let answer = stage.pubsub.claim(&stage.host, &seen).await?;
        ensure!(answer == Claim::Lost, "a row in {status} was answered by {answer:?}");
        let after = plane.mandelbox(&row.id).await?;
        ensure!(after == Some(row), "a row in {status} became {after:?}");
    }
    Ok(())
}

async fn an_absent_row_cannot_be_claimed(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let absent = row(MandelboxStatus::Allocated, Duration::ZERO)?;
    let answer = stage.pubsub.claim(&stage.host, &absent).await?;
    ensure!(answer == Claim::Lost, "the answer is {answer:?}");
    let after = plane.mandelbox(&absent.id).await?;
    ensure!(after.is_none(), "a row came into being: {after:?}");
    Ok(())
}

async fn another_hosts_row_cannot_be_claimed(plane: &dyn ControlPlane) -> Verdict {
    let (stage, other) = (Stage::new(plane).await?, Stage::new(plane).await?);
    let row = other.row(MandelboxStatus::Allocated).await?;
    let answer = stage.pubsub.claim(&stage.host, &row).await?;
    ensure!(answer == Claim::Lost, "the answer is {answer:?}");
    let after = plane.mandelbox(&row.id).await?;
    ensure!(after == Some(row), "the row became {after:?}");
    Ok(())
}

async fn a_claim_of_an_id_given_away_anew_is_lost(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    // Each of these alone makes it another one's.
    let changes: [fn(&mut MandelboxRow) -> Step<()>; 3] = [
        |row| valid("user-2").map(|user| row.user = user),
        |row| valid("session-2").map(|session| row.session = session),
        |row| {
            row.created_ms += 1;
            Ok(())
        },
    ];
    for change in changes {
        let old = stage.row(MandelboxStatus::Allocated).await?;
        plane.delete_mandelbox(&old.id).await?;
        let mut new = old.clone();
        change(&mut new)?;
        plane.insert_mandelbox(&stage.host, &new).await?;

        let answer = stage.pubsub.claim(&stage.host, &old).await?;
        ensure!(answer == Claim::Lost, "{new:?} was won with {old:?}");
        let after = plane.mandelbox(&new.id).await?;
        ensure!(after.as_ref() == Some(&new), "{new:?} became {after:?}");

        let answer = stage.pubsub.claim(&stage.host, &new).await?;
        let won = MandelboxRow { status: MandelboxStatus::Connecting, ..new };
        ensure!(answer == Claim::Won(won), "the new one's answer is {answer:?}");
    }
    Ok(())
}

async fn a_dropped_claim_leaves_a_whole_row(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let row = stage.row(MandelboxStatus::Allocated).await?;
    // One poll starts it; then it is dropped, whether it took effect or not.
    drop(stage.pubsub.claim(&stage.host, &row).now_or_never());
    stage.pubsub.claim(&stage.host, &row).await?;
    let claimed = MandelboxRow { status: MandelboxStatus::Connecting, ..row };
    let after = plane.mandelbox(&claimed.id).await?;
    ensure!(after == Some(claimed), "the row is {after:?}");
    Ok(())
}
