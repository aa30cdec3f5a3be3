//! What a host's own credentials reach.

use std::time::Duration;

use anyhow::Result;
use host_core::{
    ErrorKind,
    pubsub::{Claim, MandelboxStatus, PubSub, Registered, StaleAfter},
};
use pubsub_postgres::migrate;
use serde_json::json;

use crate::stage::{Stage, Watcher, beat, config, facts};

struct Secured {
    stage: Stage,
    /// The login role of host `mine`.
    role: String,
}

/// Two hosts with a mandelbox each, and a role for one of them.
async fn secured() -> Result<Secured> {
    let stage = Stage::new().await?;
    let secure = config(&stage.database.url(), json!({ "row_security": true }));
    assert!(migrate(&secure, false).await?.row_security);
    assert!(migrate(&secure, false).await?.row_security, "the second time");
    for host in ["mine", "theirs"] {
        stage.host_with(host, "PRE_CONNECTION", 3)?;
        stage.row(&host.parse()?, &format!("m-{host}"), "ALLOCATED")?;
    }
    let role = format!("host_{}", stage.database.name());
    stage.database.sql(&format!("CREATE ROLE {role} LOGIN PASSWORD 'p' IN ROLE cloud_host"))?;
    stage.database.sql(&format!("INSERT INTO cloud.host_credentials VALUES ('{role}', 'mine')"))?;
    Ok(Secured { stage, role })
}

impl Drop for Secured {
    /// Roles belong to the whole server.
    fn drop(&mut self) {
        let role = &self.role;
        let dropped = self.stage.database.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
        if let Err(error) = dropped {
            println!("{role} is left: {error}");
        }
    }
}

#[tokio::test]
async fn a_hosts_credentials_do_everything_that_a_host_does() -> Result<()> {
    let Secured { stage, role } = &secured().await?;
    let pubsub = stage.connect_as(&stage.database.url_of(role), json!({})).await?;
    assert_eq!(pubsub.register(&facts("mine"), &beat()).await?, Registered::Active);
    let host = "mine".parse()?;
    let mut watcher = Watcher::new(&pubsub, &host);
    let row = watcher.row("m-mine").await?;
    assert!(matches!(pubsub.claim(&host, &row).await?, Claim::Won(_)));
    for status in [MandelboxStatus::Running, MandelboxStatus::Dying] {
        pubsub.set_status(&host, &row.id, status).await?;
        watcher.until_status("m-mine", status).await?;
    }
    let at_once = StaleAfter { allocated: Duration::ZERO, connecting: Duration::ZERO };
    pubsub.remove_stale(&host, at_once, &[]).await?;
    pubsub.heartbeat(&host, &beat()).await?;
    pubsub.mark_draining(&host).await?;
    pubsub.remove(&host, &row.id).await?;
    watcher.until("end of the row", |state| state.mandelboxes.is_empty()).await?;
    pubsub.unregister(&host).await?;
    watcher.until("end of the host", |state| state.instance.is_none()).await?;
    Ok(())
}

#[tokio::test]
async fn another_hosts_rows_are_out_of_reach() -> Result<()> {
    let Secured { stage, role } = &secured().await?;
    let before = everything(stage)?;
    let pubsub = stage.connect_as(&stage.database.url_of(role), json!({})).await?;
    let theirs = "theirs".parse()?;
    // Through the plugin: as if there were no such host.
    assert_eq!(Watcher::new(&pubsub, &theirs).step().await, Some(host_core::pubsub::DesiredState::default()));
    let error = pubsub.register(&facts("theirs"), &beat()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    pubsub.heartbeat(&theirs, &beat()).await?;
    pubsub.mark_draining(&theirs).await?;
    pubsub.set_status(&theirs, &"m-theirs".parse()?, MandelboxStatus::Dying).await?;
    pubsub.remove(&theirs, &"m-theirs".parse()?).await?;
    pubsub.unregister(&theirs).await?;
    // And with SQL of one's own.
    for harmless in [
        "UPDATE cloud.instance_info SET status = 'DRAINING' WHERE instance_name = 'theirs'",
        "DELETE FROM cloud.mandelbox_info WHERE instance_name = 'theirs'",
        "SET ROLE cloud_host; DELETE FROM cloud.instance_info WHERE instance_name = 'theirs'",
        "SELECT * FROM cloud.mandelbox_info WHERE instance_name = 'theirs'",
    ] {
        assert_eq!(stage.database.sql_as(role, harmless)?, "", "{harmless}");
    }
    assert_eq!(everything(stage)?, before);
    Ok(())
}

#[tokio::test]
async fn what_a_host_never_does_is_denied() -> Result<()> {
    let Secured { stage, role } = &secured().await?;
    let before = everything(stage)?;
    for denied in [
        "UPDATE cloud.instance_info SET instance_name = 'theirs2'",
        "UPDATE cloud.mandelbox_info SET instance_name = 'theirs'",
        "UPDATE cloud.mandelbox_info SET user_id = 'me'",
        "INSERT INTO cloud.mandelbox_info VALUES ('x', 'u', 'mine', 'ALLOCATED', 1, 's')",
        "INSERT INTO cloud.instance_info SELECT * FROM cloud.instance_info",
        "SELECT * FROM cloud.allocate_mandelbox('u', 'us-east-1', NULL, 's')",
        "SELECT * FROM cloud.instances_with_room_for_mandelboxes",
        "SELECT * FROM cloud.host_credentials",
        "INSERT INTO cloud.host_credentials VALUES ('x', 'theirs')",
        "TRUNCATE cloud.mandelbox_info",
        "ALTER TABLE cloud.mandelbox_info DISABLE ROW LEVEL SECURITY",
        "DELETE FROM cloud.schema_migrations",
        "CREATE TABLE cloud.x ()",
    ] {
        let refused = stage.database.sql_as(role, denied);
        assert!(refused.is_err(), "{denied} was allowed");
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("denied") || text.contains("must be owner"), "{denied}: {text}");
    }
    assert_eq!(everything(stage)?, before);
    Ok(())
}

#[tokio::test]
async fn credentials_that_are_mapped_to_no_host_reach_nothing() -> Result<()> {
    let Secured { stage, role } = &secured().await?;
    stage.database.sql("DELETE FROM cloud.host_credentials")?;
    assert_eq!(stage.database.sql_as(role, "SELECT * FROM cloud.instance_info")?, "");
    Ok(())
}

#[tokio::test]
async fn whoever_is_no_host_is_not_concerned() -> Result<()> {
    let secured = secured().await?;
    let database = &secured.stage.database;
    let web = format!("web_{}", database.name());
    database.sql(&format!(
        "CREATE ROLE {web} LOGIN; GRANT USAGE ON SCHEMA cloud TO {web}; GRANT ALL ON ALL TABLES IN SCHEMA cloud TO {web}"
    ))?;
    let seen = database.sql_as(&web, "SELECT count(*) FROM cloud.instance_info");
    let changed =
        database.sql_as(&web, "UPDATE cloud.mandelbox_info SET status = 'DYING' RETURNING mandelbox_id");
    database.sql(&format!("DROP OWNED BY {web}; DROP ROLE {web}"))?;
    assert_eq!((seen?.as_str(), changed?.lines().count()), ("2", 2));
    Ok(())
}

fn everything(stage: &Stage) -> Result<String> {
    stage
        .database
        .sql("SELECT * FROM cloud.instance_info ORDER BY 1; SELECT * FROM cloud.mandelbox_info ORDER BY 1")
}

#[tokio::test]
async fn who_may_not_have_registered_ends_no_other_machines_row() -> Result<()> {
    let stage = Stage::new().await?;
    stage.host_with("h", "PRE_CONNECTION", 3)?;
    let host = "h".parse()?;
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
