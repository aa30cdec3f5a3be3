//! Who may what: secrets, tokens, the role of a host, TLS.

use std::{fs, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use hasura_stand_in::{Setup, Token};
use host_core::{
    ErrorKind, chain,
    pubsub::{Allocation, Claim, MandelboxStatus, PubSub, Registered, StaleAfter},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::ring};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::stage::{PATIENCE, Stage, Watcher, beat, facts, id, quick, told};

fn token(instance: &str) -> Token {
    Token { instance: instance.to_owned(), expires: None }
}

#[tokio::test]
async fn a_wrong_secret_is_one_clear_error() -> Result<()> {
    let stage = Stage::new().await?;
    let error = stage.connect_with(json!({ "admin_secret": "hunter2" })).await.unwrap_err();
    assert_eq!((error.kind(), stage.hasura.refusals()), (ErrorKind::Denied, 1));
    let shown = format!("{} {error:?}", told(&error));
    assert!(shown.contains("refuses this host") && shown.contains("admin_secret"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
    Ok(())
}

#[tokio::test]
async fn a_secret_that_turns_wrong_is_no_storm() -> Result<()> {
    Stage::in_both(async |stage| {
        let host = stage.host("h")?;
        stage.row(&host, "a", "RUNNING")?;
        let pubsub = stage.connect().await?;
        let mut watcher = Watcher::new(&pubsub, &host);
        watcher.row("a").await?;
        stage.hasura.set_admin_secret("another");
        stage.hasura.reload_metadata();
        watcher.until_it_ends().await?;
        for _ in 0..50 {
            let error = pubsub.watch(&host).await.err().context("it watches")?;
            assert_eq!(error.kind(), ErrorKind::Denied);
            assert!(told(&error).contains("not tried again"), "{error:?}");
            assert_eq!(pubsub.heartbeat(&host, &beat()).await.unwrap_err().kind(), ErrorKind::Denied);
        }
        // In the legacy subprotocol no code says what was refused, so it is tried a little sooner.
        let most = if stage.protocol == "graphql-ws" { 3 } else { 1 };
        assert!((1..=most).contains(&stage.hasura.refusals()), "{}", stage.hasura.refusals());
        // Somebody will put it right.
        pubsub.set_status(&host, &id("a"), MandelboxStatus::Dying).await?;
        assert_eq!(pubsub.undelivered(), 1);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_token_that_expires_is_replaced_while_in_use() -> Result<()> {
    Stage::in_both(async |stage| {
        let host = stage.host("h")?;
        let file = stage.state.path().join("token");
        fs::write(&file, "first\n")?;
        let expires = Instant::now() + Duration::from_secs(1);
        stage.hasura.add_token("first", Token { expires: Some(expires), ..token("h") });
        stage.hasura.add_token("second", token("h"));
        let pubsub = stage.connect_with(json!({ "token_file": file, "role": "host" })).await?;
        let mut watcher = Watcher::new(&pubsub, &host);
        watcher.until("state", |_| true).await?;
        // The server ends the connection with the token.
        watcher.until_it_ends().await?;
        let error = pubsub.watch(&host).await.err().context("it watches")?;
        assert_eq!(error.kind(), ErrorKind::Denied);
        stage.row(&host, "a", "RUNNING")?;
        pubsub.set_status(&host, &id("a"), MandelboxStatus::Dying).await?;
        assert_eq!(pubsub.undelivered(), 1);
        fs::write(&file, "second\n")?;
        watcher.until_delivered().await?;
        assert_eq!(stage.status("a")?, "DYING");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_token_that_was_stolen_and_is_revoked_opens_nothing() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    stage.hasura.add_token("stolen", token("h"));
    let pubsub = stage.connect_with(json!({ "token": "stolen" })).await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    watcher.until("state", |_| true).await?;
    stage.hasura.remove_token("stolen");
    let error = pubsub.heartbeat(&host, &beat()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    let shown = format!("{} {error:?}", told(&error));
    assert!(shown.contains("Could not verify JWT") && !shown.contains("stolen"), "{shown}");
    // The heartbeat has raised the alarm.
    assert_eq!(watcher.until_it_ends().await?.kind(), ErrorKind::Denied);
    Ok(())
}

#[tokio::test]
async fn a_hosts_token_does_everything_for_its_host_and_nothing_for_another() -> Result<()> {
    let stage = Stage::new().await?;
    let (mine, other) = (stage.host_with("mine", "PRE_CONNECTION")?, stage.host("other")?);
    stage.hasura.add_token("t", token("mine"));
    let pubsub = stage.connect_with(json!({ "token": "t" })).await?;
    stage.row(&mine, "a", "ALLOCATED")?;
    stage.row(&other, "b", "ALLOCATED")?;

    assert_eq!(pubsub.register(&facts("mine"), &beat()).await?, Registered::Active);
    let row = Watcher::new(&pubsub, &mine).row("a").await?;
    assert!(matches!(pubsub.claim(&mine, &row).await?, Claim::Won(_)));
    pubsub.set_status(&mine, &id("a"), MandelboxStatus::Running).await?;
    pubsub.heartbeat(&mine, &beat()).await?;
    let after = StaleAfter { allocated: Duration::ZERO, connecting: Duration::ZERO };
    pubsub.remove_stale(&mine, after, &[]).await?;
    pubsub.remove(&mine, &id("a")).await?;
    assert_eq!(stage.status("a")?, "");

    let seen = Watcher::new(&pubsub, &other).until("state", |_| true).await?;
    assert!(seen.instance.is_none() && seen.mandelboxes.is_empty(), "{seen:?}");
    // Nothing but who asks is wrong with the claim.
    let administrator = stage.connect().await?;
    let theirs = Watcher::new(&administrator, &other).row("b").await?;
    assert!(matches!(administrator.claim(&other, &theirs).await?, Claim::Won(_)));
    stage.database.sql("UPDATE cloud.mandelbox_info SET status = 'ALLOCATED'")?;
    assert_eq!(pubsub.claim(&other, &theirs).await?, Claim::Lost);
    pubsub.set_status(&other, &id("b"), MandelboxStatus::Dying).await?;
    pubsub.remove(&other, &id("b")).await?;
    assert!(pubsub.remove_stale(&other, after, &[]).await?.is_empty());
    pubsub.mark_draining(&other).await?;
    pubsub.unregister(&other).await?;
    let left = "SELECT i.status, m.status FROM cloud.instance_info i JOIN cloud.mandelbox_info m USING (instance_name)";
    assert_eq!(stage.database.sql(left)?, "ACTIVE|ALLOCATED");
    // Allocating is the control plane's.
    let new = Allocation { id: id("new"), user: "u".parse()?, session: "s".parse()?, app: None };
    let error = pubsub.allocate(&mine, &new).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    pubsub.unregister(&mine).await?;
    assert_eq!(stage.database.sql("SELECT count(*) FROM cloud.instance_info")?, "1");
    Ok(())
}

/// GraphQL of one's own, with the token of a host and whatever headers one likes.
#[tokio::test]
async fn what_a_host_never_does_is_refused() -> Result<()> {
    let stage = Stage::new().await?;
    let (mine, other) = (stage.host("mine")?, stage.host("other")?);
    stage.hasura.add_token("t", token("mine"));
    stage.row(&mine, "a", "ALLOCATED")?;
    stage.row(&other, "b", "ALLOCATED")?;
    let everything =
        "SELECT * FROM cloud.instance_info ORDER BY 1; SELECT * FROM cloud.mandelbox_info ORDER BY 1";
    let before = stage.database.sql(everything)?;
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let client = reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls).build()?;
    let ask = async |query: &str, header: (&str, &str)| {
        let request = client.post(stage.hasura.url()).bearer_auth("t").header(header.0, header.1);
        let answer = request.body(json!({ "query": query }).to_string()).send().await?.text().await?;
        anyhow::Ok(serde_json::from_str::<Value>(&answer)?)
    };
    let plain = ("x-hasura-role", "host");
    let pretended = ("x-hasura-instance-name", "other");
    for (query, header) in [
        ("update_cloud_instance_info(where: {}, _set: {instance_name: \"other2\"}) {affected_rows}", plain),
        ("update_cloud_mandelbox_info(where: {}, _set: {instance_name: \"other\"}) {affected_rows}", plain),
        ("update_cloud_mandelbox_info(where: {}, _set: {user_id: \"me\"}) {affected_rows}", plain),
        ("insert_cloud_mandelbox_info(objects: [{mandelbox_id: \"x\"}]) {affected_rows}", plain),
        ("insert_cloud_instance_info(objects: [{instance_name: \"x\"}]) {affected_rows}", plain),
        ("delete_cloud_mandelbox_info(where: {}) {affected_rows}", ("x-hasura-role", "admin")),
    ] {
        let answer = ask(&format!("mutation {{ {query} }}"), header).await?;
        assert!(answer["errors"].is_array(), "{query}: {answer}");
    }
    // Who one is says the token alone; another host's rows are as if they were not there.
    for mutation in [
        "update_cloud_instance_info(where: {instance_name: {_eq: \"other\"}}, _set: {status: \"DRAINING\"})",
        "delete_cloud_instance_info(where: {instance_name: {_eq: \"other\"}})",
        "update_cloud_mandelbox_info(where: {mandelbox_id: {_eq: \"b\"}}, _set: {status: \"DYING\"})",
        "delete_cloud_mandelbox_info(where: {mandelbox_id: {_eq: \"b\"}})",
    ] {
        let answer = ask(&format!("mutation {{ done: {mutation} {{affected_rows}} }}"), pretended).await?;
        assert_eq!(answer["data"]["done"]["affected_rows"], 0, "{mutation}: {answer}");
    }
    let answer = ask("query { cloud_mandelbox_info { mandelbox_id } }", pretended).await?;
    assert_eq!(answer["data"]["cloud_mandelbox_info"], json!([{ "mandelbox_id": "a" }]));
    assert_eq!(stage.database.sql(everything)?, before);
    Ok(())
}

#[tokio::test]
async fn certificates_are_checked_over_both_ways() -> Result<()> {
    let authority = authority()?;
    let tls = server(&authority, "localhost")?;
    let stage = Stage::with(Setup { tls: Some(tls), ..quick() }).await?;
    let host = stage.host("h")?;
    let files = tempfile::tempdir()?;
    let (ours, others) = (files.path().join("ours.pem"), files.path().join("others.pem"));
    fs::write(&ours, authority.pem())?;
    fs::write(&others, self::authority()?.pem())?;
    let pubsub = stage.connect_with(json!({ "ca_file": ours })).await?;
    stage.row(&host, "a", "ALLOCATED")?;
    Watcher::new(&pubsub, &host).row("a").await?;

    let error = stage.connect_with(json!({ "ca_file": others })).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(told(&error).contains("no trusted connection"), "{error:?}");
    let by_address = stage.hasura.url().replace("localhost", "127.0.0.1");
    let error = stage.connect_with(json!({ "ca_file": ours, "url": by_address })).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{}", chain(&error));
    let unencrypted = stage.hasura.url().replace("https", "http");
    let error = stage.connect_with(json!({ "ca_file": ours, "url": unencrypted })).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(told(&error).contains("not https"), "{error:?}");
    for (file, content) in [("empty.pem", ""), ("broken.pem", "-----BEGIN CERTIFICATE-----\nx\n")] {
        let file = files.path().join(file);
        fs::write(&file, content)?;
        let error = stage.connect_with(json!({ "ca_file": file })).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{}", chain(&error));
    }
    Ok(())
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Result<Authority> {
    let mut parameters = CertificateParams::new([])?;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(DnType::CommonName, "an authority");
    Ok(CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?)
}

/// A server's side of TLS, with a certificate for `name`.
fn server(authority: &Authority, name: &str) -> Result<Arc<ServerConfig>> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new([name.to_owned()])?.signed_by(&key, authority)?;
    let certificate = CertificateDer::from_pem_slice(certificate.pem().as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions()?.with_no_client_auth();
    Ok(Arc::new(config.with_single_cert(vec![certificate], key)?))
}

#[tokio::test]
async fn what_the_role_may_not_see_is_told_at_the_start() -> Result<()> {
    let stage = Stage::new().await?;
    let error =
        stage.connect_with(json!({ "admin_secret": "hasurasecret", "role": "guest" })).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(told(&error).contains("metadata/"), "{error:?}");
    // The administrator may act as a host, whose name then has to be said.
    let keys = json!({ "admin_secret": "hasurasecret", "role": "host",
                       "headers": { "x-hasura-instance-name": "mine" } });
    let pubsub = stage.connect_with(keys).await?;
    let mine = stage.host("mine")?;
    stage.row(&mine, "a", "ALLOCATED")?;
    tokio::time::timeout(PATIENCE, Watcher::new(&pubsub, &mine).row("a")).await??;
    Ok(())
}

#[tokio::test]
async fn who_may_not_have_registered_ends_no_other_machines_row() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host_with("h", "PRE_CONNECTION")?;
    let (one, other) = (stage.connect().await?, stage.connect().await?);
    assert_eq!(one.register(&facts("h"), &beat()).await?, Registered::Active);
    stage.row(&host, "a", "RUNNING")?;
    let theirs = host_core::pubsub::InstanceFacts { cloud_id: "i-theirs".into(), ..facts("h") };
    // Were this answer lost, they could not know.
    assert_eq!(other.register(&theirs, &beat()).await.unwrap_err().kind(), ErrorKind::Conflict);
    other.mark_draining(&host).await?;
    other.unregister(&host).await?;
    let left = "SELECT i.status, m.status FROM cloud.instance_info i JOIN cloud.mandelbox_info m USING (instance_name)";
    assert_eq!(stage.database.sql(left)?, "ACTIVE|RUNNING");
    one.mark_draining(&host).await?;
    assert_eq!(stage.database.sql(left)?, "DRAINING|RUNNING");
    one.unregister(&host).await?;
    assert_eq!(stage.database.sql(left)?, "");
    Ok(())
}
