//! The server, or the database behind it, goes away and comes back.

use std::fs;

use anyhow::{Context, Result};
use hasura_stand_in::Faults;
use host_core::{
    ErrorKind,
    pubsub::{Claim, DesiredState, MandelboxStatus, PubSub, Registered},
};
use serde_json::json;

use crate::stage::{Stage, Watcher, beat, facts, id, quick, told};

#[tokio::test]
async fn a_killed_server_is_told_everything_when_it_is_back() -> Result<()> {
    let mut stage = Stage::new().await?;
    let host = stage.host("h")?;
    for (name, status) in [("a", "RUNNING"), ("b", "RUNNING"), ("c", "CONNECTING"), ("untouched", "RUNNING")]
    {
        stage.row(&host, name, status)?;
    }
    let pubsub = stage.connect().await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    let row = watcher.row("c").await?;

    stage.hasura.stop().await;
    assert_eq!(watcher.until_it_ends().await?.kind(), ErrorKind::Unavailable);
    pubsub.set_status(&host, &id("a"), MandelboxStatus::Dying).await?;
    pubsub.set_status(&host, &id("b"), MandelboxStatus::Dying).await?;
    pubsub.remove(&host, &id("b")).await?;
    pubsub.set_status(&host, &id("c"), MandelboxStatus::Running).await?;
    pubsub.set_status(&host, &id("c"), MandelboxStatus::Dying).await?;
    assert_eq!(pubsub.undelivered(), 5);
    assert_eq!(fs::read_to_string(stage.queue_file())?.lines().count(), 5);
    // What needs an answer has none.
    assert_eq!(pubsub.claim(&host, &row).await.unwrap_err().kind(), ErrorKind::Unavailable);
    let late = beat();
    assert_eq!(pubsub.heartbeat(&host, &late).await.unwrap_err().kind(), ErrorKind::Unavailable);

    stage.hasura = stage.hasura.restart().await?;
    let is_told = |state: &DesiredState| {
        let of =
            |name: &str| state.mandelboxes.iter().find(|row| row.id.as_str() == name).map(|row| row.status);
        let dying = Some(MandelboxStatus::Dying);
        (of("a"), of("b"), of("c"), of("untouched")) == (dying, None, dying, Some(MandelboxStatus::Running))
    };
    // The very first one, although nothing is delivered yet.
    let first = watcher.until("state", |_| true).await?;
    assert!(is_told(&first), "{first:?}");
    watcher.until_delivered().await?;
    assert!(!stage.queue_file().exists());
    let told = "SELECT string_agg(mandelbox_id || ' ' || status, ', ' ORDER BY mandelbox_id) FROM cloud.mandelbox_info";
    assert_eq!(stage.database.sql(told)?, "a DYING, c DYING, untouched RUNNING");
    // The next heartbeat is a minute away, so it was the watch that wrote the one that was missed.
    let beat = stage.database.sql("SELECT last_updated_utc_unix_ms FROM cloud.instance_info")?;
    assert_eq!(beat, late.at_ms.to_string());
    Ok(())
}

#[tokio::test]
async fn a_death_outlives_the_service_that_saw_it() -> Result<()> {
    let mut stage = Stage::new().await?;
    let host = stage.host("h")?;
    stage.row(&host, "a", "RUNNING")?;
    let pubsub = stage.connect().await?;
    stage.hasura.stop().await;
    pubsub.set_status(&host, &id("a"), MandelboxStatus::Dying).await?;
    pubsub.remove(&host, &id("a")).await?;
    drop(pubsub);

    stage.hasura = stage.hasura.restart().await?;
    let pubsub = stage.connect().await?;
    assert_eq!(pubsub.undelivered(), 2);
    // The first state already is what it was told.
    let mut watcher = Watcher::new(&pubsub, &host);
    let first = watcher.step().await.context("no state")?;
    assert!(first.mandelboxes.is_empty(), "{first:?}");
    watcher.until_delivered().await?;
    assert_eq!((stage.status("a")?.as_str(), stage.queue_file().exists()), ("", false));
    Ok(())
}

#[tokio::test]
async fn a_queued_death_is_not_that_of_the_next_one_with_its_name() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    stage.aged_row(&host, "a", "RUNNING", std::time::Duration::from_secs(60))?;
    let pubsub = stage.connect().await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    watcher.row("a").await?;
    stage.hasura.fault(|faults| faults.no_database = true);
    watcher.until_it_ends().await?;
    pubsub.set_status(&host, &id("a"), MandelboxStatus::Dying).await?;
    pubsub.remove(&host, &id("a")).await?;
    assert_eq!(pubsub.undelivered(), 2);
    stage.database.sql("DELETE FROM cloud.mandelbox_info")?;
    stage.row(&host, "a", "ALLOCATED")?;
    stage.hasura.fault(|faults| faults.no_database = false);
    watcher.until_delivered().await?;
    let row = Watcher::new(&pubsub, &host).row("a").await?;
    assert_eq!(row.status, MandelboxStatus::Allocated);
    assert!(matches!(pubsub.claim(&host, &row).await?, Claim::Won(_)));
    Ok(())
}

#[tokio::test]
async fn an_absent_server_is_an_error_that_keeps_the_secret() -> Result<()> {
    let stage = Stage::new().await?;
    stage.hasura.stop().await;
    let error = stage.connect_with(json!({ "admin_secret": "hunter2" })).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let shown = format!("{} {error:?}", told(&error));
    assert!(shown.contains("refused") && !shown.contains("hunter2"), "{shown}");
    Ok(())
}

#[tokio::test]
async fn a_row_that_is_locked_keeps_no_other_from_being_seen() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    stage.row(&host, "a", "RUNNING")?;
    let pubsub = stage.connect_with(json!({ "timeout": "1s" })).await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    watcher.row("a").await?;
    let held = stage.lock("a").await?;
    pubsub.set_status(&host, &id("a"), MandelboxStatus::Dying).await?;
    stage.row(&host, "b", "ALLOCATED")?;
    watcher.row("b").await?;
    // Nor is another's end kept from being told.
    pubsub.set_status(&host, &id("b"), MandelboxStatus::Dying).await?;
    assert_eq!(stage.status("b")?, "DYING");
    stage.database.sql("UPDATE cloud.mandelbox_info SET status = 'ALLOCATED' WHERE mandelbox_id = 'b'")?;
    // Nor is it kept from a watch that begins now, which shows what was accepted as done.
    let row = Watcher::new(&pubsub, &host).row("b").await?;
    Watcher::new(&pubsub, &host).until_status("a", MandelboxStatus::Dying).await?;
    assert!(matches!(pubsub.claim(&host, &row).await?, Claim::Won(_)));
    assert_eq!((pubsub.undelivered(), stage.status("a")?.as_str()), (1, "RUNNING"));
    drop(held);
    watcher.until_delivered().await?;
    assert_eq!(stage.status("a")?, "DYING");
    Ok(())
}

/// What is said while metadata is inconsistent, or by a proxy during a deployment, is about no status.
#[tokio::test]
async fn what_passes_is_queued() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    stage.row(&host, "a", "CONNECTING")?;
    let file = stage.state.path().join("token");
    fs::write(&file, "t")?;
    stage.hasura.add_token("t", hasura_stand_in::Token { instance: "h".to_owned(), expires: None });
    let pubsub = stage.connect_with(json!({ "token_file": file })).await?;
    for begin in [
        |faults: &mut Faults| faults.inconsistent = true,
        |faults: &mut Faults| faults.proxy = Some(404),
        |faults: &mut Faults| faults.proxy = Some(200),
        |_: &mut Faults| {},
    ] {
        stage.hasura.fault(begin);
        if stage.hasura.is_well() {
            fs::write(&file, "")?;
        }
        pubsub.set_status(&host, &id("a"), MandelboxStatus::Running).await?;
        pubsub.heartbeat(&host, &beat()).await.unwrap_err();
        assert_eq!((pubsub.undelivered(), stage.status("a")?.as_str()), (1, "CONNECTING"));
        stage.hasura.fault(|faults| *faults = Faults::default());
        fs::write(&file, "t")?;
        Watcher::new(&pubsub, &host).until_delivered().await?;
        assert_eq!(stage.status("a")?, "RUNNING");
        stage.database.sql("UPDATE cloud.mandelbox_info SET status = 'CONNECTING'")?;
    }
    Ok(())
}

/// Each has a database server of its own.
mod scratch {
    use host_tests::postgres::Cluster;

    use super::*;

    #[tokio::test]
    async fn a_database_that_is_killed_and_comes_back_is_survived() -> Result<()> {
        let stage = Stage::on(Cluster::scratch().await?, quick()).await?;
        let host = stage.host("h")?;
        stage.row(&host, "a", "RUNNING")?;
        let pubsub = stage.connect().await?;
        let mut watcher = Watcher::new(&pubsub, &host);
        watcher.row("a").await?;
        stage.cluster.kill().await?;
        // The results carry errors, while the subscriptions stay.
        assert_eq!(watcher.until_it_ends().await?.kind(), ErrorKind::Unavailable);
        pubsub.set_status(&host, &id("a"), MandelboxStatus::Dying).await?;
        assert_eq!(pubsub.undelivered(), 1);
        stage.cluster.start().await?;
        watcher.until_delivered().await?;
        assert_eq!(stage.status("a")?, "DYING");
        assert_eq!(pubsub.register(&facts("h"), &beat()).await?, Registered::Active);
        Ok(())
    }
}
