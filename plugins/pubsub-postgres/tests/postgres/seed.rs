//! The seed's walk-through, word for word: its statements with the missing commas put in.

use anyhow::Result;
use host_core::{
    ErrorKind,
    pubsub::{Claim, InstanceStatus, MandelboxStatus, PubSub, Registered},
};
use pubsub_postgres::PostgresPubSub;
use serde_json::json;

use crate::stage::{Stage, Watcher, beat, config, facts};

#[tokio::test]
async fn a_missing_row_is_made_in_local_profiles_only() -> Result<()> {
    let stage = Stage::new().await?;
    let facts = facts("my-host");
    let error = stage.connect().await?.register(&facts, &beat()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(stage.database.sql("SELECT count(*) FROM cloud.instance_info")?, "0");
    let config = config(&stage.database.url(), json!({}));
    let local = PostgresPubSub::connect(&config, &stage.context(true)).await?;
    assert_eq!(local.register(&facts, &beat()).await?, Registered::Active);
    let made = "SELECT status, aws_ami_id, mandelbox_capacity, memory_remaining_kb FROM cloud.instance_info";
    assert_eq!(stage.database.sql(made)?, "ACTIVE|ami-1|3|1");
    Ok(())
}

const INSERT_INSTANCE: &str = r#"INSERT INTO "cloud"."instance_info" ("ip","location","aws_ami_id","aws_instance_type","cloud_provider_id","commit_hash","creation_time_utc_unix_ms","gpu_vram_remaining_kb", "instance_name","last_updated_utc_unix_ms","mandelbox_capacity","memory_remaining_kb", "nanocpus_remaining","status") VALUES ('test-ip-addr','us-east-1', 'test-ami','g4dn.xlarge','test-aws-id','<the commit hash you are on>','1633366678649','15472256','<your instance name>','1633373119691','1', '31577212','7997643688','PRE_CONNECTION');"#;

const INSERT_MANDELBOX: &str = r#"INSERT INTO "cloud"."mandelbox_info" ("mandelbox_id","user_id","instance_name","status","creation_time_utc_unix_ms","session_id") VALUES ('182cas8923jnckku023ind3','localdev_user_id','<your instance name>','ALLOCATED','1634241280','4389789vnuf2f32f3f');"#;

#[tokio::test]
async fn the_seeds_statements_register_allocate_and_drain() -> Result<()> {
    let stage = Stage::new().await?;
    let mut facts = facts("my-host");
    facts.image_id = "test-ami".into();
    facts.commit = "0123456789abcdef".into();
    let filled = |sql: &str| {
        sql.replace("<your instance name>", "my-host").replace("<the commit hash you are on>", "0123456")
    };
    stage.database.sql(&filled(INSERT_INSTANCE))?;

    let pubsub = stage.connect().await?;
    assert_eq!(pubsub.register(&facts, &beat()).await?, Registered::Active);
    let mut watcher = Watcher::new(&pubsub, &facts.name);
    watcher.until("active host", |state| state.instance == Some(InstanceStatus::Active)).await?;

    stage.database.sql(&filled(INSERT_MANDELBOX))?;
    let row = watcher.row("182cas8923jnckku023ind3").await?;
    assert_eq!((row.status, row.user.as_str()), (MandelboxStatus::Allocated, "localdev_user_id"));
    assert!(matches!(pubsub.claim(&facts.name, &row).await?, Claim::Won(_)));
    assert_eq!(stage.status("182cas8923jnckku023ind3")?, "CONNECTING");

    stage.database.sql("UPDATE cloud.instance_info SET status='DRAINING'")?;
    watcher.until("draining host", |state| state.instance == Some(InstanceStatus::Draining)).await?;
    assert_eq!(pubsub.register(&facts, &beat()).await?, Registered::Unwanted(InstanceStatus::Draining));
    Ok(())
}
