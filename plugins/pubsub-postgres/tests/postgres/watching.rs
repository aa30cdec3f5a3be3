//! How changes come to a host: bursts, lost notifications, a proxy in between, other hosts.

use std::{future::poll_fn, sync::Arc, time::Duration};

use anyhow::Result;
use futures::StreamExt;
use host_core::{
    ErrorKind,
    pubsub::{Claim, DesiredState, MandelboxStatus, PubSub, Registered, StaleAfter},
};
use host_tests::postgres::Bouncer;
use serde_json::json;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_postgres::{AsyncMessage, NoTls};

use crate::stage::{Stage, Watcher, beat, facts, id};

#[tokio::test]
async fn a_thousand_rows_at_once_are_one_wake_up() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    let pubsub = stage.connect().await?;
    let mut states = pubsub.watch(&host).await?;
    states.next().await.unwrap()?;
    stage.database.sql(
        "INSERT INTO cloud.mandelbox_info SELECT 'm' || n, 'u', 'h', 'ALLOCATED', n, 's' FROM generate_series(1, 1000) n",
    )?;
    let state = states.next().await.unwrap()?;
    assert_eq!(state.mandelboxes.len(), 1000);
    // Oldest first.
    assert_eq!(state.mandelboxes[0].id.as_str(), "m1");
    Ok(())
}

#[tokio::test]
async fn a_burst_of_changes_is_read_a_few_times() -> Result<()> {
    const CHANGES: usize = 1000;
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    let pubsub = stage.connect().await?;
    let mut states = pubsub.watch(&host).await?;
    states.next().await.unwrap()?;
    // One transaction each.
    let sql = format!(
        "DO $$ BEGIN FOR n IN 1..{CHANGES} LOOP INSERT INTO cloud.mandelbox_info \
         VALUES ('m' || n, 'u', 'h', 'ALLOCATED', n, 's'); COMMIT; END LOOP; END $$"
    );
    let database = stage.database.clone();
    let inserting = std::thread::spawn(move || database.sql(&sql));
    let mut reads = 0;
    while let Some(state) = states.next().await {
        reads += 1;
        if state?.mandelboxes.len() == CHANGES {
            break;
        }
    }
    inserting.join().unwrap()?;
    println!("{CHANGES} changes, {reads} reads");
    assert!(reads < CHANGES / 3, "{CHANGES} changes were read {reads} times");
    Ok(())
}

#[tokio::test]
async fn a_row_that_is_locked_keeps_no_other_from_being_seen() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    stage.row(&host, "a", "RUNNING")?;
    let pubsub = stage.connect_as(&stage.database.url(), json!({ "timeout": "1s" })).await?;
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

#[tokio::test]
async fn a_lost_notification_costs_at_most_a_poll() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    let pubsub = stage.connect_as(&stage.database.url(), json!({ "poll": "1s" })).await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    watcher.step().await;
    stage.database.sql("ALTER TABLE cloud.mandelbox_info DISABLE TRIGGER USER")?;
    stage.row(&host, "a", "ALLOCATED")?;
    watcher.row("a").await?;
    assert!(watcher.error.is_none(), "the watch was made anew: {:?}", watcher.error);
    Ok(())
}

#[tokio::test]
async fn behind_a_transaction_pooling_proxy_the_clock_does_it() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    let bouncer = Bouncer::start(&stage.cluster).await?;
    let url = bouncer.through(&stage.database).url();
    let keys = json!({ "poll": "30s", "poll_without_notifications": "500ms" });
    let pubsub = stage.connect_as(&url, keys).await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    watcher.step().await;
    stage.row(&host, "a", "ALLOCATED")?;
    let row = watcher.row("a").await?;
    assert!(matches!(pubsub.claim(&host, &row).await?, Claim::Won(_)));
    pubsub.set_status(&host, &row.id, MandelboxStatus::Running).await?;
    watcher.until_status("a", MandelboxStatus::Running).await?;
    pubsub.heartbeat(&host, &beat()).await?;
    assert_eq!(pubsub.register(&facts("h"), &beat()).await?, Registered::Active);
    pubsub.remove(&host, &row.id).await?;
    watcher.until("end of the row", |state| state.mandelboxes.is_empty()).await?;
    assert!(watcher.error.is_none(), "the watch was made anew: {:?}", watcher.error);
    // Many at once share few connections of the server's.
    let mut calls = JoinSet::new();
    for n in 0..40 {
        let (pubsub, host) = (pubsub.clone(), host.clone());
        calls.spawn(
            async move { pubsub.set_status(&host, &id(&format!("m{n}")), MandelboxStatus::Dying).await },
        );
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    Ok(())
}

/// Of a database that fails over, one machine may be gone without a word.
#[tokio::test]
async fn a_server_that_does_not_answer_leaves_time_for_the_next() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    // Its queue is full, so that nobody is answered any more.
    let full = TcpSocket::new_v4()?;
    full.bind("127.0.0.1:0".parse()?)?;
    let full = full.listen(1)?;
    let gone = full.local_addr()?;
    let mut waiting = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(gone)).await {
        waiting.push(stream?);
    }
    let url = stage.database.url().replace("@", &format!("@{gone},"));
    let pubsub = stage.connect_as(&url, json!({})).await?;
    stage.row(&host, "a", "ALLOCATED")?;
    Watcher::new(&pubsub, &host).row("a").await.map(drop)
}

#[tokio::test]
async fn two_hosts_with_one_name_share_nothing_twice() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    let (one, other) = (stage.connect().await?, stage.connect().await?);
    assert_eq!(one.register(&facts("h"), &beat()).await?, Registered::Active);
    let mut impostor = facts("h");
    impostor.cloud_id = "i-other".into();
    let error = other.register(&impostor, &beat()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("i-h") && error.to_string().contains("i-other"), "{error}");

    // Whatever it was told, it may try; each row is still won once.
    let mut claims = JoinSet::new();
    for n in 0..20 {
        stage.row(&host, &format!("m{n}"), "ALLOCATED")?;
    }
    for pubsub in [one, other] {
        let mut watcher = Watcher::new(&pubsub, &host);
        let rows = watcher.until("all rows", |state| state.mandelboxes.len() == 20).await?.mandelboxes;
        for row in rows {
            let (pubsub, host) = (Arc::clone(&pubsub), host.clone());
            claims.spawn(async move { pubsub.claim(&host, &row).await });
        }
    }
    let mut won = 0;
    while let Some(claim) = claims.join_next().await {
        won += usize::from(matches!(claim??, Claim::Won(_)));
    }
    assert_eq!(won, 20);
    Ok(())
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
async fn a_row_deleted_under_a_running_mandelbox_is_seen_and_stays_gone() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    let pubsub = stage.connect().await?;
    stage.row(&host, "a", "RUNNING")?;
    let mut watcher = Watcher::new(&pubsub, &host);
    watcher.row("a").await?;
    stage.database.sql("DELETE FROM cloud.mandelbox_info")?;
    watcher.until("end of the row", |state| state.mandelboxes.is_empty()).await?;
    pubsub.set_status(&host, &id("a"), MandelboxStatus::Dying).await?;
    pubsub.remove(&host, &id("a")).await?;
    assert_eq!(stage.database.sql("SELECT count(*) FROM cloud.mandelbox_info")?, "0");
    Ok(())
}

#[tokio::test]
async fn a_row_is_not_stale_before_this_host_has_had_its_time_with_it() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    let pubsub = stage.connect().await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    watcher.step().await;
    // As the seed inserts it: decades ago.
    stage.aged_row(&host, "a", "ALLOCATED", Duration::from_secs(1_500_000_000))?;
    let after = StaleAfter { allocated: Duration::from_secs(10), connecting: Duration::from_secs(90) };
    assert_eq!(pubsub.remove_stale(&host, after, &[]).await?, [], "before it was seen");
    watcher.row("a").await?;
    assert_eq!(pubsub.remove_stale(&host, after, &[]).await?, [], "just after it was seen");
    let at_once = StaleAfter { allocated: Duration::ZERO, ..after };
    assert_eq!(pubsub.remove_stale(&host, at_once, &[id("a")]).await?, [], "while it is worked on");
    assert_eq!(pubsub.remove_stale(&host, at_once, &[]).await?, [id("a")]);
    Ok(())
}

#[tokio::test]
async fn a_wake_up_reaches_only_the_host_it_concerns() -> Result<()> {
    let stage = Stage::new().await?;
    let (host, other) = (stage.host("h")?, stage.host("other")?);
    let pubsub = stage.connect().await?;
    let (mut states, mut others) = (pubsub.watch(&host).await?, pubsub.watch(&other).await?);
    states.next().await.unwrap()?;
    others.next().await.unwrap()?;
    for n in 0..20 {
        stage.row(&other, &format!("o{n}"), "ALLOCATED")?;
    }
    pubsub.heartbeat(&host, &beat()).await?;
    stage.row(&host, "a", "ALLOCATED")?;
    // Any wake-up before this one would have shown a state without it.
    assert_eq!(states.next().await.unwrap()?.mandelboxes.len(), 1);
    // Moved to another host, both are told.
    stage.database.sql("UPDATE cloud.mandelbox_info SET instance_name = 'other' WHERE mandelbox_id = 'a'")?;
    assert_eq!(states.next().await.unwrap()?.mandelboxes, []);
    while others.next().await.unwrap()?.mandelboxes.len() < 21 {}
    Ok(())
}

/// A channel's name has at most 63 bytes, a payload 8000.
#[tokio::test]
async fn a_hosts_name_may_be_of_any_length_and_of_anything() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host(&format!("{}\"; -- ü", "h".repeat(100)))?;
    let pubsub = stage.connect().await?;
    let mut states = pubsub.watch(&host).await?;
    states.next().await.unwrap()?;
    stage.row(&host, "a", "ALLOCATED")?;
    assert_eq!(states.next().await.unwrap()?.mandelboxes.len(), 1);
    // No host of ours, but whoever writes its rows must not be stopped.
    let endless = "x".repeat(10_000);
    stage.host_with(&endless, "ACTIVE", 1)?;
    stage.database.sql(&format!(
        "INSERT INTO cloud.mandelbox_info VALUES ('b', 'u', '{endless}', 'ALLOCATED', 1, 's')"
    ))?;
    stage.database.sql("UPDATE cloud.mandelbox_info SET status = 'DYING' WHERE mandelbox_id = 'b'")?;
    Ok(())
}

#[tokio::test]
async fn a_hosts_own_changes_notify_nobody_and_its_watches_see_them() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    let pubsub = stage.connect().await?;
    stage.row(&host, "a", "ALLOCATED")?;
    let mut watcher = Watcher::new(&pubsub, &host);
    let row = watcher.row("a").await?;
    // The watch's own trial of notifications is over after its second state.
    stage.row(&host, "b", "ALLOCATED")?;
    watcher.row("b").await?;
    let mut notes = notifications(&stage).await?;

    assert!(matches!(pubsub.claim(&host, &row).await?, Claim::Won(_)));
    watcher.until_status("a", MandelboxStatus::Connecting).await?;
    pubsub.set_status(&host, &row.id, MandelboxStatus::Running).await?;
    watcher.until_status("a", MandelboxStatus::Running).await?;
    pubsub.remove(&host, &row.id).await?;
    watcher.until("end of the row", |state| state.mandelboxes.len() == 1).await?;
    // They come in the order of the commits, so the first is of the first that notified.
    let foreign = "NOTIFY \"CHANNEL\", 'foreign'".replace("CHANNEL", &notes.channel);
    stage.database.sql(&foreign)?;
    assert_eq!(notes.received.recv().await.unwrap(), "foreign");
    // Others' changes of the same row do notify.
    stage.database.sql("UPDATE cloud.mandelbox_info SET status = 'DYING'")?;
    assert_eq!(notes.received.recv().await.unwrap(), "h");
    stage.database.sql("DELETE FROM cloud.mandelbox_info")?;
    assert_eq!(notes.received.recv().await.unwrap(), "h");
    Ok(())
}

struct Notifications {
    channel: String,
    received: mpsc::UnboundedReceiver<String>,
    _client: tokio_postgres::Client,
    _driver: JoinSet<()>,
}

/// The payloads of what is sent to host `h`.
async fn notifications(stage: &Stage) -> Result<Notifications> {
    let (client, mut connection) = tokio_postgres::connect(&stage.database.url(), NoTls).await?;
    let (sender, received) = mpsc::unbounded_channel();
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(note) = message {
                sender.send(note.payload().to_owned()).unwrap();
            }
        }
    });
    let channel: String = client.query_one("SELECT cloud.host_channel('h')", &[]).await?.get(0);
    client.batch_execute(&format!("LISTEN {channel}")).await?;
    Ok(Notifications { channel, received, _client: client, _driver: driver })
}
