//! Errors to Sentry, with what led to them.
//!
//! ```text
//!  record() ─▶ queue ─▶ Looker ── errors, each with its breadcrumbs ──▶ Courier ─▶ Sentry
//!   any thread            telemetry-sentry                                telemetry-sentry-out
//! ```
//!
//! Events, envelopes and DSNs are the `sentry` crate's. Its client is not used: it keeps 30 envelopes, tries none twice,
//! and its end waits for ever for a server that accepts and never answers. [`Sentry`] owns both threads here.
//!
//! Invariants:
//! - [`Sentry::record`](Telemetry::record) neither blocks nor allocates beyond the queue.
//! - Only errors are sent; everything else is seen as a breadcrumb of one.
//! - What is dropped is counted and told. Nothing outlives the process: the spool of logz.io does.

use std::{str::FromStr, sync::Arc, time::Duration};

use async_trait::async_trait;
use host_core::{
    ErrorKind, PluginError,
    registry::Plugin,
    telemetry::{Record, Telemetry},
};
use secrecy::ExposeSecret;
use sentry::types::Dsn;
use telemetry_http::{Client, Intake, section::secret_of, spawn};
use tokio::sync::mpsc;

mod config;
mod courier;
mod event;
mod looker;

pub use config::Config;

use courier::Courier;
use looker::{Looker, Shared};

/// `[telemetry] plugins = ["sentry"]`.
pub fn plugin() -> Plugin<dyn Telemetry> {
    Plugin::new("sentry", |config: Config, _| async move {
        Ok(Arc::new(Sentry::new(&config)?) as Arc<dyn Telemetry>)
    })
}

/// Sends errors.
#[derive(Debug)]
pub struct Sentry {
    intake: Intake,
}

impl Sentry {
    /// Connects nowhere yet. Reads files.
    ///
    /// # Errors
    /// There is no DSN, it is none, or a certificate authority cannot be used.
    pub fn new(config: &Config) -> Result<Self, PluginError> {
        let dsn = secret_of("telemetry.sentry.dsn", config.dsn.as_ref(), config.dsn_file.as_ref())?;
        // What is wrong with it could quote the key.
        let dsn = Dsn::from_str(dsn.expose_secret()).map_err(|_| {
            let message = "telemetry.sentry.dsn is no DSN; it looks like https://KEY@HOST/PROJECT";
            PluginError::new(ErrorKind::Invalid, message)
        })?;
        let client = Client::new(&dsn.envelope_api_url(), config.ca_file.as_deref(), config.timeout)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| {
            PluginError::new(ErrorKind::Exhausted, "no runtime for requests").with_source(error)
        })?;
        let (most_waiting, most_crumbs) = (config.events.get() as usize, config.breadcrumbs as usize);
        let intake = Intake::start("sentry", config.queue.get() as usize, move |outlet| {
            let shared = Arc::new(Shared::default());
            let (jobs, waiting) = mpsc::unbounded_channel();
            let (end, dropped) = (outlet.end.clone(), outlet.dropped.clone());
            let courier = Courier::new(client, &dsn, shared.clone(), dropped);
            let sending = spawn("sentry-out", move || {
                runtime.block_on(courier.run(waiting, end));
                // A name lookup may hang; nothing of ours depends on it.
                runtime.shutdown_background();
            });
            if let Err(error) = &sending {
                tracing::error!(%error, "no thread to send errors with");
            }
            Looker { outlet, jobs, shared, most_waiting, most_crumbs }.run();
            if let Ok(sending) = sending {
                sending.join().ok();
            }
        })?;
        Ok(Self { intake })
    }
}

#[async_trait]
impl Telemetry for Sentry {
    fn record(&self, record: &Arc<Record>) {
        self.intake.record(record);
    }

    async fn flush(&self, deadline: Duration) -> Result<(), PluginError> {
        self.intake.flush(deadline, "Sentry").await
    }

    fn dropped(&self) -> u64 {
        self.intake.dropped()
    }
}
