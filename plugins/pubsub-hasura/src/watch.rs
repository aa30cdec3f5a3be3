//! A watch of one host: two live queries over one websocket as wake-ups, and a full read over HTTP after each of them.
//!
//! ```text
//!   connect ──▶ subscribe ──▶ read ──▶ yield ──▶ wait ─┐
//!                              ▲                      │
//!                              └─ news · poll · alarm ◀┘        beside it: deliver the queue
//! ```
//!
//! A result of a live query is never taken for what there is: it may have been under way, or in a buffer, while
//! something newer was read. One that differs from the last read is a reason to read again; and it shows that its
//! subscription lives. A subscription may fall silent without a sign, after a restart of the database for example: so
//! everything is read on a clock, too, and a subscription that has not shown for a while what a read has, ends the
//! watch. So does every error and every close; the host watches again.
//!
//! The stream has no task of its own: it works while it is polled, and dropping it closes the connection.

use std::{sync::Arc, time::Duration};

use control_plane::{Raw, Read, Reader, Watching, shortened};
use cynic::SubscriptionBuilder;
use futures::{StreamExt, stream, stream::BoxStream};
use host_core::{
    InstanceName,
    pubsub::{DesiredState, Result},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    Shared, failure,
    frames::Answer,
    operations as ops,
    socket::{Payload, Socket},
    statements,
};

const DOING: &str = "watching Hasura";
/// The two operations.
const INSTANCE: &str = "1";
const MANDELBOXES: &str = "2";

struct Watch {
    shared: Arc<Shared>,
    instance: InstanceName,
    socket: Socket,
    alarm: watch::Receiver<u64>,
    watching: Watching,
    reader: Reader,
    /// What there is, as it was read last.
    now: Read,
    host: Subscription<Option<String>>,
    mandelboxes: Subscription<Vec<Raw>>,
    read_at: Instant,
    /// The next read because of news begins no sooner: in a burst the host takes at most half of the time.
    rested_at: Instant,
}

/// What a live query has shown.
#[derive(Debug, Default)]
struct Subscription<T> {
    shown: Option<T>,
    /// Until when it has to show what was read. Whatever it shows, it lives.
    doubted_until: Option<Instant>,
}

/// A stream of full states, the first one already read.
pub(crate) async fn watch(
    shared: &Arc<Shared>,
    instance: &InstanceName,
) -> Result<BoxStream<'static, Result<DesiredState>>> {
    // Before anything is read, so that no change falls between.
    let alarm = shared.outbox.alarm();
    // One deadline for all: a host does not wait much longer for its first state.
    let begun = shared.server.within(DOING, Box::pin(begin(shared, instance, alarm))).await;
    let (watch, first) = begun?;
    let (of, instance) = (Arc::clone(shared), instance.clone());
    let delivering = Box::pin(async move { of.outbox.keep_delivering(&of.server, &instance).await });
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
    let socket = subscribed(shared, instance).await?;
    let now = Instant::now();
    let mut watch = Watch {
        shared: Arc::clone(shared),
        instance: instance.clone(),
        socket,
        alarm,
        watching: shared.outbox.seen.watching(instance),
        reader: Reader::default(),
        now: Read::default(),
        host: Subscription::default(),
        mandelboxes: Subscription::default(),
        read_at: now,
        rested_at: now,
    };
    let first = watch.catch_up().await?;
    Ok((watch, first))
}

async fn subscribed(shared: &Shared, instance: &InstanceName) -> Result<Socket> {
    // A live server says at least every 5 s that it is.
    let mut socket = Socket::open(&shared.server, shared.poll / 2, DOING).await?;
    let host = || ops::Host { instance: instance.as_str() };
    socket.subscribe(DOING, INSTANCE, &ops::WatchInstance::build(host())).await?;
    socket.subscribe(DOING, MANDELBOXES, &ops::WatchMandelboxes::build(host())).await?;
    Ok(socket)
}

impl Watch {
    /// Waits until there is a reason to read, and reads.
    async fn next(&mut self) -> Result<DesiredState> {
        loop {
            tokio::select! {
                result = self.socket.next(DOING) => {
                    if self.take(&result?)? {
                        self.read_soon();
                    }
                }
                alarmed = self.alarm.changed() => {
                    // The sender lives in `shared`, so it is never gone.
                    let _ = alarmed;
                    self.read_soon();
                }
                () = sleep_until(self.read_at) => return self.catch_up().await,
            }
        }
    }

    /// At once, or after a rest, in which more may come in that is read with it.
    fn read_soon(&mut self) {
        self.read_at = self.read_at.min(self.rested_at);
    }

    /// Reads everything.
    async fn catch_up(&mut self) -> Result<DesiredState> {
        self.alarm.mark_unchanged();
        let Shared { server, outbox, poll, lag, .. } = &*self.shared;
        let begun = Instant::now();
        self.now = statements::read(server, &self.instance).await?;
        let now = Instant::now();
        self.rested_at = now + begun.elapsed();
        self.read_at = now + shortened(*poll);
        for doubted in
            [self.host.judge(&self.now.instance, *lag)?, self.mandelboxes.judge(&self.now.mandelboxes, *lag)?]
        {
            self.read_at = doubted.map_or(self.read_at, |until| self.read_at.min(until));
        }
        self.watching.saw(&self.now.mandelboxes);
        let mut foreseen = self.now.clone();
        outbox.foresee(&self.instance, &mut foreseen.mandelboxes);
        self.reader.understand(&foreseen)
    }

    /// A result of a subscription. Whether it shows something else than what was read.
    fn take(&mut self, result: &Payload) -> Result<bool> {
        let answer: Answer<'_> = serde_json::from_str(&result.json)
            .map_err(|error| failure::invalid(DOING, "a result cannot be read").with_source(error))?;
        let (server, headers) = (&self.shared.server, || self.socket.headers.clone());
        Ok(match result.id.as_str() {
            INSTANCE => {
                let rows: ops::WatchInstance = server.read(DOING, headers(), &answer)?;
                self.host.show(statements::status(rows.cloud_instance_info), &self.now.instance)
            }
            MANDELBOXES => {
                let rows: ops::WatchMandelboxes = server.read(DOING, headers(), &answer)?;
                let rows = rows.cloud_mandelbox_info.into_iter().map(Raw::from).collect();
                self.mandelboxes.show(rows, &self.now.mandelboxes)
            }
            _ => false,
        })
    }
}

impl<T: PartialEq> Subscription<T> {
    /// Whether this is something else than what was read.
    fn show(&mut self, shown: T, read: &T) -> bool {
        let is_news = shown != *read;
        *self = Self { shown: Some(shown), doubted_until: None };
        is_news
    }

    /// After a read. Until when it is doubted.
    fn judge(&mut self, read: &T, lag: Duration) -> Result<Option<Instant>> {
        let now = Instant::now();
        self.doubted_until = match self.doubted_until {
            _ if self.shown.as_ref() == Some(read) => None,
            Some(until) if until <= now => {
                let what = "a subscription has fallen silent: it does not show what there is";
                return Err(failure::unavailable(DOING, what));
            }
            doubted => Some(doubted.unwrap_or(now + lag)),
        };
        Ok(self.doubted_until)
    }
}
