//! The seed's walk-through, word for word, with the commas that its statements lack: what `make runlocaldevwithdb` does,
//! and what a newcomer does beside it.

use anyhow::{Context, Result, ensure};
use host_tests::{ground::Ground, oci::OciHost, postgres::Development, service::Service, wait::until};

use crate::SOON;

const INSERT_INSTANCE: &str = r#"INSERT INTO "cloud"."instance_info" ("ip","location","aws_ami_id","aws_instance_type","cloud_provider_id","commit_hash","creation_time_utc_unix_ms","gpu_vram_remaining_kb", "instance_name","last_updated_utc_unix_ms","mandelbox_capacity","memory_remaining_kb", "nanocpus_remaining","status") VALUES ('test-ip-addr','us-east-1', 'test-ami','g4dn.xlarge','test-aws-id','<the commit hash you are on>','1633366678649','15472256','<your instance name>','1633373119691','1', '31577212','7997643688','PRE_CONNECTION');"#;

const INSERT_MANDELBOX: &str = r#"INSERT INTO "cloud"."mandelbox_info" ("mandelbox_id","user_id","instance_name","status","creation_time_utc_unix_ms","session_id") VALUES ('182cas8923jnckku023ind3','localdev_user_id','<your instance name>','ALLOCATED','1634241280','4389789vnuf2f32f3f');"#;

const MANDELBOX: &str = "182cas8923jnckku023ind3";

#[tokio::test]
async fn a_row_registers_the_host_another_spins_up_and_an_update_drains() -> Result<()> {
    let host = OciHost::scratch().await?;
    let data = host.directory().join("database");
    let database = Development::start(&host.world().entrance()?, &data).await?;
    let builder = Service::on(&host).profile("localdevwithdb");
    let migrated = builder.cli(&["db", "migrate"])?;
    ensure!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let version = String::from_utf8(builder.cli(&["version"])?.stdout)?;
    let commit = version.lines().find_map(|line| line.strip_prefix("commit")).context(version.clone())?;
    let filled = |sql: &str| {
        sql.replace("<your instance name>", builder.name())
            .replace("<the commit hash you are on>", commit.trim())
    };
    let (insert_instance, insert_mandelbox) = (filled(INSERT_INSTANCE), filled(INSERT_MANDELBOX));

    database.sql(&insert_instance)?;
    let mut service = builder.start().await?;
    let ready = async || (service.probe("/readyz").await.ok()?.0 == 200).then_some(());
    until("readiness", SOON, ready).await.with_context(|| service.log())?;
    ensure!(service.log().contains("Entering event loop…"), "{}", service.log());
    let registered = database.sql("SELECT status, ip FROM cloud.instance_info")?;
    assert_eq!(registered, "ACTIVE|127.0.0.1");

    database.sql(&insert_mandelbox)?;
    let status = || database.sql("SELECT status FROM cloud.mandelbox_info");
    until("claim", SOON, async || (status().ok()? == "CONNECTING").then_some(())).await?;
    let answer = service.ask(MANDELBOX, "browsers/chrome").await?;
    ensure!(answer.status == 200, "{answer:?}\n{}", service.log());
    assert_eq!(service.facts(&answer).await?["id"], MANDELBOX);
    until("status RUNNING", SOON, async || (status().ok()? == "RUNNING").then_some(())).await?;

    database.sql("UPDATE cloud.instance_info SET status='DRAINING'")?;
    ensure!(service.ended().await?.success(), "{}", service.log());
    ensure!(!service.root().exists() && !service.state().exists(), "something is left\n{}", service.log());
    host.assert_none(service.name()).await?;
    let rows = "SELECT count(*) FROM cloud.instance_info UNION ALL SELECT count(*) FROM cloud.mandelbox_info";
    assert_eq!(database.sql(rows)?, "0\n0");
    drop(service);

    ensure!(database.end().await?.success(), "the database did not end well");
    host.assert_untouched().await
}

#[tokio::test]
async fn the_development_database_keeps_its_data_to_itself() -> Result<()> {
    let host = OciHost::scratch().await?;
    let entrance = host.world().entrance()?;
    let data = host.directory().join("database");
    let database = Development::start(&entrance, &data).await?;
    database.sql("CREATE TABLE kept (n integer)")?;
    ensure!(database.end().await?.success(), "it did not end well");
    host.assert_untouched().await?;
    let database = Development::start(&entrance, &data).await?;
    assert_eq!(database.sql("SELECT count(*) FROM kept")?, "0", "the table is still there");
    let mode = std::os::unix::fs::MetadataExt::mode(&data.metadata()?);
    assert_eq!(mode & 0o007, 0, "{mode:o}");
    database.end().await?;
    host.assert_untouched().await
}
