//! `cloud.allocate_mandelbox`: a fleet shares one database, with no scheduler.

use std::sync::Arc;

use anyhow::Result;
use host_tests::postgres::{Cluster, Setup};
use tokio::{sync::Barrier, task::JoinSet};
use tokio_postgres::NoTls;

use crate::stage::{Stage, Watcher};

const CALL: &str =
    "SELECT mandelbox_id, instance_name FROM cloud.allocate_mandelbox('u', 'us-east-1', 'test/app', 's')";

#[tokio::test]
async fn the_fullest_active_host_of_the_region_with_room_is_taken() -> Result<()> {
    let stage = Stage::new().await?;
    for (name, status, capacity) in [
        ("a", "ACTIVE", 2),
        ("b", "ACTIVE", 2),
        ("c", "DRAINING", 9),
        ("d", "PRE_CONNECTION", 9),
        ("e", "ACTIVE", 9),
    ] {
        stage.host_with(name, status, capacity)?;
    }
    stage.database.sql("UPDATE cloud.instance_info SET location = 'elsewhere' WHERE instance_name = 'e'")?;
    let b = "b".parse()?;
    stage.row(&b, "first", "RUNNING")?;
    let next = || {
        stage.database.sql("SELECT instance_name FROM cloud.allocate_mandelbox('u', 'us-east-1', NULL, 's')")
    };
    assert_eq!([next()?, next()?, next()?, next()?], ["b", "a", "a", ""]);
    Ok(())
}

#[tokio::test]
async fn what_is_allocated_reaches_its_host_whole() -> Result<()> {
    let stage = Stage::new().await?;
    let host = stage.host("h")?;
    let pubsub = stage.connect().await?;
    let mut watcher = Watcher::new(&pubsub, &host);
    watcher.step().await;
    let id = stage.database.sql(CALL)?;
    let row = watcher.row(id.split('|').next().unwrap()).await?;
    assert_eq!((row.user.as_str(), row.session.as_str()), ("u", "s"));
    assert_eq!(row.app.unwrap().as_str(), "test/app");
    Ok(())
}

#[tokio::test]
async fn a_snapshot_that_cannot_see_others_is_refused() -> Result<()> {
    let stage = Stage::new().await?;
    stage.host("h")?;
    let error = stage.database.sql(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {CALL}")).unwrap_err();
    assert!(error.to_string().contains("READ COMMITTED"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_host_that_somebody_else_is_allocating_on_is_waited_for_only_when_no_other_has_room() -> Result<()>
{
    let stage = Stage::new().await?;
    stage.host_with("a", "ACTIVE", 5)?;
    stage.host_with("b", "ACTIVE", 1)?;
    let (mut holder, connection) = tokio_postgres::connect(&stage.database.url(), NoTls).await?;
    let mut driver = JoinSet::new();
    driver.spawn(async { connection.await.unwrap() });
    let held = holder.transaction().await?;
    assert_eq!(held.query_one(CALL, &[]).await?.get::<_, String>(1), "a");
    // `a` is held, `b` has room; then only `a` has.
    assert!(stage.database.sql(CALL)?.ends_with("|b"));
    let database = stage.database.clone();
    let waiting = std::thread::spawn(move || database.sql(CALL));
    let blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    crate::stage::until_sql(&stage.database, blocked, "1").await?;
    held.commit().await?;
    assert!(waiting.join().unwrap()?.ends_with("|a"));
    Ok(())
}

/// One server of its own: the others could not connect meanwhile.
mod scratch {
    use super::*;

    const CALLERS: usize = 1000;
    const HOSTS: usize = 50;
    const CAPACITY: u32 = 16;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_a_thousand_callers_as_many_succeed_as_there_is_room() -> Result<()> {
        let settings = ["max_connections = 1100"];
        let stage =
            Stage::on(Cluster::scratch_with(Setup { settings: &settings, ..Setup::default() }).await?)
                .await?;
        for n in 0..HOSTS {
            stage.host_with(&format!("h{n}"), "ACTIVE", CAPACITY)?;
        }
        let start = Arc::new(Barrier::new(CALLERS));
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let (url, start) = (stage.database.url(), start.clone());
            callers.spawn(async move { call(&url, &start).await });
        }
        let mut succeeded = 0;
        while let Some(called) = callers.join_next().await {
            succeeded += usize::from(called??);
        }
        let room = HOSTS * CAPACITY as usize;
        assert_eq!(succeeded, room.min(CALLERS));
        let over = "SELECT count(*) FROM (SELECT FROM cloud.mandelbox_info GROUP BY instance_name \
                    HAVING count(*) > 16) AS over";
        assert_eq!(stage.database.sql(over)?, "0");
        Ok(())
    }

    /// Whether there was room, on a connection of its own.
    async fn call(url: &str, start: &Barrier) -> Result<bool> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        let mut driver = JoinSet::new();
        driver.spawn(async { connection.await.unwrap() });
        start.wait().await;
        Ok(client.query_opt(CALL, &[]).await?.is_some())
    }
}
