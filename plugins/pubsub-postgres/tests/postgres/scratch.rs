//! The database goes away and comes back. Each test has a server of its own.

use std::{fs, time::Duration};

use anyhow::Result;
use host_core::{
    ErrorKind,
    pubsub::{Claim, MandelboxStatus, PubSub, Registered},
};
use host_tests::postgres::Cluster;
use serde_json::json;

use crate::stage::{Stage, Watcher, beat, facts, id, until_sql};

#[tokio::test]
async fn a_killed_database_is_told_everything_when_it_is_back() -> Result<()> {
    let stage = Stage::scratch().await?;
    let host = stage.host("h")?;
    let pubsub = stage.connect().await?;
    for (name, status) in [("a", "RUNNING"), ("b", "RUNNING"), ("c", "CONNECTING"), ("untouched", "RUNNING")]
    {
        stage.row(&host, name, status)?;
    }
    let mut watcher = Watcher::new(&pubsub, &host);
    watcher.row("c").await?;

    stage.cluster.kill().await?;
    assert_eq!(watcher.until_it_ends().await?.kind(), ErrorKind::Unavailable);
    pubsub.set_status(&host, &id("a"), MandelboxStatus::Dying).await?;
    pubsub.set_status(&host, &id("b"), MandelboxStatus::Dying).await?;
    pubsub.remove(&host, &id("b")).await?;
    pubsub.set_status(&host, &id("c"), MandelboxStatus::Running).await?;
    pubsub.set_status(&host, &id("c"), MandelboxStatus::Dying).await?;
    assert_eq!(pubsub.undelivered(), 5);
    assert_eq!(fs::read_to_string(stage.queue_file())?.lines().count(), 5);
    // What needs an answer has none.
    let claimed = pubsub.claim(&host, &row(&host)).await;
    assert_eq!(claimed.unwrap_err().kind(), ErrorKind::Unavailable);

    stage.cluster.start().await?;
    let is_told = |state: &host_core::pubsub::DesiredState| {
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
    Ok(())
}

fn row(_: &host_core::InstanceName) -> host_core::pubsub::MandelboxRow {
    host_core::pubsub::MandelboxRow {
        id: id("x"),
        user: "u".parse().unwrap(),
        session: "s".parse().unwrap(),
        app: None,
        status: MandelboxStatus::Allocated,
        created_ms: 1,
    }
}

#[tokio::test]
async fn a_death_outlives_the_service_that_saw_it() -> Result<()> {
    let stage = Stage::scratch().await?;
    let host = stage.host("h")?;
    stage.row(&host, "a", "RUNNING")?;
    let pubsub = stage.connect().await?;
    stage.cluster.kill().await?;
    pubsub.set_status(&host, &id("a"), MandelboxStatus::Dying).await?;
    pubsub.remove(&host, &id("a")).await?;
    drop(pubsub);

    stage.cluster.start().await?;
    let pubsub = stage.connect().await?;
    assert_eq!(pubsub.undelivered(), 2);
    // The first state already is what it was told.
    let mut watcher = Watcher::new(&pubsub, &host);
    let first = watcher.step().await.unwrap();
    assert!(first.mandelboxes.is_empty(), "{first:?}");
    watcher.until_delivered().await?;
    assert_eq!((stage.status("a")?.as_str(), stage.queue_file().exists()), ("", false));
    Ok(())
}

#[tokio::test]
async fn a_queued_death_is_not_that_of_the_next_one_with_its_name() -> Result<()> {
    let stage = Stage::scratch().await?;
    let host = stage.host("h")?;
    stage.aged_row(&host, "a", "RUNNING", Duration::from_secs(60))?;
    let pubsub = stage.connect().await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    watcher.row("a").await?;
    stage.cluster.kill().await?;
    watcher.until_it_ends().await?;
    pubsub.set_status(&host, &id("a"), MandelboxStatus::Dying).await?;
    pubsub.remove(&host, &id("a")).await?;

    stage.cluster.start().await?;
    stage.database.sql("DELETE FROM cloud.mandelbox_info")?;
    stage.row(&host, "a", "ALLOCATED")?;
    watcher.until_delivered().await?;
    let row = Watcher::new(&pubsub, &host).row("a").await?;
    assert_eq!(row.status, MandelboxStatus::Allocated);
    assert!(matches!(pubsub.claim(&host, &row).await?, Claim::Won(_)));
    Ok(())
}

#[tokio::test]
async fn a_database_that_does_not_answer_is_noticed_and_waited_for() -> Result<()> {
    let stage = Stage::scratch().await?;
    let host = stage.host("h")?;
    stage.row(&host, "a", "RUNNING")?;
    let pubsub = stage.connect_as(&stage.database.url(), json!({ "timeout": "300ms" })).await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    watcher.row("a").await?;
    // From here on the watch does nothing but wait.
    stage.row(&host, "b", "RUNNING")?;
    watcher.row("b").await?;

    stage.cluster.freeze()?;
    let error = pubsub.heartbeat(&host, &beat()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    // Long before the next poll: the heartbeat has raised the alarm.
    assert_eq!(watcher.until_it_ends().await?.kind(), ErrorKind::Timeout);
    pubsub.set_status(&host, &id("a"), MandelboxStatus::Dying).await?;
    assert_eq!(pubsub.undelivered(), 1);

    stage.cluster.thaw()?;
    watcher.until_delivered().await?;
    assert_eq!(stage.status("a")?, "DYING");
    Ok(())
}

#[tokio::test]
async fn a_heartbeat_that_was_missed_is_made_up_for() -> Result<()> {
    let stage = Stage::scratch().await?;
    let host = stage.host("h")?;
    let pubsub = stage.connect().await?;
    stage.cluster.kill().await?;
    let late = beat();
    assert_eq!(pubsub.heartbeat(&host, &late).await.unwrap_err().kind(), ErrorKind::Unavailable);
    stage.cluster.start().await?;
    // The next one is a minute away, so it is the watch that writes it.
    let sql = "SELECT last_updated_utc_unix_ms FROM cloud.instance_info";
    let expected = late.at_ms.to_string();
    Watcher::new(&pubsub, &host).meanwhile(until_sql(&stage.database, sql, &expected)).await
}

#[tokio::test]
async fn an_absent_database_is_an_error_that_keeps_the_password() -> Result<()> {
    let stage = Stage::scratch().await?;
    stage.cluster.kill().await?;
    let url = stage.database.url_of("postgres:hunter2");
    let error = stage.connect_as(&url, json!({})).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let shown = format!("{} {error:?}", host_core::chain(&error));
    // A server killed a moment ago may still accept the connection and reset it.
    assert!(shown.contains("the database is not reached") && !shown.contains("hunter2"), "{shown}");
    Ok(())
}

#[tokio::test]
async fn connections_that_were_cut_are_replaced() -> Result<()> {
    let stage = Stage::scratch().await?;
    let host = stage.host("h")?;
    stage.row(&host, "a", "ALLOCATED")?;
    let pubsub = stage.connect().await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    let mut row = watcher.row("a").await?;
    for _ in 0..5 {
        stage
            .cluster
            .postgres()
            .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'test%'")?;
        pubsub.heartbeat(&host, &beat()).await?;
        assert!(matches!(pubsub.claim(&host, &row).await?, Claim::Won(_)));
        pubsub.set_status(&host, &row.id, MandelboxStatus::Running).await?;
        watcher.until_it_ends().await?;
        watcher.until_status("a", MandelboxStatus::Running).await?;
        stage.database.sql("UPDATE cloud.mandelbox_info SET status = 'ALLOCATED'")?;
        row = watcher.row("a").await?;
        assert_eq!(row.status, MandelboxStatus::Allocated);
    }
    Ok(())
}

/// A password that was changed too early, for example.
#[tokio::test]
async fn a_host_that_is_not_believed_for_a_while_forgets_no_death() -> Result<()> {
    let stage = Stage::scratch().await?;
    let host = stage.host("h")?;
    stage.row(&host, "a", "RUNNING")?;
    stage.database.sql("CREATE ROLE a_host SUPERUSER LOGIN")?;
    let pubsub = stage.connect_as(&stage.database.url_of("a_host"), json!({})).await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    watcher.row("a").await?;
    let everybody = stage.cluster.postgres();
    stage.database.sql("ALTER ROLE a_host NOLOGIN")?;
    everybody.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'a_host'")?;
    watcher.until_it_ends().await?;
    pubsub.set_status(&host, &id("a"), MandelboxStatus::Dying).await?;
    assert_eq!(pubsub.watch(&host).await.err().map(|error| error.kind()), Some(ErrorKind::Denied));
    assert_eq!((pubsub.undelivered(), stage.status("a")?.as_str()), (1, "RUNNING"));
    stage.database.sql("ALTER ROLE a_host LOGIN")?;
    watcher.until_delivered().await?;
    assert_eq!(stage.status("a")?, "DYING");
    Ok(())
}

#[tokio::test]
async fn a_restart_in_the_middle_of_a_registration_leaves_the_row_whole() -> Result<()> {
    let stage = Stage::scratch().await?;
    stage.host_with("h", "PRE_CONNECTION", 1)?;
    let pubsub = stage.connect().await?;
    // Another session holds the row, so the registration is under way.
    let lock = "BEGIN; SELECT FROM cloud.instance_info FOR UPDATE; SELECT pg_sleep(60)";
    let database = stage.database.clone();
    let blocker = std::thread::spawn(move || database.sql(lock));
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    until_sql(&stage.database, waiting, "1").await?;
    let facts = facts("h");
    let (registered, killed) = tokio::join!(async { pubsub.register(&facts, &beat()).await }, async {
        let blocked = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted";
        until_sql(&stage.database, blocked, "t").await?;
        stage.cluster.kill().await
    });
    killed?;
    assert_eq!(registered.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(blocker.join().unwrap().is_err());
    stage.cluster.start().await?;
    assert_eq!(stage.database.sql("SELECT status FROM cloud.instance_info")?, "PRE_CONNECTION");
    assert_eq!(pubsub.register(&facts, &beat()).await?, Registered::Active);
    Ok(())
}

#[tokio::test]
async fn a_queue_that_cannot_be_written_is_told_to_the_caller() -> Result<()> {
    let stage = Stage::on(Cluster::scratch().await?).await?;
    let host = stage.host("h")?;
    let pubsub = stage.connect().await?;
    stage.cluster.kill().await?;
    // Even root cannot write a file where a directory is.
    fs::create_dir(stage.queue_file())?;
    let told = pubsub.remove(&host, &id("a")).await;
    assert_eq!(told.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(pubsub.undelivered(), 0);
    Ok(())
}
