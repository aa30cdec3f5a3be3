//! What a watch shows: everything there is, soon, and also when a subscription does not.

use std::{convert::Infallible, time::Duration};

use anyhow::{Context, Result};
use futures::StreamExt;
use host_core::{
    ErrorKind, InstanceName,
    pubsub::{Claim, DesiredState, InstanceStatus, MandelboxStatus, PubSub, Registered, StaleAfter},
};
use pubsub_hasura::HasuraPubSub;
use serde_json::json;

use crate::stage::{Stage, Watcher, beat, facts, id, told};

#[tokio::test]
async fn rows_that_come_together_and_rows_that_go_are_all_shown() -> Result<()> {
    Stage::in_both(async |stage| {
        let host = stage.host("h")?;
        let mut watcher = Watcher::new(&stage.connect().await?, &host);
        watcher.until("state", |_| true).await?;
        stage.database.sql(
            "INSERT INTO cloud.mandelbox_info SELECT 'm' || n, 'u', 'h', 'ALLOCATED', n, 's' FROM generate_series(1, 1000) n",
        )?;
        let state = watcher.until("thousand rows", |state| state.mandelboxes.len() == 1000).await?;
        // Oldest first.
        assert_eq!(state.mandelboxes[0].id.as_str(), "m1");
        stage.database.sql("DELETE FROM cloud.mandelbox_info WHERE mandelbox_id <> 'm7'")?;
        let state = watcher.until("one row", |state| state.mandelboxes.len() == 1).await?;
        assert_eq!(state.mandelboxes[0].id.as_str(), "m7");
        stage.database.sql("DELETE FROM cloud.instance_info")?;
        watcher.until("nothing", |state| state.instance.is_none() && state.mandelboxes.is_empty()).await?;
        assert!(watcher.error.is_none(), "{:?}", watcher.error);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_subscription_that_falls_silent_is_found_out_and_made_anew() -> Result<()> {
    Stage::in_both(async |stage| {
        let host = stage.host("h")?;
        let pubsub = stage.connect_with(json!({ "poll": "1500ms", "lag": "2s" })).await?;
        let mut watcher = Watcher::new(&pubsub, &host);
        watcher.until("state", |_| true).await?;
        stage.hasura.fault(|faults| faults.silent = true);
        stage.row(&host, "a", "ALLOCATED")?;
        // The watchdog has it, while the subscription still seems to live.
        watcher.row("a").await?;
        assert!(watcher.error.is_none(), "{:?}", watcher.error);
        let error = watcher.until_it_ends().await?;
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(told(&error).contains("fallen silent"), "{error:?}");
        stage.hasura.fault(|faults| faults.silent = false);
        stage.row(&host, "b", "ALLOCATED")?;
        watcher.row("b").await.map(drop)
    })
    .await
}

#[tokio::test]
async fn a_silent_subscription_is_found_out_also_among_alarms() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    let pubsub = stage.connect_with(json!({ "lag": "1s" })).await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    watcher.until("state", |_| true).await?;
    stage.hasura.fault(|faults| faults.silent = true);
    stage.row(&host, "a", "ALLOCATED")?;
    let error = tokio::select! {
        error = watcher.until_it_ends() => error?,
        never = alarms(&pubsub, &host) => match never? {},
    };
    assert!(told(&error).contains("fallen silent"), "{error:?}");
    Ok(())
}

/// Writes all the time, whereupon watches read all the time.
async fn alarms(pubsub: &HasuraPubSub, host: &InstanceName) -> Result<Infallible> {
    loop {
        pubsub.remove(host, &id("nobody")).await?;
    }
}

#[tokio::test]
async fn a_result_that_was_held_up_is_not_taken_for_what_there_is() -> Result<()> {
    Stage::in_both(async |stage| {
        let host = stage.host("h")?;
        let pubsub = stage.connect().await?;
        let mut watcher = Watcher::new(&pubsub, &host);
        watcher.until("state", |_| true).await?;
        stage.hasura.fault(|faults| faults.held = true);
        stage.row(&host, "a", "ALLOCATED")?;
        let is_held = async || (stage.hasura.held() > 0).then_some(());
        host_tests::wait::until("result that is held", crate::stage::PATIENCE, is_held).await?;
        stage.row(&host, "b", "ALLOCATED")?;
        // Something of this host's own has it read.
        pubsub.remove(&host, &id("nobody")).await?;
        watcher.row("b").await?;
        stage.hasura.fault(|faults| faults.held = false);
        stage.row(&host, "c", "ALLOCATED")?;
        let has = |state: &DesiredState, id: &str| state.mandelboxes.iter().any(|row| row.id.as_str() == id);
        let goes_on = |state: &DesiredState| {
            assert!(has(state, "b"), "a row that is there was shown as gone: {state:?}");
            has(state, "c")
        };
        watcher.until("next row", goes_on).await?;
        assert!(watcher.error.is_none(), "{:?}", watcher.error);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_end_of_one_is_not_that_of_the_next_one_with_its_id() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    stage.aged_row(&host, "a", "ALLOCATED", Duration::from_secs(60))?;
    let pubsub = stage.connect().await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    let before = watcher.row("a").await?;
    assert!(matches!(pubsub.claim(&host, &before).await?, Claim::Won(_)));
    // While it is being taken down its id is given away anew, and the host has seen so.
    stage.database.sql("DELETE FROM cloud.mandelbox_info")?;
    stage.row(&host, "a", "ALLOCATED")?;
    let is_anew = |state: &DesiredState| state.mandelboxes.iter().any(|row| !row.is_same(&before));
    let anew = watcher.until("the next one", is_anew).await?.mandelboxes.remove(0);
    pubsub.set_status(&host, &id("a"), MandelboxStatus::Dying).await?;
    pubsub.remove(&host, &id("a")).await?;
    assert_eq!(stage.status("a")?, "ALLOCATED");
    assert!(matches!(pubsub.claim(&host, &anew).await?, Claim::Won(_)));
    pubsub.remove(&host, &id("a")).await?;
    assert_eq!(stage.status("a")?, "");
    Ok(())
}

#[tokio::test]
async fn what_this_host_does_itself_is_read_at_once() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    stage.row(&host, "a", "ALLOCATED")?;
    let pubsub = stage.connect().await?;
    let mut states = pubsub.watch(&host).await?;
    let row = states.next().await.context("no state")??.mandelboxes.remove(0);
    stage.hasura.fault(|faults| faults.silent = true);
    pubsub.claim(&host, &row).await?;
    let state = states.next().await.context("no state")??;
    assert_eq!(state.mandelboxes[0].status, MandelboxStatus::Connecting);
    Ok(())
}

#[tokio::test]
async fn rows_of_nonsense_hide_no_other() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    stage
        .database
        .sql("INSERT INTO cloud.mandelbox_info VALUES ('../etc', 'u', 'h', 'ALLOCATED', 1, 's')")?;
    stage.database.sql("INSERT INTO cloud.mandelbox_info VALUES ('waits', 'u', 'h', 'WAITING', 1, 's')")?;
    stage.row(&host, "a", "ALLOCATED")?;
    let mut watcher = Watcher::new(&stage.connect().await?, &host);
    let state = watcher.until("state", |_| true).await?;
    assert_eq!(state.mandelboxes.len(), 1);
    // A typing error drains nobody.
    stage.database.sql("UPDATE cloud.instance_info SET status = 'RETIRED'")?;
    stage.row(&host, "b", "ALLOCATED")?;
    let state = watcher.until("row", |state| state.mandelboxes.len() == 2).await?;
    assert_eq!(state.instance, Some(InstanceStatus::Active));
    Ok(())
}

#[tokio::test]
async fn a_row_is_stale_from_when_this_host_first_saw_it() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    let (hour, limit) = (Duration::from_secs(3600), Duration::from_millis(300));
    let after = StaleAfter { allocated: limit, connecting: hour };
    // By the creation time alone it would be stale at once: the seed's own row is of 1970.
    stage.aged_row(&host, "old", "ALLOCATED", hour)?;
    stage.aged_row(&host, "worked-on", "ALLOCATED", hour)?;
    stage.aged_row(&host, "connecting", "CONNECTING", hour / 2)?;
    let pubsub = stage.connect().await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    let seen = tokio::time::Instant::now();
    watcher.row("old").await?;
    let ripe = async || {
        let removed = pubsub.remove_stale(&host, after, &[id("worked-on")]).await.ok()?;
        (!removed.is_empty()).then_some(removed)
    };
    let removed = host_tests::wait::until("stale row", crate::stage::PATIENCE, ripe).await?;
    assert_eq!(removed, [id("old")]);
    assert!(seen.elapsed() >= limit);
    Ok(())
}

#[tokio::test]
async fn of_two_machines_that_register_at_once_one_is_active() -> Result<()> {
    let stage = Stage::new().await?;
    for round in 0..10 {
        let name = format!("h{round}");
        stage.host_with(&name, "PRE_CONNECTION")?;
        let (one, other) = (stage.connect().await?, stage.connect().await?);
        let mine = facts(&name);
        let theirs = host_core::pubsub::InstanceFacts { cloud_id: "i-theirs".into(), ..facts(&name) };
        let beat = beat();
        let (mine, theirs) = tokio::join!(one.register(&mine, &beat), other.register(&theirs, &beat));
        let answers = [mine, theirs];
        let won = answers.iter().filter(|answer| matches!(answer, Ok(Registered::Active))).count();
        let lost = answers.iter().filter_map(|answer| answer.as_ref().err()).map(|error| error.kind());
        assert_eq!((won, lost.collect::<Vec<_>>()), (1, vec![ErrorKind::Conflict]), "{answers:?}");
    }
    Ok(())
}
