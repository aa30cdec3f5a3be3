//! PostgreSQL as the control plane: desired state is rows of the schema `cloud`, which a whole fleet shares.
//!
//! ```text
//!  watch ──▶ Ear: LISTEN on the host's own channel ──▶ full read after each wake-up, poll or alarm
//!  claim, heartbeat, register, … ──▶ Database: pooled connections, one statement each, each with a deadline
//!  set_status, remove ──▶ Database; when it is away ──▶ Queue (on disk) ──▶ delivered by the next watch
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

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use host_core::{
    ErrorKind, InstanceName, MandelboxId, PluginError, chain,
    pubsub::{
        Allocation, Claim, DesiredState, Heartbeat, InstanceFacts, MandelboxRow, MandelboxStatus, PubSub,
        Registered, Result, StaleAfter,
    },
    registry::{Context, Plugin, Role},
};
use secrecy::SecretString;

mod config;
mod database;
mod ear;
mod failure;
mod migrate;
mod queue;
mod register;
mod rows;
mod seen;
mod statements;
mod target;
mod tls;
mod watch;

pub use config::Config;
pub use migrate::{Migrated, migrate};

use database::Database;
use queue::{Entry, Queue, Write};
use seen::Seen;
use target::Target;

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
    queue: Queue,
    seen: Seen,
    /// Raised when this host changed a row, and when something failed or waits: watches look at once.
    alarm: tokio::sync::watch::Sender<u64>,
    /// A heartbeat that could not be written. The next one is a minute away, and two minutes of silence are death.
    late: Mutex<Option<(InstanceName, Heartbeat)>>,
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
        let (connections, timeout) = (config.connections, config.timeout);
        let (state, role) = (context.state_dir.clone(), context.role);
        let opened = tokio::task::spawn_blocking(move || {
            let database = Database::new(target, connections, timeout)?;
            // A tool leaves the service's queue alone.
            let queue = match role {
                Role::Service => Queue::open(&state)?,
                Role::Tool => Queue::nowhere(),
            };
            Ok((database, queue))
        });
        let (database, queue) = opened.await.map_err(|error| {
            PluginError::new(ErrorKind::Internal, "preparing the connection was broken off")
                .with_source(error)
        })??;
        migrate::check(&database).await?;
        let shared = Shared {
            database,
            queue,
            seen: Seen::default(),
            alarm: tokio::sync::watch::Sender::new(0),
            late: Mutex::default(),
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

impl Shared {
    /// What could not be written before: heartbeat and queue.
    ///
    /// # Errors
    /// The database is away.
    async fn deliver(&self, instance: &InstanceName) -> Result<()> {
        let late = self.late.lock().unwrap_or_else(PoisonError::into_inner).take_if(|(of, _)| of == instance);
        if let Some((of, beat)) = late
            && let Err(error) = statements::heartbeat(&self.database, &of, &beat).await
        {
            self.late.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((of, beat));
            return if failure::is_away(&error) { Err(error) } else { Ok(()) };
        }
        self.queue.deliver(&self.database).await
    }

    /// Has every watch read, and thereby see whether the database is there.
    fn look(&self) {
        self.alarm.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Tells watches of an operation that found the database away.
    fn noticed<T>(&self, answer: Result<T>) -> Result<T> {
        if let Err(error) = &answer
            && failure::is_away(error)
        {
            self.look();
        }
        answer
    }

    /// Writes now; when the database is away, or earlier writes wait, later and in order.
    async fn write(&self, instance: &InstanceName, mandelbox: &MandelboxId, write: Write) -> Result<()> {
        let entry = Entry {
            instance: instance.clone(),
            mandelbox: mandelbox.clone(),
            created_ms: self.seen.created_ms(instance, mandelbox),
            write,
        };
        let mut cause = None;
        if self.queue.len() == 0 {
            // The trait speaks of the row of this id; which allocation it is matters only later.
            let now = Entry { created_ms: None, ..entry.clone() };
            match statements::deliver(&self.database, &now).await {
                Ok(()) => {
                    self.look();
                    return Ok(());
                }
                Err(error) if failure::is_away(&error) => cause = Some(error),
                Err(error) => return Err(error),
            }
        }
        let queued = self.queue.push(entry).await;
        self.look();
        match (queued, cause) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(cause)) => {
                tracing::warn!(%mandelbox, error = %chain(&cause), "the database is away; the write is queued");
                Ok(())
            }
            (Err(error), Some(cause)) => {
                tracing::error!(%mandelbox, %error, "the write cannot be queued either");
                Err(cause)
            }
            (Err(error), None) => {
                Err(PluginError::new(ErrorKind::Unavailable, "the write cannot be queued").with_source(error))
            }
        }
    }
}

#[async_trait]
impl PubSub for PostgresPubSub {
    async fn watch(&self, instance: &InstanceName) -> Result<BoxStream<'static, Result<DesiredState>>> {
        watch::watch(&self.shared, instance).await
    }

    async fn register(&self, facts: &InstanceFacts, heartbeat: &Heartbeat) -> Result<Registered> {
        register::register(&self.shared.database, facts, heartbeat, self.create).await
    }

    async fn claim(&self, instance: &InstanceName, row: &MandelboxRow) -> Result<Claim> {
        let claimed = self.shared.noticed(statements::claim(&self.shared.database, instance, row).await)?;
        if matches!(claimed, Claim::Won(_)) {
            self.shared.look();
        }
        Ok(claimed)
    }

    async fn set_status(
        &self,
        instance: &InstanceName,
        mandelbox: &MandelboxId,
        status: MandelboxStatus,
    ) -> Result<()> {
        self.shared.write(instance, mandelbox, Write::Status(status)).await
    }

    async fn heartbeat(&self, instance: &InstanceName, heartbeat: &Heartbeat) -> Result<()> {
        let answer = statements::heartbeat(&self.shared.database, instance, heartbeat).await;
        let late = answer.is_err().then(|| (instance.clone(), *heartbeat));
        *self.shared.late.lock().unwrap_or_else(PoisonError::into_inner) = late;
        self.shared.noticed(answer)
    }

    async fn mark_draining(&self, instance: &InstanceName) -> Result<()> {
        self.shared.noticed(statements::mark_draining(&self.shared.database, instance).await)
    }

    async fn remove(&self, instance: &InstanceName, mandelbox: &MandelboxId) -> Result<()> {
        self.shared.write(instance, mandelbox, Write::Remove).await
    }

    async fn unregister(&self, instance: &InstanceName) -> Result<()> {
        self.shared.noticed(statements::unregister(&self.shared.database, instance).await)?;
        if let Err(error) = self.shared.queue.forget(instance).await {
            tracing::warn!(%error, "the file of undelivered statuses cannot be removed");
        }
        Ok(())
    }

    async fn remove_stale(
        &self,
        instance: &InstanceName,
        after: StaleAfter,
        working_on: &[MandelboxId],
    ) -> Result<Vec<MandelboxId>> {
        let ripe = self.shared.seen.ripe(instance, after);
        let removed =
            statements::remove_stale(&self.shared.database, instance, after, working_on, ripe).await;
        self.shared.noticed(removed)
    }

    async fn allocate(&self, instance: &InstanceName, allocation: &Allocation) -> Result<()> {
        statements::allocate(&self.shared.database, instance, allocation).await
    }

    fn undelivered(&self) -> usize {
        self.shared.queue.len()
    }
}
