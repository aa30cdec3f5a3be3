//! Statements over pooled connections, each with a deadline.
//!
//! Every statement goes out unnamed and with its types, in one round trip: nothing is kept on the server between two
//! of them, so a transaction-pooling proxy may be in between.

use std::{ops::Deref, time::Duration};

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, QueueMode, RecyclingMethod};
use host_core::{ErrorKind, PluginError, pubsub::Result};
use tokio::time::timeout;
use tokio_postgres::{
    Row, Transaction,
    config::SslMode,
    types::{ToSql, Type},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{failure, target::Target, tls};

/// Longer than a host ever is without a statement.
const IDLE: Duration = Duration::from_secs(60);

/// A statement's parameters with their types.
pub(crate) type Parameters<'a> = &'a [(&'a (dyn ToSql + Sync), Type)];

/// One database.
#[derive(Clone)]
pub(crate) struct Database {
    pool: Pool,
    pub(crate) target: Target,
    pub(crate) tls: MakeRustlsConnect,
    timeout: Duration,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database")
            .field("target", &self.target)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl Database {
    /// Connects nowhere yet. Blocks: it reads certificates.
    pub(crate) fn new(mut target: Target, connections: usize, timeout: Duration) -> Result<Self> {
        target.share(timeout);
        let tls = tls::connector(&target.tls, target.postgres.get_ssl_mode() != SslMode::Disable)?;
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(target.postgres.clone(), tls.clone(), recycling);
        // The last one used first, so that those a burst has opened come to rest.
        let pool = Pool::builder(manager).max_size(connections.max(1)).queue_mode(QueueMode::Lifo);
        let pool = pool.build().map_err(|error| {
            PluginError::new(ErrorKind::Internal, "the pool of connections cannot be made").with_source(error)
        })?;
        Ok(Self { pool, target, tls, timeout })
    }

    /// Closes connections that nothing has used for a while: a fleet has many hosts, a server few connections.
    pub(crate) fn trim(&self) {
        self.pool.retain(|_, metrics| metrics.last_used() < IDLE);
    }

    /// What an operation returns, or that its deadline has passed.
    pub(crate) async fn within<T>(
        &self,
        doing: &str,
        operation: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        timeout(self.timeout, operation).await.unwrap_or_else(|_| Err(failure::late(doing, self.timeout)))
    }

    /// The rows that a statement yields. Runs it once: for what must not be done twice.
    pub(crate) async fn query_once(
        &self,
        doing: &str,
        sql: &str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>> {
        self.within(doing, self.attempt(doing, sql, parameters)).await
    }

    /// The same, again while connections turn out to be dead: after a restart every pooled one is.
    pub(crate) async fn query(&self, doing: &str, sql: &str, parameters: Parameters<'_>) -> Result<Vec<Row>> {
        self.within(doing, async {
            for _ in 0..self.pool.status().size {
                match self.attempt(doing, sql, parameters).await {
                    Err(error) if error.kind() == ErrorKind::Unavailable => {}
                    answer => return answer,
                }
            }
            self.attempt(doing, sql, parameters).await
        })
        .await
    }

    async fn attempt(&self, doing: &str, sql: &str, parameters: Parameters<'_>) -> Result<Vec<Row>> {
        let lease = self.lease(doing).await?;
        let rows = lease.query_typed(sql, parameters).await;
        lease.give_back(rows.map_err(|error| failure::of_driver(doing, error)))
    }

    /// A connection, given back only when it is at rest. The caller has the deadline.
    pub(crate) async fn lease(&self, doing: &str) -> Result<Lease> {
        let object = self.pool.get().await.map_err(|error| failure::of_pool(doing, error))?;
        Ok(Lease(Some(object)))
    }
}

/// A connection from the pool. Unless it is given back it is closed: whoever was in the middle of something, and
/// dropped it, leaves a connection that still waits for an answer.
pub(crate) struct Lease(Option<Object>);

impl Lease {
    /// The answer, after which the connection is at rest; unless the answer is that it is of no more use.
    pub(crate) fn give_back<T>(mut self, answer: Result<T>) -> Result<T> {
        let is_dead = answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unavailable);
        if !is_dead {
            drop(self.0.take());
        }
        answer
    }

    pub(crate) async fn transaction(
        &mut self,
    ) -> std::result::Result<Transaction<'_>, tokio_postgres::Error> {
        let Some(object) = &mut self.0 else { unreachable!("it is taken only when the lease ends") };
        // The driver's own, which the pool's wrapper hides: no cache of statements.
        let client: &mut tokio_postgres::Client = object;
        client.transaction().await
    }
}

impl Deref for Lease {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &Self::Target {
        let Some(object) = &self.0 else { unreachable!("it is taken only when the lease ends") };
        object
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}
