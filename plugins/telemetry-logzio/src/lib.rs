//! Records to logz.io, over a spool on disk.
//!
//! ```text
//!  record() ─▶ queue ─▶ Spooler ─▶ files ─▶ Shipper ─▶ listener
//!   any thread            telemetry-logzio     telemetry-logzio-out
//! ```
//!
//! Two threads, so that a listener that is slow or away keeps nothing from the disk. [`Logzio`] owns them.
//!
//! Invariants:
//! - [`Logzio::record`](Telemetry::record) neither blocks nor allocates beyond the queue.
//! - A record that the spool has accepted is delivered, at least once and in order, also after a crash.
//! - What is dropped, because the queue or the spool is full or the listener refuses a line, is counted and told.
//! - The token is in no error, record or file.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use host_core::{
    ErrorKind, PluginError,
    registry::Plugin,
    telemetry::{Record, Telemetry},
};
use telemetry_http::{Client, Intake, section::secret_of, spawn};
use tokio::sync::{mpsc, watch};

mod config;
mod line;
mod shipper;
pub mod spool;
mod spooler;

pub use config::Config;

use shipper::{Shipper, State, Target};
use spooler::Spooler;

/// `[telemetry] plugins = ["logzio"]`.
pub fn plugin() -> Plugin<dyn Telemetry> {
    Plugin::new("logzio", |config: Config, _| async move {
        Ok(Arc::new(Logzio::new(&config)?) as Arc<dyn Telemetry>)
    })
}

/// Ships records.
#[derive(Debug)]
pub struct Logzio {
    intake: Intake,
}

impl Logzio {
    /// Opens the spool and goes on with what is in it. Reads files, connects nowhere yet.
    ///
    /// # Errors
    /// There is no token, or the spool or a certificate authority cannot be used.
    pub fn new(config: &Config) -> Result<Self, PluginError> {
        let token = secret_of("telemetry.logzio.token", config.token.as_ref(), config.token_file.as_ref())?;
        let client = Client::new(&config.url, config.ca_file.as_deref(), config.timeout)?;
        let (writer, reader) = spool::open(&config.spool, config.spool_bytes.get()).map_err(|error| {
            let place = config.spool.display();
            let message = format!(
                "the spool {place} cannot be used; set telemetry.logzio.spool to a directory of this service's own"
            );
            PluginError::new(ErrorKind::Unavailable, message).with_source(error)
        })?;
        let target = Target { url: config.url.clone(), token };
        let (largest_batch, linger) = (config.batch_bytes as usize, config.linger);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| {
            PluginError::new(ErrorKind::Exhausted, "no runtime for requests").with_source(error)
        })?;
        let intake = Intake::start("logzio", config.queue.get() as usize, move |outlet| {
            let (end, written) = watch::channel(writer.end());
            let (flushes_in, flushes) = mpsc::unbounded_channel();
            let (lost, ended) = (outlet.dropped.clone(), outlet.end.clone());
            let dropped = Box::new(move |lines| {
                lost.fetch_add(lines, std::sync::atomic::Ordering::Relaxed);
            });
            let state = State::default();
            let shipper = Shipper {
                spool: reader,
                client,
                target,
                largest_batch,
                linger,
                written,
                flushes,
                dropped,
                state,
            };
            let shipping = spawn("logzio-out", move || {
                runtime.block_on(shipper.run(ended));
                // A name lookup may hang; nothing of ours depends on it.
                runtime.shutdown_background();
            });
            if let Err(error) = &shipping {
                tracing::error!(%error, "no thread to ship records with; they wait in the spool");
            }
            Spooler::new(outlet, writer, end, flushes_in).run();
            if let Ok(shipping) = shipping {
                shipping.join().ok();
            }
        })?;
        Ok(Self { intake })
    }
}

#[async_trait]
impl Telemetry for Logzio {
    fn record(&self, record: &Arc<Record>) {
        self.intake.record(record);
    }

    async fn flush(&self, deadline: Duration) -> Result<(), PluginError> {
        self.intake.flush(deadline, "logz.io").await
    }

    fn dropped(&self) -> u64 {
        self.intake.dropped()
    }
}
