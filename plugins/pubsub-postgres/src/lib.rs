//! PostgreSQL as the control plane: desired state is rows of the schema `cloud`, which a whole fleet shares.
//!
//! ```text
//!  watch ──▶ Ear: LISTEN on the host's own channel ──▶ full read after each wake-up, poll or alarm
//!  claim, heartbeat, register, … ──▶ Database: pooled connections, one statement each, each with a deadline
//!  set_status, remove ──▶ Database; when it is away ──▶ Outbox (on disk) ──▶ delivered beside the next watch
//! ```
//!
//! Invariants:
//! - A notification is only a wake-up. What a host acts on is always a full read, and one happens on connecting,
//!   after every reconnect, and on a clock.
//! - No operation waits without a deadline. A connection whose operation was given up is closed, never reused.
//! - A status or a removal that is accepted (`Ok`) is in the database or on disk, and is delivered in order.
//! - A status moves forward in the database or not at all, whatever is delivered twice or late.
//! - Nothing is kept on a server's session but the LISTEN, so a transaction-pooling proxy may be in between.
//!
//! This crate spawns no task: the watch does what is to be done in the background. The pool drives its connections.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use control_plane::{Delivery, Entry, Outbox, Write, registration::Machines};
use futures::stream::BoxStream;
use host_core::{
    ErrorKind, InstanceName, MandelboxId, PluginError,
    pubsub::{
        Allocation, Claim, DesiredState, Heartbeat, InstanceFacts, MandelboxRow, MandelboxStatus, PubSub,
        Registered, Result, StaleAfter,
    },
    registry::{Context, Plugin},
};
use secrecy::SecretString;

mod config;
mod database;
mod ear;
mod failure;
mod migrate;
mod register;
mod rows;
mod statements;
mod target;
mod tls;
mod watch;

pub use config::Config;
pub use migrate::{Migrated, migrate};

use database::Database;
use target::Target;

/// Undelivered statuses, in the state directory.
const QUEUE: &str = "pubsub-postgres.queue";

/// The local development database, as `make runlocaldevwithdb` and the documentation have it.
const LOCAL_URL: &str = "postgres://postgres:postgrespassword@127.0.0.1:5432/postgres";

/// `[pubsub] plugin = "postgres"`.
pub fn plugin() -> Plugin<dyn PubSub> {
    Plugin::new("postgres", |config: Config, context| async move {
        Ok(Arc::new(PostgresPubSub::connect(&config, &context).await?) as Arc<dyn PubSub>)
    })
}

/// A database as one host sees it.
#[derive(Debug)]
pub struct PostgresPubSub {
    shared: Arc<Shared>,
    /// A missing row is made.
    create: bool,
}

/// What operations and watches share.
#[derive(Debug)]
struct Shared {
    database: Database,
    outbox: Outbox,
    machines: Machines,
    poll: Duration,
    poll_without_notifications: Duration,
}

impl PostgresPubSub {
    /// Connects, and checks that the schema is one that this version can work with.
    ///
    /// # Errors
    /// `Invalid` when no URL is set, a file of it cannot be read or the schema does not fit; `Denied` when the
    /// database refuses this host; `Unavailable` or `Timeout` when it is away.
    pub async fn connect(config: &Config, context: &Context) -> Result<Self> {
        let target = target(config, context.local)?;
        if target.is_exposed() {
            tracing::warn!(
                "pubsub.postgres.url is not sslmode=verify-full: others may read along, or pass for the database"
            );
        }
        let (connections, timeout) = (config.connections, config.timeout);
        let opened = tokio::task::spawn_blocking(move || Database::new(target, connections, timeout));
        let database = opened.await.map_err(|error| {
            PluginError::new(ErrorKind::Internal, "preparing the connection was broken off")
                .with_source(error)
        })??;
        let outbox = Outbox::open(context, QUEUE).await?;
        migrate::check(&database).await?;
        let shared = Shared {
            database,
            outbox,
            machines: Machines::default(),
            poll: config.poll,
            poll_without_notifications: config.poll_without_notifications,
        };
        Ok(Self { shared: Arc::new(shared), create: context.local })
    }
}

fn target(config: &Config, local: bool) -> Result<Target> {
    let invalid =
        |message: String| PluginError::new(ErrorKind::Invalid, format!("pubsub.postgres.url: {message}"));
    let url = match &config.url {
        Some(url) => url.clone(),
        None if local => SecretString::from(LOCAL_URL),
        None => return Err(invalid("it is not set, and only local profiles have a default".to_owned())),
    };
    Target::parse(&url).map_err(invalid)
}

#[async_trait]
impl Delivery for Database {
    async fn deliver(&self, entry: &Entry) -> Result<()> {
        statements::deliver(self, entry).await
    }

    async fn heartbeat(&self, instance: &InstanceName, beat: &Heartbeat) -> Result<()> {
        statements::heartbeat(self, instance, beat).await
    }
}

#[async_trait]
impl PubSub for PostgresPubSub {
    async fn watch(&self, instance: &InstanceName) -> Result<BoxStream<'static, Result<DesiredState>>> {
        watch::watch(&self.shared, instance).await
    }

    async fn register(&self, facts: &InstanceFacts, heartbeat: &Heartbeat) -> Result<Registered> {
        let Shared { database, machines, .. } = &*self.shared;
        machines.registers(facts);
        register::register(database, facts, heartbeat, self.create).await
    }

    async fn claim(&self, instance: &InstanceName, row: &MandelboxRow) -> Result<Claim> {
        let Shared { database, outbox, .. } = &*self.shared;
        let claimed = outbox.noticed(statements::claim(database, instance, row).await)?;
        if let Claim::Won(row) = &claimed {
            outbox.claimed(instance, row);
        }
        Ok(claimed)
    }

    async fn set_status(
        &self,
        instance: &InstanceName,
        mandelbox: &MandelboxId,
        status: MandelboxStatus,
    ) -> Result<()> {
        let Shared { database, outbox, .. } = &*self.shared;
        outbox.write(database, instance, mandelbox, Write::Status(status)).await
    }

    async fn heartbeat(&self, instance: &InstanceName, heartbeat: &Heartbeat) -> Result<()> {
        let Shared { database, outbox, .. } = &*self.shared;
        outbox.heartbeat(database, instance, heartbeat).await
    }

    async fn mark_draining(&self, instance: &InstanceName) -> Result<()> {
        let Shared { database, outbox, machines, .. } = &*self.shared;
        let machine = machines.of(instance);
        outbox.noticed(statements::mark_draining(database, instance, machine.as_deref()).await)
    }

    async fn remove(&self, instance: &InstanceName, mandelbox: &MandelboxId) -> Result<()> {
        let Shared { database, outbox, .. } = &*self.shared;
        outbox.write(database, instance, mandelbox, Write::Remove).await
    }

    async fn unregister(&self, instance: &InstanceName) -> Result<()> {
        let Shared { database, outbox, machines, .. } = &*self.shared;
        let machine = machines.of(instance);
        outbox.noticed(statements::unregister(database, instance, machine.as_deref()).await)?;
        outbox.forget(instance).await;
        Ok(())
    }

    async fn remove_stale(
        &self,
        instance: &InstanceName,
        after: StaleAfter,
        working_on: &[MandelboxId],
    ) -> Result<Vec<MandelboxId>> {
        let Shared { database, outbox, .. } = &*self.shared;
        let ripe = outbox.seen.ripe(instance, after);
        outbox.noticed(statements::remove_stale(database, instance, after, working_on, ripe).await)
    }

    async fn allocate(&self, instance: &InstanceName, allocation: &Allocation) -> Result<()> {
        statements::allocate(&self.shared.database, instance, allocation).await
    }

    fn undelivered(&self) -> usize {
        self.shared.outbox.undelivered()
    }
}
