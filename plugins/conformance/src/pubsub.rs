//! What every `PubSub` must do.
//!
//! A host sees only half of a control plane; the other half is a [`ControlPlane`], which a plugin's tests implement:
//! SQL for a database, control methods for memory. Behaviours use hosts and mandelboxes with names of their own, so
//! they disturb neither each other nor anything else in the same database; some leave rows of theirs behind.

use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use host_core::{
    InstanceName, MandelboxId, PluginError,
    pubsub::{
        Allocation, DesiredState, Heartbeat, InstanceFacts, InstanceStatus, MandelboxRow, MandelboxStatus,
        PubSub, Registered,
    },
};

use crate::report::{Behaviour, Unmet};

mod claiming;
mod hosts;
mod mandelboxes;
#[cfg(feature = "sql")]
pub mod sql;
mod watching;

const DEADLINE: Duration = Duration::from_secs(30);

/// How long a change may take to be shown.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a step that must succeed returns.
type Step<T> = Result<T, Unmet>;

/// A control plane with a `PubSub` in front of it. What is done here is done behind the plugin's back.
#[async_trait]
pub trait ControlPlane: Send + Sync {
    /// The plugin as a host would have it, over a connection of its own where there are any.
    async fn connect(&self) -> Result<Arc<dyn PubSub>, PluginError>;

    /// Inserts a host's row.
    async fn insert_instance(&self, facts: &InstanceFacts, status: InstanceStatus)
    -> Result<(), PluginError>;

    /// Sets a host's status.
    async fn set_instance_status(
        &self,
        instance: &InstanceName,
        status: InstanceStatus,
    ) -> Result<(), PluginError>;

    /// A host's row, `None` when there is none.
    async fn instance(&self, instance: &InstanceName) -> Result<Option<Instance>, PluginError>;

    /// Deletes a host's row, and with it its mandelboxes'.
    async fn delete_instance(&self, instance: &InstanceName) -> Result<(), PluginError>;

    /// Inserts a mandelbox's row as it stands.
    async fn insert_mandelbox(&self, instance: &InstanceName, row: &MandelboxRow) -> Result<(), PluginError>;

    /// A mandelbox's row, `None` when there is none.
    async fn mandelbox(&self, mandelbox: &MandelboxId) -> Result<Option<MandelboxRow>, PluginError>;

    /// Deletes a mandelbox's row.
    async fn delete_mandelbox(&self, mandelbox: &MandelboxId) -> Result<(), PluginError>;

    /// Cuts the connections under every watch there is. `false` when that cannot be done here.
    async fn cut(&self) -> Result<bool, PluginError>;

    /// Whether rows keep [`MandelboxRow::app`]; the original schema has no place for it.
    fn keeps_app(&self) -> bool {
        true
    }
}

/// A host's row, as far as a host writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its status.
    pub status: InstanceStatus,
    /// Its address.
    pub ip: String,
    /// The last one reported; `None` where there was none yet and the rows can tell.
    pub heartbeat: Option<Heartbeat>,
}

/// All of them.
pub fn behaviours() -> Vec<Behaviour<dyn ControlPlane>> {
    [watching::behaviours(), hosts::behaviours(), claiming::behaviours(), mandelboxes::behaviours()]
        .into_iter()
        .flatten()
        .collect()
}

/// A host of one behaviour's own, active unless said otherwise, with its connection.
struct Stage<'a> {
    plane: &'a dyn ControlPlane,
    pubsub: Arc<dyn PubSub>,
    facts: InstanceFacts,
    host: InstanceName,
}

impl<'a> Stage<'a> {
    async fn new(plane: &'a dyn ControlPlane) -> Step<Self> {
        let stage = Self::without_row(plane).await?;
        stage.insert_instance(InstanceStatus::Active).await?;
        Ok(stage)
    }

    async fn without_row(plane: &'a dyn ControlPlane) -> Step<Self> {
        let facts = facts()?;
        Ok(Self { plane, pubsub: plane.connect().await?, host: facts.name.clone(), facts })
    }

    async fn insert_instance(&self, status: InstanceStatus) -> Step<()> {
        Ok(self.plane.insert_instance(&self.facts, status).await?)
    }

    /// A row that the control plane inserts; its age is 0.
    async fn row(&self, status: MandelboxStatus) -> Step<MandelboxRow> {
        let row = MandelboxRow {
            app: self.plane.keeps_app().then(|| valid("browsers/chrome")).transpose()?,
            ..row(status, Duration::ZERO)?
        };
        self.plane.insert_mandelbox(&self.host, &row).await?;
        Ok(row)
    }

    async fn aged_row(&self, status: MandelboxStatus, age: Duration) -> Step<MandelboxId> {
        let row = row(status, age)?;
        self.plane.insert_mandelbox(&self.host, &row).await?;
        Ok(row.id)
    }

    async fn status_of(&self, mandelbox: &MandelboxId) -> Step<Option<MandelboxStatus>> {
        Ok(self.plane.mandelbox(mandelbox).await?.map(|row| row.status))
    }

    async fn instance_status(&self) -> Step<Option<InstanceStatus>> {
        Ok(self.plane.instance(&self.host).await?.map(|row| row.status))
    }

    async fn register(&self) -> Step<Registered> {
        Ok(self.pubsub.register(&self.facts, &heartbeat(1)).await?)
    }

    async fn watch(&self) -> Step<Watcher> {
        Ok(Watcher(self.pubsub.watch(&self.host).await?))
    }
}

/// A watch being read.
struct Watcher(BoxStream<'static, host_core::pubsub::Result<DesiredState>>);

impl Watcher {
    /// The next state, rows in the order of their ids.
    async fn next(&mut self) -> Step<DesiredState> {
        let ended = || Unmet::Broken("the watch ended".to_owned());
        let mut state = self.0.next().await.ok_or_else(ended)??;
        state.mandelboxes.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(state)
    }

    /// Reads on until a state is so.
    async fn until(&mut self, condition: impl Fn(&DesiredState) -> bool) -> Step<DesiredState> {
        let mut last = None;
        let wait = async {
            loop {
                let state = self.next().await?;
                if condition(&state) {
                    return Ok(state);
                }
                last = Some(state);
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(state) => state,
            Err(_) => Err(Unmet::Broken(format!("a change was not shown; the last state is {last:?}"))),
        }
    }

    /// Until it ends, with an error or without.
    async fn end(mut self) {
        while let Some(Ok(_)) = self.0.next().await {}
    }
}

/// Unique in this run and over runs on the same database.
fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("conformance-{}-{}-{count}", now_ms(), process::id())
}

fn now_ms() -> i64 {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(unix.as_millis()).unwrap_or(i64::MAX)
}

fn valid<T: std::str::FromStr<Err = host_core::InvalidId>>(text: &str) -> Step<T> {
    text.parse().map_err(|error: host_core::InvalidId| Unmet::Broken(error.to_string()))
}

fn facts() -> Step<InstanceFacts> {
    let name = unique();
    Ok(InstanceFacts {
        cloud_id: format!("i-{name}"),
        name: valid(&name)?,
        image_id: "ami-1".to_owned(),
        region: "us-east-1".to_owned(),
        instance_type: "g4dn.xlarge".to_owned(),
        ip: "192.0.2.1".to_owned(),
        commit: "0123456789abcdef0123456789abcdef01234567".to_owned(),
    })
}

fn row(status: MandelboxStatus, age: Duration) -> Step<MandelboxRow> {
    let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    Ok(MandelboxRow {
        id: new_id()?,
        user: valid("user-1")?,
        session: valid("session-1")?,
        app: None,
        status,
        created_ms: now_ms() - age_ms,
    })
}

fn new_id() -> Step<MandelboxId> {
    valid(&unique())
}

fn allocation() -> Step<Allocation> {
    Ok(Allocation { id: new_id()?, user: valid("user-1")?, session: valid("session-1")?, app: None })
}

/// Figures that can be told from those of another `n`.
fn heartbeat(n: i64) -> Heartbeat {
    Heartbeat {
        at_ms: now_ms() + n,
        memory_remaining_kb: 31_577_212 + n,
        nanocpus_remaining: 7_997_643_688 + n,
        gpu_vram_remaining_kb: 15_472_256 + n,
        capacity: 3 + u32::try_from(n).unwrap_or_default(),
    }
}
