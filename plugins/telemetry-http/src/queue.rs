//! From any thread to the plugin's own.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc as ends,
    },
    thread,
    time::Duration,
};

use host_core::{
    ErrorKind, PluginError,
    telemetry::{Record, TELEMETRY_THREADS},
};
use tokio::{
    sync::{
        mpsc::{self, error::TryRecvError},
        oneshot,
    },
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// What the names of the plugins' threads begin with.
pub const THREADS: &str = TELEMETRY_THREADS;

/// How long dropping an [`Intake`] waits for its threads.
const PATIENCE_AT_END: Duration = Duration::from_millis(500);

/// Waking a sleeping thread costs the waker microseconds. So the thread looks for records by itself, this often, as
/// long as some came lately; only the first one after a quiet time has to wake it.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const LOOKS: u32 = 200;

/// What waits for the thread.
#[derive(Debug)]
pub enum Item {
    /// A record.
    Record(Arc<Record>),
    /// To be answered when everything before it has left.
    Flush(oneshot::Sender<()>),
}

/// Where records go in. Dropping it ends the thread, and waits a moment for that.
#[derive(Debug)]
pub struct Intake {
    queue: Option<mpsc::Sender<Item>>,
    dropped: Arc<AtomicU64>,
    end: CancellationToken,
    /// Hangs up when the thread has ended.
    ended: Mutex<ends::Receiver<()>>,
}

impl Intake {
    /// Starts the thread `telemetry-<name>` for `work`, which ends when there is nothing more to come.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn start(
        name: &str,
        capacity: usize,
        work: impl FnOnce(Outlet) + Send + 'static,
    ) -> Result<Self, PluginError> {
        let (queue, receiver) = mpsc::channel(capacity);
        let (dropped, end) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
        let outlet = Outlet { queue: receiver, dropped: dropped.clone(), end: end.clone(), looks: 0 };
        let (hang_up, ended) = ends::channel::<()>();
        let started = spawn(name, move || {
            work(outlet);
            drop(hang_up);
        });
        started.map_err(|error| {
            PluginError::new(ErrorKind::Exhausted, "no thread for records").with_source(error)
        })?;
        Ok(Self { queue: Some(queue), dropped, end, ended: Mutex::new(ended) })
    }

    /// Takes a record, or counts it as dropped.
    pub fn record(&self, record: &Arc<Record>) {
        let taken =
            self.queue.as_ref().is_some_and(|queue| queue.try_send(Item::Record(Arc::clone(record))).is_ok());
        if !taken {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything taken has left.
    ///
    /// # Errors
    /// `Timeout`, said of `whom`.
    pub async fn flush(&self, deadline: Duration, whom: &str) -> Result<(), PluginError> {
        let (done, is_done) = oneshot::channel();
        let through = async {
            if let Some(queue) = &self.queue {
                queue.send(Item::Flush(done)).await.ok();
            }
            is_done.await
        };
        match timeout(deadline, through).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(PluginError::new(ErrorKind::Internal, format!("{whom}'s thread has ended"))),
            Err(_) => Err(PluginError::new(
                ErrorKind::Timeout,
                format!("{whom} did not take every record within {deadline:?}"),
            )),
        }
    }

    /// How many records were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.queue = None;
        self.end.cancel();
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        ended.recv_timeout(PATIENCE_AT_END).ok();
    }
}

/// Where the thread gets its items.
#[derive(Debug)]
pub struct Outlet {
    queue: mpsc::Receiver<Item>,
    /// To be added to for every record that is lost on the way.
    pub dropped: Arc<AtomicU64>,
    /// Cancelled when the plugin is dropped: what hangs is to be left.
    pub end: CancellationToken,
    looks: u32,
}

impl Outlet {
    /// An item that is there already.
    pub fn ready(&mut self) -> Option<Item> {
        self.queue.try_recv().ok()
    }

    /// Waits for an item; `None` when there will be none. Blocks.
    pub fn wait(&mut self) -> Option<Item> {
        for _ in 0..LOOKS {
            match self.queue.try_recv() {
                Ok(item) => return Some(item),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => thread::sleep(LOOK_EVERY),
            }
        }
        self.queue.blocking_recv()
    }

    /// The same without blocking; may be dropped and called again.
    pub async fn next(&mut self) -> Option<Item> {
        while self.looks < LOOKS {
            match self.queue.try_recv() {
                Ok(item) => {
                    self.looks = 0;
                    return Some(item);
                }
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => self.looks += 1,
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let item = self.queue.recv().await;
        self.looks = 0;
        item
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// A record was lost after it was taken.
    pub fn lost(&self, records: u64) {
        self.dropped.fetch_add(records, Ordering::Relaxed);
    }
}

/// Starts a thread `telemetry-<name>`.
///
/// # Errors
/// No thread is to be had.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(format!("{THREADS}{name}")).spawn(work)
}
