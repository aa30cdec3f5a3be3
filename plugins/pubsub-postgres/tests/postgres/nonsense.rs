//! Rows and schemas that are not as they should be.

use std::time::Duration;

use anyhow::Result;
use host_core::{
    ErrorKind,
    pubsub::{Claim, InstanceStatus, MandelboxStatus, PubSub, StaleAfter},
};

use crate::stage::{Stage, Watcher, beat, facts, id};

#[tokio::test]
async fn rows_of_nonsense_are_ignored_and_end_as_stale() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    for values in [
        "('../../etc/passwd', 'u', 'h', 'ALLOCATED', 1, 's')",
        "('', 'u', 'h', 'ALLOCATED', 1, 's')",
        "(repeat('x', 5000), 'u', 'h', 'ALLOCATED', -9223372036854775808, 's')",
        "('bad-user', E'\\x01', 'h', 'ALLOCATED', 9223372036854775807, 's')",
        "('bad-session', 'u', 'h', 'CONNECTING', 0, '')",
        "('waiting', 'u', 'h', 'WAITING', 1, 's')",
        "('bad-app', 'u', 'h', 'ALLOCATED', 1, 's', '../app')",
        "('good', 'u', 'h', 'ALLOCATED', 1, 's', '')",
    ] {
        stage.database.sql(&format!("INSERT INTO cloud.mandelbox_info VALUES {values}"))?;
    }
    let pubsub = stage.connect().await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    let state = watcher.step().await.unwrap();
    let [row] = state.mandelboxes.as_slice() else { panic!("{state:?}") };
    assert_eq!(row.id, id("good"));
    assert!(matches!(pubsub.claim(&host, row).await?, Claim::Won(_)));
    drop(watcher);

    let after = StaleAfter { allocated: Duration::from_secs(10), connecting: Duration::from_secs(90) };
    pubsub.remove_stale(&host, after, &[id("good")]).await?;
    let left = stage
        .database
        .sql("SELECT string_agg(mandelbox_id, ' ' ORDER BY mandelbox_id) FROM cloud.mandelbox_info")?;
    assert_eq!(left, "bad-user good waiting", "created in the future, worked on, of an unknown status");
    Ok(())
}

#[tokio::test]
async fn an_unknown_status_of_the_host_is_not_the_loss_of_its_row() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    let pubsub = stage.connect().await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    watcher.step().await;
    stage.database.sql("UPDATE cloud.instance_info SET status = 'RETIRED'")?;
    let state = watcher.step().await.unwrap();
    assert_eq!(state.instance, Some(InstanceStatus::Active));
    let error = pubsub.register(&facts("h"), &beat()).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("RETIRED"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_schema_without_migrations_or_a_column_short_is_refused_with_the_remedy() -> Result<()> {
    let stage = Stage::empty(host_tests::postgres::Cluster::shared().await?)?;
    let error = stage.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("db migrate"), "{error}");

    let stage = Stage::new().await?;
    stage.database.sql("ALTER TABLE cloud.mandelbox_info DROP COLUMN session_id")?;
    let error = stage.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let text = error.to_string();
    assert!(text.contains("cloud.mandelbox_info.session_id") && text.contains("db migrate"), "{text}");

    let stage = Stage::new().await?;
    stage.database.sql("DELETE FROM cloud.schema_migrations WHERE version > 3")?;
    let error = stage.connect().await.unwrap_err();
    assert!(error.to_string().contains("at version 3"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_column_that_goes_under_a_running_host_is_named_and_nothing_is_lost() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    stage.row(&host, "a", "RUNNING")?;
    let pubsub = stage.connect().await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    watcher.row("a").await?;
    stage.database.sql("ALTER TABLE cloud.mandelbox_info RENAME COLUMN status TO state")?;
    let told = pubsub.set_status(&host, &id("a"), MandelboxStatus::Dying).await;
    let error = told.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("status") && error.to_string().contains("db migrate"), "{error}");
    // The host tries again until it works.
    stage.database.sql("ALTER TABLE cloud.mandelbox_info RENAME COLUMN state TO status")?;
    pubsub.set_status(&host, &id("a"), MandelboxStatus::Dying).await?;
    watcher.until_status("a", MandelboxStatus::Dying).await
}

#[tokio::test]
async fn a_schema_that_is_ahead_will_do() -> Result<()> {
    let stage = Stage::new().await?;
    stage.database.sql(
        "ALTER TABLE cloud.mandelbox_info ADD COLUMN mood text NOT NULL DEFAULT 'good'; \
         ALTER TABLE cloud.instance_info ADD COLUMN colour text; \
         INSERT INTO cloud.schema_migrations (version, name, digest) VALUES (99, '099_future', '')",
    )?;
    stage.host_with("h", "PRE_CONNECTION", 1)?;
    let pubsub = stage.connect().await?;
    pubsub.register(&facts("h"), &beat()).await?;
    let host = "h".parse()?;
    stage.database.sql(
        "INSERT INTO cloud.mandelbox_info (mandelbox_id, user_id, instance_name, status, \
         creation_time_utc_unix_ms, session_id) VALUES ('a', 'u', 'h', 'ALLOCATED', 1, 's')",
    )?;
    let row = Watcher::new(&pubsub, &host).row("a").await?;
    assert!(matches!(pubsub.claim(&host, &row).await?, Claim::Won(_)));
    Ok(())
}
