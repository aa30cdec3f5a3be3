//! Hasura in front of PostgreSQL: desired state by live queries, reports by mutations.
//!
//! ```text
//!  watch ──▶ Socket: two live queries ──▶ full read after each news, on connecting, on a clock, on alarms
//!  claim, heartbeat, register, … ──▶ Server: one mutation over HTTP, conditional and thereby atomic
//!  set_status, remove ──▶ Server; when it is away ──▶ Outbox (on disk) ──▶ delivered beside the next watch
//! ```
//!
//! Invariants:
//! - A subscription's result is only a wake-up. What a host acts on is always a full read, and one happens on connecting,
//!   and at least every 30 s.
//! - A connection that ends, for whatever reason that is not ours, ends the watch; the host watches again.
//! - No operation waits without a deadline, and nothing is taken in without a limit.
//! - Credentials that were refused are not shown again for a while, at most a minute.
//! - A status or a removal that is accepted (`Ok`) is in the database or on disk, and is delivered in order.
//!
//! This crate spawns no task: the watch does what is to be done in the background.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use control_plane::{Outbox, Write, registration::Machines};
use futures::stream::BoxStream;
use host_core::{
    ErrorKind, InstanceName, MandelboxId, PluginError,
    pubsub::{
        Allocation, Claim, DesiredState, Heartbeat, InstanceFacts, MandelboxRow, MandelboxStatus, PubSub,
        Registered, Result, StaleAfter,
    },
    registry::{Context, Plugin},
};

mod config;
mod credentials;
mod failure;
mod frames;
mod operations;
mod register;
mod server;
mod socket;
mod statements;
mod tls;
mod watch;

pub use config::{Config, Protocol};

use server::Server;

/// Undelivered statuses, in the state directory.
const QUEUE: &str = "pubsub-hasura.queue";

/// `[pubsub] plugin = "hasura"`.
pub fn plugin() -> Plugin<dyn PubSub> {
    Plugin::new("hasura", |config: Config, context| async move {
        Ok(Arc::new(HasuraPubSub::connect(&config, &context).await?) as Arc<dyn PubSub>)
    })
}

/// Hasura as one host sees it.
#[derive(Debug)]
pub struct HasuraPubSub {
    shared: Arc<Shared>,
    /// A missing row is made.
    create: bool,
}

/// What operations and watches share.
#[derive(Debug)]
struct Shared {
    server: Server,
    outbox: Outbox,
    machines: Machines,
    poll: Duration,
    lag: Duration,
}

impl HasuraPubSub {
    /// Checks that Hasura is there, believes this host, and has the tables.
    ///
    /// # Errors
    /// `Invalid` when no URL is set, a file cannot be read or the schema does not fit; `Denied` when Hasura refuses
    /// this host; `Unavailable` or `Timeout` when it is away.
    pub async fn connect(config: &Config, context: &Context) -> Result<Self> {
        let (given, local) = (config.clone(), context.local);
        let server = tokio::task::spawn_blocking(move || Server::new(&given, local)).await;
        let server = server.map_err(|error| {
            PluginError::new(ErrorKind::Internal, "preparing the connection was broken off")
                .with_source(error)
        })??;
        let outbox = Outbox::open(context, QUEUE).await?;
        statements::check(&server).await?;
        let machines = Machines::default();
        let shared = Shared { server, outbox, machines, poll: config.poll, lag: config.lag };
        Ok(Self { shared: Arc::new(shared), create: local })
    }
}

#[async_trait]
impl PubSub for HasuraPubSub {
    async fn watch(&self, instance: &InstanceName) -> Result<BoxStream<'static, Result<DesiredState>>> {
        watch::watch(&self.shared, instance).await
    }

    async fn register(&self, facts: &InstanceFacts, heartbeat: &Heartbeat) -> Result<Registered> {
        let Shared { server, machines, .. } = &*self.shared;
        machines.registers(facts);
        register::register(server, facts, heartbeat, self.create).await
    }

    async fn claim(&self, instance: &InstanceName, row: &MandelboxRow) -> Result<Claim> {
        let Shared { server, outbox, .. } = &*self.shared;
        let claimed = outbox.noticed(statements::claim(server, instance, row).await)?;
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
        let Shared { server, outbox, .. } = &*self.shared;
        outbox.write(server, instance, mandelbox, Write::Status(status)).await
    }

    async fn heartbeat(&self, instance: &InstanceName, heartbeat: &Heartbeat) -> Result<()> {
        let Shared { server, outbox, .. } = &*self.shared;
        outbox.heartbeat(server, instance, heartbeat).await
    }

    async fn mark_draining(&self, instance: &InstanceName) -> Result<()> {
        let Shared { server, outbox, machines, .. } = &*self.shared;
        let machine = machines.of(instance);
        outbox.noticed(statements::mark_draining(server, instance, machine.as_deref()).await)
    }

    async fn remove(&self, instance: &InstanceName, mandelbox: &MandelboxId) -> Result<()> {
        let Shared { server, outbox, .. } = &*self.shared;
        outbox.write(server, instance, mandelbox, Write::Remove).await
    }

    async fn unregister(&self, instance: &InstanceName) -> Result<()> {
        let Shared { server, outbox, machines, .. } = &*self.shared;
        let machine = machines.of(instance);
        outbox.noticed(statements::unregister(server, instance, machine.as_deref()).await)?;
        outbox.forget(instance).await;
        Ok(())
    }

    async fn remove_stale(
        &self,
        instance: &InstanceName,
        after: StaleAfter,
        working_on: &[MandelboxId],
    ) -> Result<Vec<MandelboxId>> {
        let Shared { server, outbox, .. } = &*self.shared;
        let ripe = outbox.seen.ripe(instance, after);
        outbox.noticed(statements::remove_stale(server, instance, after, working_on, ripe).await)
    }

    async fn allocate(&self, instance: &InstanceName, allocation: &Allocation) -> Result<()> {
        statements::allocate(&self.shared.server, instance, allocation).await
    }

    fn undelivered(&self) -> usize {
        self.shared.outbox.undelivered()
    }
}
