//! Where the service's own records go.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{error::PluginError, pubsub::InstanceFacts};

/// How serious a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Every step; off by default.
    Trace,
    /// For developers.
    Debug,
    /// The service's normal life.
    Info,
    /// Something failed that the service deals with by itself.
    Warn,
    /// Somebody should look.
    Error,
}

/// One structured record.
#[derive(Debug, Clone)]
pub struct Record {
    /// When it was made.
    pub at: SystemTime,
    /// How serious it is.
    pub level: Level,
    /// The module that made it.
    pub target: &'static str,
    /// Constant text; what varies is in the fields.
    pub message: String,
    /// Named values, those of the enclosing spans first.
    pub fields: serde_json::Map<String, serde_json::Value>,
    /// Who says it. Absent before the host knows itself.
    pub instance: Option<Arc<InstanceFacts>>,
    /// `prod`, `localdev`, …
    pub environment: Arc<str>,
}

impl Record {
    /// The mandelbox that it is about.
    pub fn mandelbox(&self) -> Option<&str> {
        self.fields.get(MANDELBOX)?.as_str()
    }
}

/// The field that says which mandelbox a record is about.
pub const MANDELBOX: &str = "mandelbox";

/// What the names of threads begin with on which records are sent. What libraries record there is not recorded: it
/// would be sent, and sending it recorded.
pub const TELEMETRY_THREADS: &str = "telemetry-";

/// A destination of records.
#[async_trait]
pub trait Telemetry: Send + Sync + fmt::Debug + 'static {
    /// Takes a record. Never blocks and never fails: what cannot be kept is dropped and counted.
    fn record(&self, record: &Arc<Record>);

    /// Returns when everything taken so far has left the process, or `deadline` has passed.
    ///
    /// # Errors
    /// `Timeout` when something may not have left.
    async fn flush(&self, deadline: Duration) -> Result<(), PluginError>;

    /// How many records were dropped so far.
    fn dropped(&self) -> u64;
}
