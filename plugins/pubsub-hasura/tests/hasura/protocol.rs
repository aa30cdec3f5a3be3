//! How the server speaks: handshakes, frames, errors in every form, every way to end.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use hasura_stand_in::Setup;
use host_core::{
    ErrorKind,
    pubsub::{Claim, InstanceStatus, MandelboxStatus, PubSub},
};
use serde_json::{Value, json};

use crate::stage::{Stage, Watcher, beat, id, quick, told};

#[tokio::test]
async fn each_subprotocol_is_spoken_as_it_is_meant() -> Result<()> {
    for (protocol, subscribe) in [("graphql-transport-ws", "subscribe"), ("graphql-ws", "start")] {
        // The first keep-alive comes before the acknowledgement, and more of them soon after.
        let setup = Setup { keepalive: Duration::from_millis(100), ..quick() };
        let stage = Stage { protocol, ..Stage::with(setup).await? };
        let host = stage.host("h")?;
        let mut watcher = Watcher::new(&stage.connect().await?, &host);
        stage.row(&host, "a", "ALLOCATED")?;
        watcher.row("a").await?;
        let heard: Vec<Value> =
            stage.hasura.heard().iter().map(|frame| serde_json::from_str(frame)).collect::<Result<_, _>>()?;
        let of = |kind: &str| heard.iter().filter(|frame| frame["type"] == kind).collect::<Vec<_>>();
        let init = of("connection_init");
        let headers = &init.first().context("no init")?["payload"]["headers"];
        assert_eq!(*headers, json!({ "x-hasura-admin-secret": "hasurasecret" }));
        let begun = of(subscribe);
        assert_eq!(begun.len(), 2, "{heard:?}");
        assert_ne!(begun[0]["id"], begun[1]["id"]);
        assert!(begun[0]["payload"]["query"].is_string() && begun[0]["payload"]["variables"].is_object());
        // Pings are answered, and what has no ping needs no answer.
        assert_eq!(of("pong").is_empty(), protocol == "graphql-ws", "{heard:?}");
        let strange = heard.iter().any(|frame| {
            !["connection_init", subscribe, "pong"].contains(&frame["type"].as_str().unwrap_or_default())
        });
        assert!(!strange, "{heard:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_old_server_is_spoken_to_in_the_legacy_subprotocol() -> Result<()> {
    let stage = Stage::with(Setup { is_old: true, ..quick() }).await?;
    let host = stage.host("h")?;
    let mut watcher = Watcher::new(&stage.connect().await?, &host);
    stage.row(&host, "a", "ALLOCATED")?;
    watcher.row("a").await?;
    assert_eq!(stage.hasura.upgrades(), 2, "asked for the newer one first");
    stage.hasura.cut();
    watcher.until_it_ends().await?;
    watcher.row("a").await?;
    assert_eq!(stage.hasura.upgrades(), 3, "and remembered");

    let strict = stage.connect_with(json!({ "protocol": "graphql-transport-ws" })).await?;
    let error = strict.watch(&host).await.err().context("it watches")?;
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(told(&error).contains("does not speak graphql-transport-ws"), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn an_error_is_told_in_whatever_form_it_comes() -> Result<()> {
    Stage::in_both(async |stage| {
        let host = stage.host("h")?;
        let mut watcher = Watcher::new(&stage.connect().await?, &host);
        let error =
            json!({ "extensions": { "path": "$", "code": "validation-failed" }, "message": "the field" });
        for payload in [json!([error]), json!({ "errors": [error] }), error.clone(), json!("the field")] {
            watcher.until("state", |_| true).await?;
            let frame = json!({ "type": "error", "id": "1", "payload": payload });
            stage.hasura.send_all(&frame.to_string());
            let error = watcher.until_it_ends().await?;
            assert!(told(&error).contains("the field"), "{payload}: {error:?}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_is_not_known_is_ignored() -> Result<()> {
    Stage::in_both(async |stage| {
        let host = stage.host("h")?;
        let mut watcher = Watcher::new(&stage.connect().await?, &host);
        watcher.until("state", |_| true).await?;
        for frame in [
            json!({ "type": "connection_ack" }),
            json!({ "type": "connection_news", "payload": [1, 2] }),
            json!({ "type": "ka" }),
            json!({ "type": "pong", "payload": null }),
            json!({ "type": "next", "id": "99", "payload": { "data": null } }),
        ] {
            stage.hasura.send_all(&frame.to_string());
        }
        stage.row(&host, "a", "ALLOCATED")?;
        watcher.row("a").await?;
        assert_eq!((stage.hasura.upgrades(), watcher.error.is_none()), (1, true), "{:?}", watcher.error);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn every_close_is_survived() -> Result<()> {
    Stage::in_both(async |stage| {
        let host = stage.host("h")?;
        stage.row(&host, "a", "RUNNING")?;
        let mut watcher = Watcher::new(&stage.connect().await?, &host);
        for code in [1000, 1001, 1011, 1012, 4400, 4408] {
            watcher.row("a").await?;
            stage.hasura.close_all(code, &format!("{code}: so it is"));
            let error = watcher.until_it_ends().await?;
            let expected = if code == 4408 { ErrorKind::Timeout } else { ErrorKind::Unavailable };
            assert_eq!(error.kind(), expected, "{error:?}");
            assert!(told(&error).contains("so it is"), "{error:?}");
        }
        watcher.row("a").await?;
        stage.hasura.cut();
        assert_eq!(watcher.until_it_ends().await?.kind(), ErrorKind::Unavailable);
        watcher.row("a").await?;
        stage.hasura.send_all(&json!({ "type": "complete", "id": "1" }).to_string());
        assert!(told(&watcher.until_it_ends().await?).contains("ended a subscription"));
        watcher.row("a").await.map(drop)
    })
    .await
}

#[tokio::test]
async fn a_change_of_metadata_costs_one_reconnect_and_nothing_is_missed() -> Result<()> {
    Stage::in_both(async |stage| {
        let host = stage.host("h")?;
        let pubsub = stage.connect().await?;
        let mut watcher = Watcher::new(&pubsub, &host);
        watcher.until("state", |_| true).await?;
        stage.hasura.reload_metadata();
        assert!(told(&watcher.until_it_ends().await?).contains("1012"));
        // Between two connections.
        stage.row(&host, "a", "ALLOCATED")?;
        let first = watcher.step().await.context("no state")?;
        assert_eq!(first.mandelboxes.len(), 1);
        assert_eq!(stage.hasura.upgrades(), 2);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_server_that_is_about_to_end_is_waited_for() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    let pubsub = stage.connect().await?;
    stage.hasura.fault(|faults| faults.shutting_down = true);
    let error = pubsub.watch(&host).await.err().context("it watches")?;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(told(&error).contains("503"), "{error:?}");
    stage.hasura.fault(|faults| faults.shutting_down = false);
    Watcher::new(&pubsub, &host).until("state", |_| true).await.map(drop)
}

#[tokio::test]
async fn results_that_carry_errors_end_the_watch_and_are_over_with_the_database() -> Result<()> {
    Stage::in_both(async |stage| {
        let host = stage.host("h")?;
        stage.row(&host, "a", "RUNNING")?;
        let pubsub = stage.connect().await?;
        let mut watcher = Watcher::new(&pubsub, &host);
        let row = watcher.row("a").await?;
        stage.hasura.fault(|faults| faults.no_database = true);
        let error = watcher.until_it_ends().await?;
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(told(&error).contains("connection error"), "{error:?}");
        // An answer of status 200 is not yet success.
        assert_eq!(pubsub.claim(&host, &row).await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(pubsub.heartbeat(&host, &beat()).await.unwrap_err().kind(), ErrorKind::Unavailable);
        pubsub.set_status(&host, &id("a"), MandelboxStatus::Dying).await?;
        assert_eq!(pubsub.undelivered(), 1);
        stage.hasura.fault(|faults| faults.no_database = false);
        watcher.until_delivered().await?;
        assert_eq!(stage.status("a")?, "DYING");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn data_beside_errors_is_not_taken() -> Result<()> {
    Stage::in_both(async |stage| {
        let host = stage.host("h")?;
        stage.row(&host, "a", "ALLOCATED")?;
        let pubsub = stage.connect().await?;
        let mut watcher = Watcher::new(&pubsub, &host);
        let row = watcher.row("a").await?;
        stage.hasura.fault(|faults| faults.partial = true);
        let error = watcher.until_it_ends().await?;
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(told(&error).contains("connection error"), "{error:?}");
        assert_eq!(pubsub.watch(&host).await.err().context("it watches")?.kind(), ErrorKind::Unavailable);
        assert_eq!(pubsub.claim(&host, &row).await.unwrap_err().kind(), ErrorKind::Unavailable);
        stage.hasura.fault(|faults| faults.partial = false);
        watcher.row("a").await.map(drop)
    })
    .await
}

#[tokio::test]
async fn numbers_may_be_strings() -> Result<()> {
    let stage = Stage::with(Setup { stringify: true, ..quick() }).await?;
    let host = stage.host("h")?;
    let pubsub = stage.connect().await?;
    let mut states = pubsub.watch(&host).await?;
    states.next().await.context("no state")??;
    stage.row(&host, "a", "ALLOCATED")?;
    let state = states.next().await.context("no state")??;
    assert_eq!(state.instance, Some(InstanceStatus::Active));
    assert!(matches!(pubsub.claim(&host, &state.mandelboxes[0]).await?, Claim::Won(_)));
    Ok(())
}

#[tokio::test]
async fn what_is_at_another_place_is_no_hasura() -> Result<()> {
    let stage = Stage::new().await?;
    let elsewhere = stage.hasura.url().replace("/v1/graphql", "/graphql");
    let error = stage.connect_with(json!({ "url": elsewhere })).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(told(&error).contains("/v1/graphql"), "{error:?}");
    let health = stage.hasura.url().replace("/v1/graphql", "/healthz");
    assert_eq!(stage.connect_with(json!({ "url": health })).await.unwrap_err().kind(), ErrorKind::Invalid);
    Ok(())
}
