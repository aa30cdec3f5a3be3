//! What tests stand on: a database with the schema, the stand-in over it, and the plugin in front of that.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use futures::{StreamExt, stream::BoxStream};
use hasura_stand_in::{Setup, StandIn};
use host_core::{
    InstanceName, MandelboxId, PluginError,
    pubsub::{DesiredState, Heartbeat, InstanceFacts, MandelboxRow, MandelboxStatus, PubSub},
    registry::{Context, Role},
};
use host_tests::{
    postgres::{Cluster, Database},
    wait::until,
};
use pubsub_hasura::{Config, HasuraPubSub};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

/// What a loaded machine may take for anything that should be quick.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Both subprotocols, as the section names them.
pub(crate) const PROTOCOLS: [&str; 2] = ["graphql-transport-ws", "graphql-ws"];

pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) database: Database,
    pub(crate) hasura: StandIn,
    pub(crate) state: TempDir,
    pub(crate) protocol: &'static str,
}

/// Results come soon, so that tests do, too.
pub(crate) fn quick() -> Setup {
    Setup { refetch: Duration::from_millis(100), ..Setup::default() }
}

pub(crate) fn project() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/hasura"))
}

impl Stage {
    pub(crate) async fn new() -> Result<Self> {
        Self::with(quick()).await
    }

    pub(crate) async fn with(setup: Setup) -> Result<Self> {
        Self::on(Cluster::shared().await?, setup).await
    }

    pub(crate) async fn on(cluster: Cluster, setup: Setup) -> Result<Self> {
        let database = cluster.database()?;
        let config = serde_json::from_value(json!({ "url": database.url() }))?;
        pubsub_postgres::migrate(&config, false).await?;
        let hasura = StandIn::start(&database.url(), project(), setup).await?;
        Ok(Self { cluster, database, hasura, state: tempfile::tempdir()?, protocol: "auto" })
    }

    /// Everything anew for each subprotocol: what follows must hold in both.
    pub(crate) async fn in_both(test: impl AsyncFn(&Self) -> Result<()>) -> Result<()> {
        for protocol in PROTOCOLS {
            let stage = Self { protocol, ..Self::new().await? };
            test(&stage).await.context(protocol)?;
        }
        Ok(())
    }

    pub(crate) async fn connect(&self) -> Result<Arc<HasuraPubSub>, PluginError> {
        self.connect_with(json!({})).await
    }

    /// With these keys of the section beside the URL; as the administrator unless they say otherwise.
    pub(crate) async fn connect_with(&self, mut keys: Value) -> Result<Arc<HasuraPubSub>, PluginError> {
        keys["url"] = keys.get("url").cloned().unwrap_or_else(|| self.hasura.url().into());
        keys["protocol"] = keys.get("protocol").cloned().unwrap_or_else(|| self.protocol.into());
        if keys.get("token").or(keys.get("token_file")).or(keys.get("admin_secret")).is_none() {
            keys["admin_secret"] = "hasurasecret".into();
        }
        let config: Config = serde_json::from_value(keys).unwrap();
        let context = Context { state_dir: self.state.path().to_owned(), local: false, role: Role::Service };
        Ok(Arc::new(HasuraPubSub::connect(&config, &context).await?))
    }

    /// A host's row, active.
    pub(crate) fn host(&self, name: &str) -> Result<InstanceName> {
        self.host_with(name, "ACTIVE")
    }

    pub(crate) fn host_with(&self, name: &str, status: &str) -> Result<InstanceName> {
        let now = now_ms();
        self.database.sql(&format!(
            "INSERT INTO cloud.instance_info VALUES ('192.0.2.1', 'us-east-1', 'ami-1', 'g4dn.xlarge', 'i-{name}', \
             'abc', {now}, 0, '{name}', {now}, 3, 0, 0, '{status}')"
        ))?;
        Ok(name.parse()?)
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
        self.state.path().join("pubsub-hasura.queue")
    }
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

/// An error with all its causes.
pub(crate) fn told(error: &PluginError) -> String {
    host_core::chain(error)
}

/// A watch as the host keeps it: made anew whenever it ends.
pub(crate) struct Watcher {
    pubsub: Arc<HasuraPubSub>,
    host: InstanceName,
    states: Option<BoxStream<'static, host_core::pubsub::Result<DesiredState>>>,
    /// Why it last ended.
    pub(crate) error: Option<PluginError>,
}

impl Watcher {
    pub(crate) fn new(pubsub: &Arc<HasuraPubSub>, host: &InstanceName) -> Self {
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

    /// The row of this id gets this status.
    pub(crate) async fn until_status(&mut self, id: &str, status: MandelboxStatus) -> Result<()> {
        let has = |row: &MandelboxRow| row.id.as_str() == id && row.status == status;
        self.until(id, |state| state.mandelboxes.iter().any(has)).await.map(drop)
    }
}
