//! Writes that are told now, or later when the database is away.

use std::{
    convert::Infallible,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use host_core::{
    ErrorKind, InstanceName, MandelboxId, PluginError, chain,
    pubsub::{Heartbeat, MandelboxRow, Result},
    registry::{Context, Role},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    is_away,
    queue::{Entry, Queue, Stuck, Write},
    rows::Raw,
    seen::Seen,
    shortened,
};

/// Between tries of a write that does not go through: a row may be locked for a moment, or for long.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// What is refused for so long is refused for good. A schema that is being migrated, or permissions that are being put
/// right, must not cost what waits, and nothing else waits for it.
const REFUSED: Duration = Duration::from_secs(600);

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

/// When a write that does not go through is tried again, and when no more.
#[derive(Debug)]
struct Tries {
    pause: Duration,
    /// Since when.
    refused: Vec<(Entry, Instant)>,
    /// What people know of it.
    told: Option<(Entry, String)>,
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

    /// This host works on this allocation from now on.
    pub fn claimed(&self, instance: &InstanceName, row: &MandelboxRow) {
        self.seen.claimed(instance, row);
        self.look();
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

    /// These rows as they will be when everything that waits is delivered: what was accepted has happened.
    pub fn foresee(&self, instance: &InstanceName, rows: &mut Vec<Raw>) {
        self.queue.foresee(instance, rows);
    }

    /// Delivers what waits, heartbeat and queue, for as long as it is polled: whoever watches polls it beside, so that
    /// a write that does not go through keeps no state from being seen. May be dropped at any time.
    pub async fn keep_delivering(&self, to: &dyn Delivery, instance: &InstanceName) -> Infallible {
        let mut alarm = self.alarm();
        let mut tries = Tries::new();
        loop {
            alarm.mark_unchanged();
            let before = self.queue.len();
            let is_late = self.is_still_late(to, instance).await;
            let stuck = self.queue.deliver(to).await;
            if self.queue.len() < before {
                tries.pause = PAUSES.0;
                self.look();
            }
            if let Some(Stuck { entry: Entry { mandelbox, write, .. }, error }) = tries.news(&stuck) {
                tracing::warn!(%mandelbox, ?write, error = %chain(error), "a queued status does not go through; trying on");
            }
            for hopeless in tries.are_over(stuck) {
                self.give_up(hopeless).await;
            }
            if is_late || self.queue.len() > 0 {
                tries.pause().await;
            } else {
                // The sender lives in `self`, so it is never gone.
                let _ = alarm.changed().await;
                tries = Tries::new();
            }
        }
    }

    /// Writes the heartbeat that is late. Whether there still is one: what is refused is given up, the next one being
    /// a minute away.
    async fn is_still_late(&self, to: &dyn Delivery, instance: &InstanceName) -> bool {
        let Some((of, beat)) = self.late().clone().filter(|(of, _)| of == instance) else { return false };
        match to.heartbeat(&of, &beat).await {
            Err(error) if is_away(&error) => return true,
            Err(error) => tracing::error!(error = %chain(&error), "a late heartbeat is refused; given up"),
            Ok(()) => {}
        }
        // Unless another one is late meanwhile.
        self.late().take_if(|(_, late)| *late == beat);
        false
    }

    /// Drops a write that is refused for good.
    async fn give_up(&self, stuck: Stuck) {
        let Stuck { entry, error } = stuck;
        let (mandelbox, write) = (&entry.mandelbox, &entry.write);
        tracing::error!(%mandelbox, ?write, error = %chain(&error), "a queued status is refused; given up");
        self.queue.take(entry).await;
        self.look();
    }

    /// No code that can panic runs under this lock.
    fn late(&self) -> MutexGuard<'_, Option<(InstanceName, Heartbeat)>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes now; when the database is away, or earlier writes about the same mandelbox wait, later and in order.
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
        self.accept(to, entry).await?;
        if write == Write::Remove {
            self.seen.ended(instance, mandelbox);
        }
        Ok(())
    }

    async fn accept(&self, to: &dyn Delivery, entry: Entry) -> Result<()> {
        let mandelbox = entry.mandelbox.clone();
        let mut cause = None;
        if !self.queue.holds(&mandelbox) {
            match to.deliver(&entry).await {
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
        *self.late() = answer.as_ref().is_err_and(is_away).then(|| (instance.clone(), *beat));
        self.noticed(answer)
    }

    /// Forgets what waits for this host: its rows are gone.
    pub async fn forget(&self, instance: &InstanceName) {
        if let Err(error) = self.queue.forget(instance).await {
            tracing::warn!(%error, "the file of undelivered statuses cannot be removed");
        }
    }
}

impl Tries {
    fn new() -> Self {
        Self { pause: PAUSES.0, refused: Vec::new(), told: None }
    }

    /// The first of these, unless it is what was told last.
    fn news<'a>(&mut self, stuck: &'a [Stuck]) -> Option<&'a Stuck> {
        let first = stuck.first();
        let told = first.map(|stuck| (stuck.entry.clone(), chain(&stuck.error)));
        let is_known = told == self.told;
        self.told = told;
        first.filter(|_| !is_known)
    }

    /// What of this has been refused for too long.
    fn are_over(&mut self, mut stuck: Vec<Stuck>) -> Vec<Stuck> {
        let before = std::mem::take(&mut self.refused);
        stuck.retain(|stuck| {
            if is_away(&stuck.error) {
                return false;
            }
            let same = before.iter().find(|(entry, _)| *entry == stuck.entry);
            let since = same.map_or_else(Instant::now, |(_, since)| *since);
            self.refused.push((stuck.entry.clone(), since));
            since.elapsed() >= REFUSED
        });
        stuck
    }

    async fn pause(&mut self) {
        sleep(shortened(self.pause)).await;
        self.pause = (self.pause * 2).min(PAUSES.1);
    }
}

#[cfg(test)]
mod tests;
