//! The real binary with Hasura's stand-in as its control plane.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use hasura_stand_in::{Setup, StandIn, Token};
use host_tests::{
    ground::Ground as _,
    oci::OciHost,
    postgres::{Cluster, Database},
    service::{Builder, Service},
    wait::until,
};

const SOON: Duration = Duration::from_secs(30);

/// A database with the schema, and the stand-in over it.
fn behind_hasura(cluster: &Cluster, builder: Builder) -> Result<(Database, StandIn, Builder)> {
    let database = cluster.database()?;
    let builder = builder.profile("localdevwithdb").set(format!("pubsub.postgres.url={}", database.url()));
    let migrated = builder.cli(&["db", "migrate"])?;
    ensure!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("plugins/pubsub-hasura/hasura");
    let setup = Setup { refetch: Duration::from_millis(200), ..Setup::default() };
    let hasura = StandIn::apart(&database.url(), &project, setup)?;
    let builder = builder.set("pubsub.plugin=hasura").set(format!("pubsub.hasura.url={}", hasura.url()));
    Ok((database, hasura, builder))
}

fn allocate(database: &Database) -> Result<String> {
    database.sql(
        "SELECT mandelbox_id FROM cloud.allocate_mandelbox('localdev_user_id', 'us-east-1', 'test/mandelbox', 's')",
    )
}

async fn until_status(database: &Database, id: &str, status: &str) -> Result<()> {
    let sql = format!("SELECT status FROM cloud.mandelbox_info WHERE mandelbox_id = '{id}'");
    until(status, SOON, async || (database.sql(&sql).ok()? == status).then_some(())).await
}

#[tokio::test]
async fn what_is_allocated_behind_hasura_spins_up_and_drains() -> Result<()> {
    let host = OciHost::scratch().await?;
    // In the host's network, as everything from here on.
    let cluster = Cluster::scratch().await?;
    let builder = Service::on(&host).set("pubsub.hasura.admin_secret=hasurasecret");
    let (database, hasura, builder) = behind_hasura(&cluster, builder)?;
    let mut service = builder.start().await?;
    let active = "SELECT instance_name FROM cloud.instance_info WHERE status = 'ACTIVE'";
    assert_eq!(database.sql(active)?, service.name());

    let (first, second) = (allocate(&database)?, allocate(&database)?);
    for id in [&first, &second] {
        let answer = service.spin_up(id).await?;
        assert_eq!(service.facts(&answer).await?["id"].as_str(), Some(id.as_str()));
        until_status(&database, id, "RUNNING").await?;
    }
    let _ = database.sql(&format!("DELETE FROM cloud.mandelbox_info WHERE mandelbox_id = '{first}'"))?;
    let one = async || (service.mandelboxes().ok()?.len() == 1).then_some(());
    until("end of what has no row", SOON, one).await?;

    database.sql("UPDATE cloud.instance_info SET status = 'DRAINING'")?;
    ensure!(service.ended().await?.success(), "{}", service.log());
    assert_eq!(database.sql("SELECT count(*) FROM cloud.instance_info")?, "0", "the host's row goes with it");
    host.assert_none(service.name()).await?;
    drop(hasura);
    host.assert_untouched().await
}

#[tokio::test]
async fn whatever_a_server_does_is_told_and_survived() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let builder = Service::with("[runtime]\nplugin = \"sim\"\n");
    let token = builder.scratch().join("token");
    fs::write(&token, "hunter-one")?;
    let builder = builder
        .set(format!("pubsub.hasura.token_file={}", token.display()))
        .set("pubsub.hasura.role=host")
        .set("pubsub.hasura.timeout=1s");
    let (database, hasura, builder) = behind_hasura(&cluster, builder)?;
    let name = builder.name().to_owned();
    for text in ["hunter-one", "hunter-two"] {
        hasura.add_token(text, Token { instance: name.clone(), expires: None });
    }
    let version = String::from_utf8(builder.cli(&["version"])?.stdout)?;
    let commit = version.lines().find_map(|line| line.strip_prefix("commit")).unwrap_or_default().trim();
    // A host's token makes no row.
    database.sql(&format!(
        "INSERT INTO cloud.instance_info VALUES ('192.0.2.1', 'us-east-1', 'test-ami', 'g4dn.xlarge', 'i', '{commit}', \
         1, 0, '{name}', 1, 1, 0, 0, 'PRE_CONNECTION')"
    ))?;
    let service = builder.start().await?;
    let ready = async || (service.probe("/readyz").await.ok()?.0 == 200).then_some(());
    let told = async |what: &str| {
        until(what, SOON, async || service.log().contains(what).then_some(())).await?;
        anyhow::Ok(())
    };
    until("readiness", SOON, ready).await?;

    hasura.send_all(&"x".repeat(1_048_577));
    told("more than 1048576 bytes").await?;
    until("readiness", SOON, ready).await?;

    hasura.fault(|faults| faults.flood = true);
    told("floods this host").await?;
    hasura.fault(|faults| faults.flood = false);
    until("readiness", SOON, ready).await?;

    hasura.fault(|faults| faults.mute = true);
    hasura.cut();
    told("did not answer within 1s").await?;
    hasura.fault(|faults| faults.mute = false);
    until("readiness", SOON, ready).await?;

    hasura.remove_token("hunter-one");
    hasura.reload_metadata();
    told("refuses this host").await?;
    let refusals = hasura.refusals();
    ensure!(refusals <= 2, "{refusals} refusals are a storm");
    fs::write(&token, "hunter-two")?;
    until("readiness", SOON, ready).await?;
    ensure!(!service.log().contains("hunter"), "a token is in the log");
    service.end_cleanly().await
}
