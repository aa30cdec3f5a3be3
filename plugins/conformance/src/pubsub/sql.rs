//! The other half of a control plane in SQL, for every plugin in front of the schema `cloud`.

use std::sync::Arc;

use async_trait::async_trait;
use host_core::{
    ErrorKind, InstanceName, MandelboxId, PluginError,
    pubsub::{Heartbeat, InstanceFacts, InstanceStatus, MandelboxRow, MandelboxStatus, PubSub},
};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls, Row, types::ToSql};

use super::{ControlPlane, Instance};

/// A plugin in front of the database, and how its connections are cut.
#[async_trait]
pub trait Host: Send + Sync {
    /// The plugin as a host would have it.
    async fn connect(&self) -> Result<Arc<dyn PubSub>, PluginError>;

    /// Cuts the connections under every watch there is.
    async fn cut(&self, database: &Client) -> Result<(), PluginError>;
}

/// A database, behind the back of a [`Host`].
#[derive(Debug)]
pub struct Sql<H> {
    host: H,
    client: Client,
    _connection: JoinSet<()>,
}

type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

impl<H: Host> Sql<H> {
    /// Over the database at `url`, which has the schema.
    ///
    /// # Errors
    /// It cannot be connected to.
    pub async fn new(url: &str, host: H) -> Result<Self, PluginError> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.map_err(failed)?;
        let mut driver = JoinSet::new();
        driver.spawn(async {
            // Why it ended, its next statement tells.
            let _ = connection.await;
        });
        Ok(Self { host, client, _connection: driver })
    }

    async fn run(&self, sql: &str, parameters: Parameters<'_>) -> Result<Vec<Row>, PluginError> {
        self.client.query(sql, parameters).await.map_err(failed)
    }

    async fn change(&self, sql: &str, parameters: Parameters<'_>) -> Result<(), PluginError> {
        self.run(sql, parameters).await.map(drop)
    }
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> PluginError {
    PluginError::new(ErrorKind::Internal, "the control plane").with_source(error)
}

/// What the database holds is what a behaviour has written, so anything else is its fault.
fn known<T>(value: Option<T>) -> Result<T, PluginError> {
    value.ok_or_else(|| failed("a value that is none"))
}

fn read_instance(row: &Row) -> Result<Instance, PluginError> {
    Ok(Instance {
        status: known(InstanceStatus::parse(row.get(0)))?,
        ip: row.get(1),
        heartbeat: Some(Heartbeat {
            at_ms: row.get(2),
            memory_remaining_kb: row.get(3),
            nanocpus_remaining: row.get(4),
            gpu_vram_remaining_kb: row.get(5),
            capacity: u32::try_from(row.get::<_, i64>(6)).map_err(failed)?,
        }),
    })
}

fn read_mandelbox(id: &MandelboxId, row: &Row) -> Result<MandelboxRow, PluginError> {
    let app = row.get::<_, Option<String>>(2).map(|app| app.parse());
    Ok(MandelboxRow {
        id: id.clone(),
        user: row.get::<_, String>(0).parse().map_err(failed)?,
        session: row.get::<_, String>(1).parse().map_err(failed)?,
        app: app.transpose().map_err(failed)?,
        status: known(MandelboxStatus::parse(row.get(3)))?,
        created_ms: row.get(4),
    })
}

#[async_trait]
impl<H: Host> ControlPlane for Sql<H> {
    async fn connect(&self) -> Result<Arc<dyn PubSub>, PluginError> {
        self.host.connect().await
    }

    async fn insert_instance(
        &self,
        facts: &InstanceFacts,
        status: InstanceStatus,
    ) -> Result<(), PluginError> {
        let InstanceFacts { name, cloud_id, image_id, region, instance_type, ip, commit } = facts;
        self.change(
            "INSERT INTO cloud.instance_info VALUES ($1, $2, $3, $4, $5, $6, 1, 0, $7, 0, 0, 0, 0, $8)",
            &[ip, region, image_id, instance_type, cloud_id, commit, &name.as_str(), &status.as_str()],
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
        let sql = "SELECT status, ip, last_updated_utc_unix_ms, memory_remaining_kb, nanocpus_remaining, \
                   gpu_vram_remaining_kb, mandelbox_capacity FROM cloud.instance_info WHERE instance_name = $1";
        self.run(sql, &[&instance.as_str()]).await?.first().map(read_instance).transpose()
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
        rows.first().map(|row| read_mandelbox(mandelbox, row)).transpose()
    }

    async fn delete_mandelbox(&self, mandelbox: &MandelboxId) -> Result<(), PluginError> {
        self.change("DELETE FROM cloud.mandelbox_info WHERE mandelbox_id = $1", &[&mandelbox.as_str()]).await
    }

    async fn cut(&self) -> Result<bool, PluginError> {
        self.host.cut(&self.client).await.map(|()| true)
    }
}
