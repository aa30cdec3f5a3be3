//! What tests stand on: a server, a database with the schema, and the plugin in front of it.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use futures::{StreamExt, stream::BoxStream};
use host_core::{
    InstanceName, MandelboxId, PluginError,
    pubsub::{DesiredState, Heartbeat, InstanceFacts, MandelboxRow, MandelboxStatus, PubSub},
    registry::{Context, Role},
};
use host_tests::{
    postgres::{Cluster, Database},
    wait::until,
};
use pubsub_postgres::{Config, PostgresPubSub};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

/// What a loaded machine may take for anything that should be quick.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) database: Database,
    pub(crate) state: TempDir,
}

impl Stage {
    /// A database of its own on the server of this run.
    pub(crate) async fn new() -> Result<Self> {
        Self::on(Cluster::shared().await?).await
    }

    /// A server of its own.
    pub(crate) async fn scratch() -> Result<Self> {
        Self::on(Cluster::scratch().await?).await
    }

    pub(crate) async fn on(cluster: Cluster) -> Result<Self> {
        let stage = Self::empty(cluster)?;
        pubsub_postgres::migrate(&config(&stage.database.url(), json!({})), false).await?;
        Ok(stage)
    }

    /// Without a schema.
    pub(crate) fn empty(cluster: Cluster) -> Result<Self> {
        Ok(Self { database: cluster.database()?, cluster, state: tempfile::tempdir()? })
    }

    pub(crate) async fn connect(&self) -> Result<Arc<PostgresPubSub>, PluginError> {
        self.connect_as(&self.database.url(), json!({})).await
    }

    /// With these keys of the section beside the URL.
    pub(crate) async fn connect_as(
        &self,
        url: &str,
        keys: Value,
    ) -> Result<Arc<PostgresPubSub>, PluginError> {
        Ok(Arc::new(PostgresPubSub::connect(&config(url, keys), &self.context(false)).await?))
    }

    pub(crate) fn context(&self, local: bool) -> Context {
        Context { state_dir: self.state.path().to_owned(), local, role: Role::Service }
    }

    /// A host's row, active.
    pub(crate) fn host(&self, name: &str) -> Result<InstanceName> {
        self.host_with(name, "ACTIVE", 3)?;
        Ok(name.parse()?)
    }

    pub(crate) fn host_with(&self, name: &str, status: &str, capacity: u32) -> Result<()> {
        let now = now_ms();
        self.database.sql(&format!(
            "INSERT INTO cloud.instance_info VALUES ('192.0.2.1', 'us-east-1', 'ami-1', 'g4dn.xlarge', 'i-{name}', \
             'abc', {now}, 0, '{name}', {now}, {capacity}, 0, 0, '{status}')"
        ))?;
        Ok(())
    }

    /// A mandelbox's row, just created.
    pub(crate) fn row(&self, host: &InstanceName, id: &str, status: &str) -> Result<()> {
        self.aged_row(host, id, status, Duration::ZERO)
    }

    pub(crate) fn aged_row(&self, host: &InstanceName, id: &str, status: &str, age: Duration) -> Result<()> {
        let created = now_ms() - i64::try_from(age.as_millis())?;
        self.database.sql(&format!(
            "INSERT INTO cloud.mandelbox_info VALUES ('{id}', 'user-1', '{host}', '{status}', {created}, 'session-1')"
        ))?;
        Ok(())
    }

    /// A mandelbox's status; empty when there is no row.
    pub(crate) fn status(&self, id: &str) -> Result<String> {
        self.database.sql(&format!("SELECT status FROM cloud.mandelbox_info WHERE mandelbox_id = '{id}'"))
    }

    /// Holds a mandelbox's row, so that nobody else can write it, until this is dropped.
    pub(crate) async fn lock(&self, id: &str) -> Result<JoinSet<()>> {
        let (client, connection) = tokio_postgres::connect(&self.database.url(), NoTls).await?;
        let mut held = JoinSet::new();
        held.spawn(async {
            // Whoever holds it drops it.
            let _ = connection.await;
        });
        let sql = format!("BEGIN; SELECT FROM cloud.mandelbox_info WHERE mandelbox_id = '{id}' FOR UPDATE");
        client.batch_execute(&sql).await?;
        held.spawn(async move {
            let _held = client;
            std::future::pending().await
        });
        Ok(held)
    }

    /// The file of undelivered statuses.
    pub(crate) fn queue_file(&self) -> std::path::PathBuf {
        self.state.path().join("pubsub-postgres.queue")
    }
}

pub(crate) fn config(url: &str, mut keys: Value) -> Config {
    keys["url"] = url.into();
    serde_json::from_value(keys).unwrap()
}

pub(crate) fn now_ms() -> i64 {
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(unix.as_millis()).unwrap()
}

pub(crate) fn beat() -> Heartbeat {
    Heartbeat {
        at_ms: now_ms(),
        memory_remaining_kb: 1,
        nanocpus_remaining: 2,
        gpu_vram_remaining_kb: 3,
        capacity: 3,
    }
}

pub(crate) fn facts(name: &str) -> InstanceFacts {
    InstanceFacts {
        name: name.parse().unwrap(),
        cloud_id: format!("i-{name}"),
        image_id: "ami-1".into(),
        region: "us-east-1".into(),
        instance_type: "g4dn.xlarge".into(),
        ip: "192.0.2.1".into(),
        commit: "abc".into(),
    }
}

pub(crate) fn id(text: &str) -> MandelboxId {
    text.parse().unwrap()
}

/// A watch as the host keeps it: made anew whenever it ends.
pub(crate) struct Watcher {
    pubsub: Arc<PostgresPubSub>,
    host: InstanceName,
    states: Option<BoxStream<'static, host_core::pubsub::Result<DesiredState>>>,
    /// Why it last ended.
    pub(crate) error: Option<PluginError>,
}

impl Watcher {
    pub(crate) fn new(pubsub: &Arc<PostgresPubSub>, host: &InstanceName) -> Self {
        Self { pubsub: pubsub.clone(), host: host.clone(), states: None, error: None }
    }

    /// The next state or end of the watch.
    pub(crate) async fn step(&mut self) -> Option<DesiredState> {
        if self.states.is_none() {
            match self.pubsub.watch(&self.host).await {
                Ok(states) => self.states = Some(states),
                Err(error) => {
                    self.error = Some(error);
                    // As the host does between tries.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    return None;
                }
            }
        }
        match self.states.as_mut()?.next().await {
            Some(Ok(state)) => return Some(state),
            Some(Err(error)) => self.error = Some(error),
            None => {}
        }
        self.states = None;
        None
    }

    /// Goes on until a state is so, over as many watches as it takes.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        condition: impl Fn(&DesiredState) -> bool,
    ) -> Result<DesiredState> {
        let wait = async {
            loop {
                if let Some(state) = self.step().await.filter(&condition) {
                    return state;
                }
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        waited.with_context(|| format!("no {what}; the last error is {:?}", self.error))
    }

    /// Goes on until a watch ends.
    pub(crate) async fn until_it_ends(&mut self) -> Result<PluginError> {
        self.error = None;
        let wait = async {
            loop {
                self.step().await;
                if let Some(error) = self.error.take() {
                    return error;
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.context("the watch goes on")
    }

    /// Goes on watching until this is done.
    pub(crate) async fn meanwhile<T>(&mut self, other: impl Future<Output = Result<T>>) -> Result<T> {
        let watching = async {
            loop {
                self.step().await;
            }
        };
        tokio::select! {
            done = other => done,
            () = watching => unreachable!("it goes on for ever"),
        }
    }

    /// Goes on watching until nothing waits any more.
    pub(crate) async fn until_delivered(&mut self) -> Result<()> {
        let pubsub = self.pubsub.clone();
        let is_done = async || (pubsub.undelivered() == 0).then_some(());
        self.meanwhile(until("delivery", PATIENCE, is_done)).await
    }

    /// The row of this id, which must be there now.
    pub(crate) async fn row(&mut self, id: &str) -> Result<MandelboxRow> {
        let state = self.until(id, |state| state.mandelboxes.iter().any(|row| row.id.as_str() == id)).await?;
        state.mandelboxes.into_iter().find(|row| row.id.as_str() == id).context("the row")
    }

    /// The status of this row at this time.
    pub(crate) async fn until_status(&mut self, id: &str, status: MandelboxStatus) -> Result<()> {
        let has = |row: &MandelboxRow| row.id.as_str() == id && row.status == status;
        self.until(id, |state| state.mandelboxes.iter().any(has)).await.map(drop)
    }
}

/// Waits until the database says so.
pub(crate) async fn until_sql(database: &Database, sql: &str, expected: &str) -> Result<()> {
    let is_so = async || database.sql(sql).ok().filter(|answer| answer == expected).map(drop);
    until(&format!("{expected:?} from {sql}"), PATIENCE, is_so).await
}
