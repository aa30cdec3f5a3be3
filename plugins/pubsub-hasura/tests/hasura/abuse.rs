//! Servers, or what is between, that send too much, too little or nonsense. Each is survived, and told.

use std::time::Duration;

use anyhow::{Context, Result};
use hasura_stand_in::Setup;
use host_core::{ErrorKind, pubsub::PubSub};
use serde_json::json;
use tokio::net::TcpListener;

use crate::stage::{PROTOCOLS, Stage, Watcher, beat, quick, told};

#[tokio::test]
async fn a_message_that_is_too_large_is_not_taken() -> Result<()> {
    Stage::in_both(async |stage| {
        let host = stage.host("h")?;
        let mut watcher = Watcher::new(&stage.connect().await?, &host);
        watcher.until("state", |_| true).await?;
        stage.hasura.send_all(&"x".repeat(1_048_577));
        let error = watcher.until_it_ends().await?;
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(told(&error).contains("more than 1048576 bytes"), "{error:?}");

        // What is just not too large is read, also when it is no use.
        stage.row(&host, "a", "ALLOCATED")?;
        watcher.row("a").await?;
        let padded = json!({ "type": "ka", "payload": "x".repeat(1_000_000) });
        stage.hasura.send_all(&padded.to_string());
        stage.row(&host, "b", "ALLOCATED")?;
        watcher.row("b").await?;
        assert_eq!(stage.hasura.upgrades(), 2);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_not_taken() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    let pubsub = stage.connect_with(json!({ "timeout": "20s" })).await?;
    stage.database.sql(
        "INSERT INTO cloud.mandelbox_info SELECT 'm' || n, repeat('u', 5000), 'h', 'ALLOCATED', n, 's' \
         FROM generate_series(1, 300) n",
    )?;
    let error = pubsub.watch(&host).await.err().context("it watches")?;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(told(&error).contains("more than 1048576 bytes"), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn a_flood_ends_the_watch() -> Result<()> {
    Stage::in_both(async |stage| {
        let host = stage.host("h")?;
        let mut watcher = Watcher::new(&stage.connect().await?, &host);
        watcher.until("state", |_| true).await?;
        stage.hasura.fault(|faults| faults.flood = true);
        let error = watcher.until_it_ends().await?;
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(told(&error).contains("floods"), "{error:?}");
        stage.hasura.fault(|faults| faults.flood = false);
        stage.row(&host, "a", "ALLOCATED")?;
        watcher.row("a").await.map(drop)
    })
    .await
}

#[tokio::test]
async fn a_server_that_falls_mute_is_noticed_and_waited_for() -> Result<()> {
    Stage::in_both(async |stage| {
        let host = stage.host("h")?;
        let pubsub = stage.connect_with(json!({ "poll": "20s", "timeout": "500ms" })).await?;
        let mut watcher = Watcher::new(&pubsub, &host);
        watcher.until("state", |_| true).await?;
        stage.hasura.fault(|faults| faults.mute = true);
        let error = pubsub.heartbeat(&host, &beat()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        // Long before the next poll: the heartbeat has raised the alarm.
        assert_eq!(watcher.until_it_ends().await?.kind(), ErrorKind::Timeout);
        let error = pubsub.watch(&host).await.err().context("it watches")?;
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(told(&error).contains("did not answer within 500ms"), "{error:?}");
        stage.hasura.fault(|faults| faults.mute = false);
        watcher.until("state", |_| true).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn a_websocket_that_falls_mute_alone_is_noticed() -> Result<()> {
    for protocol in PROTOCOLS {
        let setup = Setup { keepalive: Duration::from_millis(300), ..quick() };
        let stage = Stage { protocol, ..Stage::with(setup).await? };
        let host = stage.host("h")?;
        let pubsub = stage.connect_with(json!({ "poll": "3s", "timeout": "500ms" })).await?;
        let mut watcher = Watcher::new(&pubsub, &host);
        watcher.until("state", |_| true).await?;
        stage.hasura.fault(|faults| faults.deaf = true);
        let error = watcher.until_it_ends().await?;
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(told(&error).contains("was silent for 1.5s"), "{error:?}");
    }
    Ok(())
}

#[tokio::test]
async fn who_accepts_and_says_nothing_is_given_up() -> Result<()> {
    let stage = Stage::new().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/v1/graphql", listener.local_addr()?);
    let error = stage.connect_with(json!({ "url": url, "timeout": "300ms" })).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(told(&error).contains("did not answer within 300ms"), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn nonsense_ends_the_watch() -> Result<()> {
    Stage::in_both(async |stage| {
        let host = stage.host("h")?;
        let mut watcher = Watcher::new(&stage.connect().await?, &host);
        for text in ["", "{", "[]", "{\"type\":7}", "{\"type\":\"next\",\"id\":\"1\",\"payload\":7}"] {
            watcher.until("state", |_| true).await?;
            stage.hasura.send_all(text);
            let error = watcher.until_it_ends().await?;
            assert!(told(&error).contains("cannot be read"), "{text}: {error:?}");
        }
        watcher.until("state", |_| true).await.map(drop)
    })
    .await
}
