//! `db migrate`, on databases in any state.

use anyhow::Result;
use host_core::{ErrorKind, PluginError};
use host_tests::postgres::Cluster;
use pubsub_postgres::{Migrated, migrate};
use serde_json::json;
use tokio::task::JoinSet;

use crate::stage::{Stage, config, now_ms};

/// The original system's schema, as a dump of it has it.
const ORIGINAL: &str = "
    CREATE SCHEMA cloud;
    CREATE TABLE cloud.instance_info (ip character varying NOT NULL, location character varying NOT NULL,
        aws_ami_id character varying NOT NULL, aws_instance_type character varying NOT NULL,
        cloud_provider_id character varying NOT NULL, commit_hash character varying NOT NULL,
        creation_time_utc_unix_ms bigint NOT NULL, gpu_vram_remaining_kb bigint NOT NULL,
        instance_name character varying NOT NULL, last_updated_utc_unix_ms bigint NOT NULL,
        mandelbox_capacity bigint NOT NULL, memory_remaining_kb bigint NOT NULL,
        nanocpus_remaining bigint NOT NULL, status character varying NOT NULL);
    CREATE TABLE cloud.mandelbox_info (mandelbox_id character varying NOT NULL, user_id character varying NOT NULL,
        instance_name character varying NOT NULL, status character varying NOT NULL,
        creation_time_utc_unix_ms bigint NOT NULL, session_id character varying NOT NULL);
    ALTER TABLE cloud.instance_info ADD CONSTRAINT instance_info_pkey PRIMARY KEY (instance_name);
    ALTER TABLE cloud.mandelbox_info ADD CONSTRAINT mandelbox_info_pkey PRIMARY KEY (mandelbox_id);
    ALTER TABLE cloud.mandelbox_info ADD CONSTRAINT mandelbox_instance_name_fkey FOREIGN KEY (instance_name)
        REFERENCES cloud.instance_info (instance_name) ON UPDATE CASCADE ON DELETE CASCADE;
    CREATE VIEW cloud.lingering_instances AS SELECT instance_name FROM cloud.instance_info;
    INSERT INTO cloud.instance_info VALUES ('ip', 'r', 'ami', 'type', 'id', 'c', 1, 2, 'old-host', 3, 4, 5, 6, 'ACTIVE');
    INSERT INTO cloud.mandelbox_info VALUES ('old', 'u', 'old-host', 'RUNNING', 1, 's')";

async fn empty() -> Result<Stage> {
    Stage::empty(Cluster::shared().await?)
}

async fn run(stage: &Stage) -> Result<Migrated, PluginError> {
    migrate(&config(&stage.database.url(), json!({})), false).await
}

#[tokio::test]
async fn an_empty_database_gets_everything_once() -> Result<()> {
    let stage = empty().await?;
    let first = run(&stage).await?;
    assert_eq!((first.applied.len(), first.version, first.row_security), (5, 5, false));
    let again = run(&stage).await?;
    assert_eq!((again.applied.len(), again.version), (0, 5));
    assert!(again.to_string().contains("nothing to do"), "{again}");
    stage.connect().await?;
    Ok(())
}

#[tokio::test]
async fn the_original_schema_is_taken_on_with_its_rows_and_views() -> Result<()> {
    let stage = empty().await?;
    stage.database.sql(ORIGINAL)?;
    assert_eq!(run(&stage).await?.applied.len(), 5);
    let rows = stage.database.sql("SELECT mandelbox_id, status, app IS NULL FROM cloud.mandelbox_info")?;
    assert_eq!(rows, "old|RUNNING|t");
    assert_eq!(stage.database.sql("SELECT * FROM cloud.lingering_instances")?, "old-host");
    let room = "SELECT instance_name, num_running_mandelboxes FROM cloud.instances_with_room_for_mandelboxes";
    assert_eq!(stage.database.sql(room)?, "old-host|1");
    stage.connect().await?;
    Ok(())
}

#[tokio::test]
async fn many_at_once_do_it_once() -> Result<()> {
    let stage = empty().await?;
    let mut all = JoinSet::new();
    for _ in 0..8 {
        let config = config(&stage.database.url(), json!({}));
        all.spawn(async move { migrate(&config, false).await });
    }
    let mut applied = 0;
    while let Some(migrated) = all.join_next().await {
        applied += migrated??.applied.len();
    }
    assert_eq!(applied, 5);
    Ok(())
}

#[tokio::test]
async fn what_is_not_the_original_schema_is_left_alone() -> Result<()> {
    let stage = empty().await?;
    stage.database.sql(ORIGINAL)?;
    stage.database.sql("ALTER TABLE cloud.mandelbox_info DROP COLUMN session_id")?;
    let error = run(&stage).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("cloud.mandelbox_info.session_id"), "{error}");
    assert_eq!(stage.database.sql("SELECT to_regclass('cloud.schema_migrations') IS NULL")?, "t");
    Ok(())
}

#[tokio::test]
async fn a_migration_changed_afterwards_is_noticed() -> Result<()> {
    let stage = empty().await?;
    run(&stage).await?;
    stage.database.sql("UPDATE cloud.schema_migrations SET digest = 'x' WHERE version = 2")?;
    let error = run(&stage).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("002_columns"), "{error}");
    Ok(())
}

#[tokio::test]
async fn whoever_may_not_is_told_so() -> Result<()> {
    let stage = empty().await?;
    let role = format!("nobody_{}", stage.database.name());
    stage.database.sql(&format!("CREATE ROLE {role} LOGIN"))?;
    let denied = migrate(&config(&stage.database.url_of(&role), json!({})), false).await;
    stage.database.sql(&format!("DROP ROLE {role}"))?;
    assert_eq!(denied.unwrap_err().kind(), ErrorKind::Denied);
    Ok(())
}

#[tokio::test]
async fn lingering_hosts_are_those_that_somebody_should_look_after() -> Result<()> {
    let stage = Stage::new().await?;
    for (name, status) in [
        ("fine", "ACTIVE"),
        ("silent", "ACTIVE"),
        ("booting", "PRE_CONNECTION"),
        ("never", "PRE_CONNECTION"),
        ("empty", "ACTIVE"),
        ("busy", "ACTIVE"),
        ("just_empty", "ACTIVE"),
    ] {
        stage.host_with(name, status, 3)?;
    }
    let old = now_ms() - 200_000;
    let set = |what: String| stage.database.sql(&format!("UPDATE cloud.instance_info SET {what}"));
    set(format!("last_updated_utc_unix_ms = {old} WHERE instance_name IN ('silent', 'booting')"))?;
    set(format!("creation_time_utc_unix_ms = {} WHERE instance_name = 'never'", now_ms() - 1_000_000))?;
    for host in ["busy", "just_empty"] {
        stage.row(&host.parse()?, host, "RUNNING")?;
    }
    set("status = 'DRAINING' WHERE instance_name IN ('empty', 'busy', 'just_empty')".to_owned())?;
    set(format!("idle_since_utc_unix_ms = {old} WHERE status = 'DRAINING'"))?;
    // Its last mandelbox has only just gone.
    stage.database.sql("DELETE FROM cloud.mandelbox_info WHERE mandelbox_id = 'just_empty'")?;
    let lingering = stage
        .database
        .sql("SELECT string_agg(instance_name, ' ' ORDER BY instance_name) FROM cloud.lingering_instances")?;
    assert_eq!(lingering, "empty never silent");
    Ok(())
}
