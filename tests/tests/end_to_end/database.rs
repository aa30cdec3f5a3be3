//! A service and the database that a fleet shares.

use anyhow::{Result, ensure};
use host_tests::{
    ground::Ground,
    postgres::{Cluster, Database},
    service::{Builder, Service},
    wait::until,
};
use serde_json::Value;

use crate::SOON;

/// A server that listens where the service is, and a database with the schema.
async fn database(builder: Builder) -> Result<(Cluster, Database, Builder)> {
    // Made on the ground, whose network the test is in.
    let cluster = Cluster::scratch().await?;
    let database = cluster.database()?;
    let builder = builder.profile("localdevwithdb").set(format!("pubsub.postgres.url={}", database.url()));
    let migrated = builder.cli(&["db", "migrate"])?;
    ensure!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    Ok((cluster, database, builder))
}

/// Has the fleet's function choose a host; the mandelbox's id, or nothing where there is no room.
fn allocate(database: &Database) -> Result<String> {
    database.sql(
        "SELECT mandelbox_id FROM cloud.allocate_mandelbox('localdev_user_id', 'us-east-1', 'test/mandelbox', 's')",
    )
}

fn status_of(database: &Database, id: &str) -> Result<String> {
    database.sql(&format!("SELECT status FROM cloud.mandelbox_info WHERE mandelbox_id = '{id}'"))
}

pub(crate) async fn what_is_allocated_in_the_fleets_database_spins_up(ground: &dyn Ground) -> Result<()> {
    let builder = Service::on(ground).set("mandelbox.capacity=2");
    let (_cluster, database, builder) = database(builder).await?;
    assert_eq!(allocate(&database)?, "", "there is no host yet");
    let service = builder.start().await?;
    let active = "SELECT instance_name, mandelbox_capacity FROM cloud.instance_info WHERE status = 'ACTIVE'";
    assert_eq!(database.sql(active)?, format!("{}|2", service.name()));

    let (first, second) = (allocate(&database)?, allocate(&database)?);
    assert_eq!(allocate(&database)?, "", "there is room for two");
    for id in [&first, &second] {
        let answer = service.spin_up(id).await?;
        assert_eq!(service.facts(&answer).await?["id"].as_str(), Some(id.as_str()));
        let running = async || (status_of(&database, id).ok()? == "RUNNING").then_some(());
        until("status RUNNING", SOON, running).await?;
    }
    let room = "SELECT count(*) FROM cloud.instances_with_room_for_mandelboxes";
    assert_eq!(database.sql(room)?, "0");
    let stop = service.cli(&["mandelbox", "stop", &first])?;
    ensure!(stop.status.success(), "{}", String::from_utf8_lossy(&stop.stderr));
    let again = async || allocate(&database).ok().filter(|id| !id.is_empty());
    let third = until("room", SOON, again).await?;
    service.spin_up(&third).await?;
    service.end_cleanly().await?;
    assert_eq!(database.sql("SELECT count(*) FROM cloud.instance_info")?, "0", "the host's row goes with it");
    Ok(())
}

pub(crate) async fn sessions_outlive_their_database_and_it_is_told_everything(
    ground: &dyn Ground,
) -> Result<()> {
    let (cluster, database, builder) = database(Service::on(ground)).await?;
    let service = builder.start().await?;
    let (stays, leaves) = (allocate(&database)?, allocate(&database)?);
    let staying = service.spin_up(&stays).await?;
    let leaving = service.spin_up(&leaves).await?;
    let metric = async |name: &str| {
        let metrics = service.probe("/metrics").await.ok()?.1;
        let value: f64 = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())?;
        Some(value > 0.0)
    };
    let waits = async || metric("host_service_pubsub_undelivered").await;
    let up = async || metric("host_service_up{component=\"pubsub\"}").await;
    assert_eq!((waits().await, up().await), (Some(false), Some(true)));

    cluster.kill().await?;
    // The connection may break before the answer: the server dies of this request.
    let _ = service.post(&leaving, "/exit?code=0").await;
    // The one is told by who writes, the other by who watches.
    let is_told = |status: &Value| {
        status["condition"]["undelivered"] != 0 && status["condition"]["pubsub_error"].is_string()
    };
    let queued = async || service.status().ok().filter(is_told);
    until("undelivered status and lost connection", SOON, queued).await?;
    let told = String::from_utf8(service.cli(&["status"])?.stdout)?;
    ensure!(told.contains("control plane down") && told.contains("undelivered statuses: "), "{told}");
    let (ready, reasons) = service.probe("/readyz").await?;
    let reasons: Value = serde_json::from_str(&reasons)?;
    assert_eq!((ready, &reasons["reasons"][0]["code"]), (503, &Value::from("pubsub")));
    assert_eq!((waits().await, up().await), (Some(true), Some(false)));
    assert_eq!(service.facts(&staying).await?["id"].as_str(), Some(stays.as_str()), "it is untouched");

    cluster.start().await?;
    let ready = async || (service.probe("/readyz").await.ok()?.0 == 200).then_some(());
    until("readiness", SOON, ready).await?;
    let told = async || ((waits().await, up().await) == (Some(false), Some(true))).then_some(());
    until("the delivery of what waited", SOON, told).await?;
    let gone = async || status_of(&database, &leaves).ok()?.is_empty().then_some(());
    until("end of the row", SOON, gone).await?;
    assert_eq!(status_of(&database, &stays)?, "RUNNING");
    service.spin_up(&allocate(&database)?).await?;
    service.end_cleanly().await
}

pub(crate) async fn a_row_deleted_under_a_running_mandelbox_ends_it(ground: &dyn Ground) -> Result<()> {
    let (_cluster, database, builder) = database(Service::on(ground)).await?;
    let service = builder.start().await?;
    let id = allocate(&database)?;
    service.spin_up(&id).await?;
    database.sql("DELETE FROM cloud.mandelbox_info")?;
    service.idle().await?;
    ground.assert_none(service.name()).await?;
    assert_eq!(status_of(&database, &id)?, "", "nothing brings it back");
    service.end_cleanly().await
}

/// What needs no containers.
mod registration {
    use super::*;

    /// On the server that all tests share.
    async fn asked_for(status: &str, image: &str, machine: &str) -> Result<(Cluster, Database, Builder)> {
        let cluster = Cluster::shared().await?;
        let database = cluster.database()?;
        let builder = Service::with("[runtime]\nplugin = \"sim\"\n").profile("localdevwithdb");
        let builder = builder.set(format!("pubsub.postgres.url={}", database.url()));
        ensure!(builder.cli(&["db", "migrate"])?.status.success(), "no schema");
        let version = String::from_utf8(builder.cli(&["version"])?.stdout)?;
        let commit = version.lines().find_map(|line| line.strip_prefix("commit")).unwrap_or_default().trim();
        database.sql(&format!(
            "INSERT INTO cloud.instance_info VALUES ('192.0.2.1', 'us-east-1', '{image}', 'g4dn.xlarge', '{machine}', \
             '{commit}', 1, 0, '{}', 1, 1, 0, 0, '{status}')",
            builder.name()
        ))?;
        Ok((cluster, database, builder))
    }

    /// Runs it to its end; its exit code and what it said.
    async fn end(builder: &Builder) -> Result<(Option<i32>, String)> {
        let mut child = builder.spawn()?;
        let status = until("end", SOON, async || child.try_wait().ok().flatten()).await?;
        for left in ["root", "state"] {
            ensure!(!builder.scratch().join(left).exists(), "{left} is left\n{}", builder.log());
        }
        Ok((status.code(), builder.log()))
    }

    #[tokio::test]
    async fn a_host_that_is_not_the_one_asked_for_says_what_differs() -> Result<()> {
        let (_cluster, database, builder) = asked_for("PRE_CONNECTION", "ami-other", "i").await?;
        let (code, log) = end(&builder).await?;
        ensure!(code == Some(1) && log.contains("image id") && log.contains("ami-other"), "{log}");
        assert_eq!(database.sql("SELECT status FROM cloud.instance_info")?, "PRE_CONNECTION");
        Ok(())
    }

    #[tokio::test]
    async fn a_name_that_another_machine_has_is_refused() -> Result<()> {
        let (_cluster, database, builder) = asked_for("ACTIVE", "test-ami", "i-other").await?;
        let (code, log) = end(&builder.set("instance.id=i-mine")).await?;
        ensure!(code == Some(1) && log.contains("i-other") && log.contains("i-mine"), "{log}");
        let left = database.sql("SELECT status, cloud_provider_id FROM cloud.instance_info")?;
        assert_eq!(left, "ACTIVE|i-other", "the other one goes on");
        Ok(())
    }

    #[tokio::test]
    async fn a_host_that_is_not_wanted_shuts_down_quietly() -> Result<()> {
        for status in ["DRAINING", "HOST_SERVICE_UNRESPONSIVE"] {
            let (_cluster, database, builder) = asked_for(status, "test-ami", "i").await?;
            let (code, log) = end(&builder).await?;
            ensure!(code == Some(0) && log.contains(status) && !log.contains("ERROR"), "{log}");
            assert_eq!(database.sql("SELECT status FROM cloud.instance_info")?, status);
        }
        Ok(())
    }
}
