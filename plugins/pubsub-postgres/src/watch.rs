//! A watch of one host: a connection that listens, and a full read after every wake-up.
//!
//! ```text
//!   connect, LISTEN ──▶ read ──▶ yield ──▶ wait for a wake-up ─┐
//!                        ▲                                    │
//!                        └──── notification · poll · alarm ◀──┘        beside it: deliver the queue
//! ```
//!
//! The stream has no task of its own: it works while it is polled, and dropping it closes the connection. It is also
//! what delivers the queue, because it is the first to know that the database is back; what does not go through keeps
//! nothing from being read.

use std::{sync::Arc, time::Duration};

use control_plane::{Read, Reader, Watching, shortened};
use futures::{StreamExt, stream, stream::BoxStream};
use host_core::{
    InstanceName,
    pubsub::{DesiredState, Result},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_postgres::types::Type;

use crate::{Shared, ear::Ear, rows, statements};

const DOING: &str = "watching the database";
/// A notification that has not come through after so long does not come.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

struct Watch {
    shared: Arc<Shared>,
    instance: InstanceName,
    ear: Ear,
    alarm: watch::Receiver<u64>,
    watching: Watching,
    hearing: Hearing,
    sql: String,
    reader: Reader,
    poll_at: Instant,
    /// The next read begins no sooner: in a burst the host takes at most half of its connection's time.
    rested_at: Instant,
}

/// Whether notifications come through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hearing {
    Untested,
    Testing(Instant),
    Works,
    Deaf,
}

/// A stream of full states, the first one already read.
pub(crate) async fn watch(
    shared: &Arc<Shared>,
    instance: &InstanceName,
) -> Result<BoxStream<'static, Result<DesiredState>>> {
    // Before anything is read, so that no change falls between.
    let alarm = shared.outbox.alarm();
    // One deadline for all: a host does not wait much longer for its first state.
    let begun = shared.database.within(DOING, Box::pin(begin(shared, instance, alarm))).await;
    let (watch, first) = begun?;
    let (of, instance) = (Arc::clone(shared), instance.clone());
    let delivering = Box::pin(async move { of.outbox.keep_delivering(&of.database, &instance).await });
    let rest = stream::unfold(Some((watch, delivering)), |both| async move {
        let (mut watch, mut delivering) = both?;
        let state = tokio::select! {
            state = watch.next() => state,
            never = &mut delivering => match never {},
        };
        let left = state.is_ok().then_some((watch, delivering));
        Some((state, left))
    });
    Ok(stream::iter([Ok(first)]).chain(rest).boxed())
}

async fn begin(
    shared: &Arc<Shared>,
    instance: &InstanceName,
    alarm: watch::Receiver<u64>,
) -> Result<(Watch, DesiredState)> {
    let ear = Ear::open(&shared.database, instance, DOING).await?;
    tracing::debug!(channel = ear.channel(), "listening");
    let now = Instant::now();
    let mut watch = Watch {
        shared: Arc::clone(shared),
        instance: instance.clone(),
        ear,
        alarm,
        watching: shared.outbox.seen.watching(instance),
        hearing: Hearing::Untested,
        sql: statements::read(),
        reader: Reader::default(),
        poll_at: now,
        rested_at: now,
    };
    let first = watch.catch_up().await?;
    Ok((watch, first))
}

impl Watch {
    async fn next(&mut self) -> Result<DesiredState> {
        self.wake_up().await?;
        self.catch_up().await
    }

    /// Reads everything.
    async fn catch_up(&mut self) -> Result<DesiredState> {
        self.alarm.mark_unchanged();
        self.ear.take_change();
        let begun = Instant::now();
        let mut read = self.read().await?;
        self.rested_at = Instant::now() + begun.elapsed();
        self.poll_at = Instant::now() + self.period();
        self.watching.saw(&read.mandelboxes);
        self.shared.outbox.foresee(&self.instance, &mut read.mandelboxes);
        self.reader.understand(&read)
    }

    async fn read(&mut self) -> Result<Read> {
        let parameters: crate::database::Parameters<'_> = &[(&self.instance.as_str(), Type::TEXT)];
        let rows = self.ear.query(DOING, &self.sql, parameters);
        rows::read(DOING, &self.shared.database.within(DOING, rows).await?)
    }

    /// Returns when there may be something new.
    async fn wake_up(&mut self) -> Result<()> {
        loop {
            self.test_hearing().await?;
            if self.ear.has_change() {
                return self.rest().await;
            }
            let until = match self.hearing {
                Hearing::Testing(over) => over.min(self.poll_at),
                _ => self.poll_at,
            };
            tokio::select! {
                heard = self.ear.listen(DOING) => heard?,
                alarmed = self.alarm.changed() => {
                    // The sender lives in `shared`, so it is never gone.
                    let _ = alarmed;
                    return self.rest().await;
                }
                () = sleep_until(until) => {
                    if until == self.poll_at {
                        self.shared.database.trim();
                        return Ok(());
                    }
                }
            }
        }
    }

    /// While a burst goes on, as long as the last read took.
    async fn rest(&mut self) -> Result<()> {
        if self.rested_at <= Instant::now() {
            return Ok(());
        }
        self.ear.meanwhile(DOING, sleep_until(self.rested_at)).await
    }

    /// Finds out whether notifications come through: a transaction-pooling proxy accepts LISTEN and delivers nothing.
    async fn test_hearing(&mut self) -> Result<()> {
        match self.hearing {
            Hearing::Works => {}
            _ if self.ear.hears() => self.hearing = Hearing::Works,
            Hearing::Untested => {
                self.ear.probe(&self.shared.database, DOING).await?;
                self.hearing = Hearing::Testing(Instant::now() + PROBE_PATIENCE);
            }
            Hearing::Testing(over) if over <= Instant::now() => {
                self.hearing = Hearing::Deaf;
                let every = self.shared.poll_without_notifications;
                tracing::warn!(
                    ?every,
                    "notifications do not come through, as behind a transaction-pooling proxy; reading on a clock"
                );
                self.poll_at = Instant::now() + self.period();
            }
            Hearing::Testing(_) | Hearing::Deaf => {}
        }
        Ok(())
    }

    fn period(&self) -> Duration {
        shortened(match self.hearing {
            Hearing::Deaf => self.shared.poll_without_notifications,
            _ => self.shared.poll,
        })
    }
}
