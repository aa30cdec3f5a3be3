//! Records on standard error: pretty on a terminal, JSON lines otherwise.
//!
//! One thread (`console`) owns standard error; [`Console`] owns the thread. Callers put records into a bounded queue
//! and go on: a full queue, a blocked or a closed standard error costs records, which are counted, and never the
//! caller. Formatting happens on the thread.
//!
//! Invariants:
//! - [`Console::record`](Telemetry::record) neither blocks nor allocates beyond the queue.
//! - One record is one line, whatever is in it.
//! - What was dropped is told in a line as soon as there is room.
//! - Dropping a `Console` waits a moment for what is queued, and never for a blocked standard error.

use std::{
    fs::File,
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc as ends,
    },
    thread,
    time::Duration,
};

use anstream::{AutoStream, ColorChoice};
use async_trait::async_trait;
use host_core::{
    ErrorKind, PluginError,
    registry::Plugin,
    telemetry::{Record, Telemetry},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

mod clock;
mod config;
mod escape;
mod json;
mod pretty;
mod writer;

pub use config::{Config, Format};
pub use writer::Look;

use writer::{Item, Writer};

/// How long dropping a [`Console`] waits for queued records.
const PATIENCE_AT_END: Duration = Duration::from_millis(250);

/// `[telemetry] plugins = ["console"]`.
pub fn plugin() -> Plugin<dyn Telemetry> {
    Plugin::new("console", |config: Config, _| async move {
        let console = Console::on_stderr(&config).map_err(|error| {
            PluginError::new(ErrorKind::Exhausted, "standard error cannot be written to").with_source(error)
        })?;
        Ok(Arc::new(console) as Arc<dyn Telemetry>)
    })
}

/// Writes records, one a line.
#[derive(Debug)]
pub struct Console {
    // In this order: closing the queue is what ends the thread.
    queue: mpsc::Sender<Item>,
    _thread: Thread,
    dropped: Arc<AtomicU64>,
}

impl Console {
    /// Takes a descriptor of its own for standard error, so that whoever else writes there is not locked out.
    ///
    /// # Errors
    /// No descriptor or no thread is to be had.
    pub fn on_stderr(config: &Config) -> io::Result<Self> {
        let stderr = io::stderr();
        let sink = File::from(stderr.as_fd().try_clone_to_owned()?);
        let is_pretty = match config.format {
            Format::Auto => stderr.is_terminal(),
            Format::Pretty => true,
            Format::Json => false,
        };
        let look = if is_pretty {
            let colour = AutoStream::choice(&stderr) != ColorChoice::Never;
            Look::Pretty { colour }
        } else {
            Look::Json
        };
        Self::new(sink, look, config.queue.get() as usize)
    }

    /// Writes to any sink. It may block and fail.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn new(sink: impl Write + Send + 'static, look: Look, queue: usize) -> io::Result<Self> {
        let (send, receive) = mpsc::channel(queue);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer::new(receive, look, sink, Arc::clone(&dropped));
        Ok(Self { queue: send, _thread: Thread::start(|| writer.run())?, dropped })
    }
}

#[async_trait]
impl Telemetry for Console {
    fn record(&self, record: &Arc<Record>) {
        if self.queue.try_send(Item::Record(Arc::clone(record))).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn flush(&self, deadline: Duration) -> Result<(), PluginError> {
        let (done, is_done) = oneshot::channel();
        let through = async {
            self.queue.send(Item::Flush(done)).await.ok();
            is_done.await
        };
        match timeout(deadline, through).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(PluginError::new(ErrorKind::Internal, "the console's thread has ended")),
            Err(_) => {
                Err(PluginError::new(ErrorKind::Timeout, "standard error did not take every record in time"))
            }
        }
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// A thread that is waited for, but not for ever: one that is blocked is left to the end of the process.
#[derive(Debug)]
struct Thread {
    /// Hangs up when the thread has ended.
    ended: Mutex<ends::Receiver<()>>,
}

impl Thread {
    fn start(work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (hang_up, ended) = ends::channel::<()>();
        thread::Builder::new().name("console".to_owned()).spawn(move || {
            work();
            drop(hang_up);
        })?;
        Ok(Self { ended: Mutex::new(ended) })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        ended.recv_timeout(PATIENCE_AT_END).ok();
    }
}
