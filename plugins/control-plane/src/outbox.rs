//! Writes that are told now, or later when the database is away.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use host_core::{
    ErrorKind, InstanceName, MandelboxId, PluginError, chain,
    pubsub::{Heartbeat, Result},
    registry::{Context, Role},
};
use tokio::sync::watch;

use crate::{
    is_away,
    queue::{Entry, Queue, Write},
    seen::Seen,
};

/// The database as an [`Outbox`] needs it. Each call has a deadline of its own.
#[async_trait]
pub trait Delivery: Send + Sync {
    /// Writes a status or a removal. Whatever is further already, or gone, or was given away anew, stays as it is.
    async fn deliver(&self, entry: &Entry) -> Result<()>;

    /// Writes a heartbeat. A row that is gone stays gone.
    async fn heartbeat(&self, instance: &InstanceName, beat: &Heartbeat) -> Result<()>;
}

/// What a host has to say, and what it has seen.
#[derive(Debug)]
pub struct Outbox {
    /// The rows that watches saw.
    pub seen: Seen,
    queue: Queue,
    /// Raised when this host changed a row, and when something failed or waits: watches look at once.
    alarm: watch::Sender<u64>,
    /// A heartbeat that could not be written. The next one is a minute away, and two minutes of silence are death.
    late: Mutex<Option<(InstanceName, Heartbeat)>>,
}

impl Outbox {
    /// With what an earlier run could not deliver, from `<state_dir>/<file>`. A tool leaves the service's alone.
    ///
    /// # Errors
    /// `Invalid` when the file is there and cannot be read.
    pub async fn open(context: &Context, file: &'static str) -> Result<Self> {
        let queue = match context.role {
            Role::Tool => Queue::nowhere(file),
            Role::Service => {
                let directory = context.state_dir.clone();
                let opened = tokio::task::spawn_blocking(move || Queue::open(&directory, file)).await;
                opened.map_err(|error| {
                    PluginError::new(ErrorKind::Internal, "opening the queue was broken off")
                        .with_source(error)
                })??
            }
        };
        let alarm = watch::Sender::new(0);
        Ok(Self { seen: Seen::default(), queue, alarm, late: Mutex::default() })
    }

    /// Changes whenever watches should look at once.
    pub fn alarm(&self) -> watch::Receiver<u64> {
        self.alarm.subscribe()
    }

    /// Has every watch read, and thereby see whether the database is there.
    pub fn look(&self) {
        self.alarm.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Tells watches of an operation that found the database away.
    ///
    /// # Errors
    /// The answer's.
    pub fn noticed<T>(&self, answer: Result<T>) -> Result<T> {
        if let Err(error) = &answer
            && is_away(error)
        {
            self.look();
        }
        answer
    }

    /// How many writes wait.
    pub fn undelivered(&self) -> usize {
        self.queue.len()
    }

    /// What could not be written before: heartbeat and queue.
    ///
    /// # Errors
    /// The database is away.
    pub async fn catch_up(&self, to: &dyn Delivery, instance: &InstanceName) -> Result<()> {
        let late = self.late.lock().unwrap_or_else(PoisonError::into_inner).take_if(|(of, _)| of == instance);
        if let Some((of, beat)) = late
            && let Err(error) = to.heartbeat(&of, &beat).await
        {
            self.late.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((of, beat));
            return if is_away(&error) { Err(error) } else { Ok(()) };
        }
        self.queue.deliver(to).await
    }

    /// Writes now; when the database is away, or earlier writes wait, later and in order.
    ///
    /// # Errors
    /// The database refuses, or it is away and the disk refuses too.
    pub async fn write(
        &self,
        to: &dyn Delivery,
        instance: &InstanceName,
        mandelbox: &MandelboxId,
        write: Write,
    ) -> Result<()> {
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
            match to.deliver(&now).await {
                Ok(()) => {
                    self.look();
                    return Ok(());
                }
                Err(error) if is_away(&error) => cause = Some(error),
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

    /// Writes a heartbeat; one that fails is written by the next watch, unless another one is first.
    ///
    /// # Errors
    /// It could not be written now.
    pub async fn heartbeat(
        &self,
        to: &dyn Delivery,
        instance: &InstanceName,
        beat: &Heartbeat,
    ) -> Result<()> {
        let answer = to.heartbeat(instance, beat).await;
        let late = answer.is_err().then(|| (instance.clone(), *beat));
        *self.late.lock().unwrap_or_else(PoisonError::into_inner) = late;
        self.noticed(answer)
    }

    /// Forgets what waits for this host: its rows are gone.
    pub async fn forget(&self, instance: &InstanceName) {
        if let Err(error) = self.queue.forget(instance).await {
            tracing::warn!(%error, "the file of undelivered statuses cannot be removed");
        }
    }
}
