//! Runs what every `PubSub` must do, with SQL as the control plane.

use std::sync::Arc;

use async_trait::async_trait;
use conformance::pubsub::{ControlPlane, Instance, behaviours};
use host_core::{
    ErrorKind, InstanceName, MandelboxId, PluginError,
    pubsub::{Heartbeat, InstanceFacts, InstanceStatus, MandelboxRow, MandelboxStatus, PubSub},
};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls, Row, types::ToSql};

use crate::stage::Stage;

struct Sql {
    stage: Stage,
    client: Client,
    _connection: JoinSet<()>,
}

type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Sql {
    async fn new() -> anyhow::Result<Self> {
        let stage = Stage::new().await?;
        let (client, connection) = tokio_postgres::connect(&stage.database.url(), NoTls).await?;
        let mut driver = JoinSet::new();
        driver.spawn(async { connection.await.unwrap() });
        Ok(Self { stage, client, _connection: driver })
    }

    async fn run(&self, sql: &str, parameters: Parameters<'_>) -> Result<Vec<Row>, PluginError> {
        let rows = self.client.query(sql, parameters).await;
        rows.map_err(|error| PluginError::new(ErrorKind::Internal, "the control plane").with_source(error))
    }

    async fn change(&self, sql: &str, parameters: Parameters<'_>) -> Result<(), PluginError> {
        self.run(sql, parameters).await.map(drop)
    }
}

#[async_trait]
impl ControlPlane for Sql {
    async fn connect(&self) -> Result<Arc<dyn PubSub>, PluginError> {
        Ok(self.stage.connect().await?)
    }

    async fn insert_instance(
        &self,
        facts: &InstanceFacts,
        status: InstanceStatus,
    ) -> Result<(), PluginError> {
        let InstanceFacts { name, cloud_id, image_id, region, instance_type, ip, commit, capacity } = facts;
        self.change(
            "INSERT INTO cloud.instance_info VALUES ($1, $2, $3, $4, $5, $6, 1, 0, $7, 0, $8, 0, 0, $9)",
            &[
                ip,
                region,
                image_id,
                instance_type,
                cloud_id,
                commit,
                &name.as_str(),
                &i64::from(*capacity),
                &status.as_str(),
            ],
        )
        .await
    }

    async fn set_instance_status(
        &self,
        instance: &InstanceName,
        status: InstanceStatus,
    ) -> Result<(), PluginError> {
        let sql = "UPDATE cloud.instance_info SET status = $2 WHERE instance_name = $1";
        self.change(sql, &[&instance.as_str(), &status.as_str()]).await
    }

    async fn instance(&self, instance: &InstanceName) -> Result<Option<Instance>, PluginError> {
        let sql = "SELECT status, ip, mandelbox_capacity, last_updated_utc_unix_ms, memory_remaining_kb, \
                   nanocpus_remaining, gpu_vram_remaining_kb FROM cloud.instance_info WHERE instance_name = $1";
        let rows = self.run(sql, &[&instance.as_str()]).await?;
        Ok(rows.first().map(|row| Instance {
            status: InstanceStatus::parse(row.get(0)).unwrap(),
            ip: row.get(1),
            capacity: u32::try_from(row.get::<_, i64>(2)).unwrap(),
            heartbeat: Some(Heartbeat {
                at_ms: row.get(3),
                memory_remaining_kb: row.get(4),
                nanocpus_remaining: row.get(5),
                gpu_vram_remaining_kb: row.get(6),
            }),
        }))
    }

    async fn delete_instance(&self, instance: &InstanceName) -> Result<(), PluginError> {
        self.change("DELETE FROM cloud.instance_info WHERE instance_name = $1", &[&instance.as_str()]).await
    }

    async fn insert_mandelbox(&self, instance: &InstanceName, row: &MandelboxRow) -> Result<(), PluginError> {
        self.change(
            "INSERT INTO cloud.mandelbox_info VALUES ($1, $2, $3, $4, $5, $6, $7)",
            &[
                &row.id.as_str(),
                &row.user.as_str(),
                &instance.as_str(),
                &row.status.as_str(),
                &row.created_ms,
                &row.session.as_str(),
                &row.app.as_ref().map(|app| app.as_str()),
            ],
        )
        .await
    }

    async fn mandelbox(&self, mandelbox: &MandelboxId) -> Result<Option<MandelboxRow>, PluginError> {
        let sql = "SELECT user_id, session_id, app, status, creation_time_utc_unix_ms FROM cloud.mandelbox_info \
                   WHERE mandelbox_id = $1";
        let rows = self.run(sql, &[&mandelbox.as_str()]).await?;
        Ok(rows.first().map(|row| MandelboxRow {
            id: mandelbox.clone(),
            user: row.get::<_, String>(0).parse().unwrap(),
            session: row.get::<_, String>(1).parse().unwrap(),
            app: row.get::<_, Option<String>>(2).map(|app| app.parse().unwrap()),
            status: MandelboxStatus::parse(row.get(3)).unwrap(),
            created_ms: row.get(4),
        }))
    }

    async fn delete_mandelbox(&self, mandelbox: &MandelboxId) -> Result<(), PluginError> {
        self.change("DELETE FROM cloud.mandelbox_info WHERE mandelbox_id = $1", &[&mandelbox.as_str()]).await
    }

    async fn cut(&self) -> Result<bool, PluginError> {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        self.change(sql, &[]).await?;
        Ok(true)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_does_what_every_pubsub_must_do() {
    let plane = Sql::new().await.unwrap();
    let report =
        conformance::report::run("pubsub-postgres", &plane as &dyn ControlPlane, &behaviours()).await;
    println!("{report}");
    assert!(report.holds(), "{report}");
}
