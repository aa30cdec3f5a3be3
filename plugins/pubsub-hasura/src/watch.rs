//! A watch of one host: two live queries over one websocket, and a full read on connecting, on a clock and on alarms.
//!
//! ```text
//!   connect ──▶ subscribe ──▶ deliver the queue ──▶ read ──▶ yield ──▶ wait ─┐
//!                                     ▲                                     ├── a new result ──▶ yield
//!                                     └────────── poll · alarm ◀────────────┘
//! ```
//!
//! A live query sends its full result whenever that has changed, so what is shown last is what there is. But one may
//! fall silent without a sign, after a restart of the database for example: so everything is read on a clock, and a
//! subscription that has not shown for a while what a read has, ends the watch. So does every error and every close;
//! the host watches again.
//!
//! The stream has no task of its own: it works while it is polled, and dropping it closes the connection.

use std::{sync::Arc, time::Duration};

use control_plane::{Raw, Read, Reader, Watching, jittered};
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
    /// What there is, from whoever said so last.
    now: Read,
    /// What the subscriptions have shown.
    shown: Shown,
    /// Since when they show something else than what was read.
    doubt: bool,
    read_at: Instant,
    /// The next read because of an alarm begins no sooner: in a burst the host takes at most half of the time.
    rested_at: Instant,
}

#[derive(Debug, Default)]
struct Shown {
    /// `Some(None)`: the host has no row.
    instance: Option<Option<String>>,
    mandelboxes: Option<Vec<Raw>>,
}

/// A stream of full states, the first one already read.
pub(crate) async fn watch(
    shared: &Arc<Shared>,
    instance: &InstanceName,
) -> Result<BoxStream<'static, Result<DesiredState>>> {
    // Before anything is read, so that no change falls between.
    let alarm = shared.outbox.alarm();
    let socket = shared.server.within(DOING, Box::pin(subscribed(shared, instance))).await?;
    let now = Instant::now();
    let mut watch = Watch {
        shared: Arc::clone(shared),
        instance: instance.clone(),
        socket,
        alarm,
        watching: shared.outbox.seen.watching(instance),
        reader: Reader::default(),
        now: Read::default(),
        shown: Shown::default(),
        doubt: false,
        read_at: now,
        rested_at: now,
    };
    watch.catch_up().await?;
    let first = watch.state()?;
    let rest = stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        match watch.next().await {
            Ok(state) => Some((Ok(state), Some(watch))),
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(stream::iter([Ok(first)]).chain(rest).boxed())
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
    /// Waits until there is something to yield.
    async fn next(&mut self) -> Result<DesiredState> {
        loop {
            tokio::select! {
                result = self.socket.next(DOING) => {
                    if self.take(&result?)? {
                        return self.state();
                    }
                }
                alarmed = self.alarm.changed() => {
                    // The sender lives in `shared`, so it is never gone.
                    let _ = alarmed;
                    sleep_until(self.rested_at).await;
                    self.catch_up().await?;
                    return self.state();
                }
                () = sleep_until(self.read_at) => {
                    self.catch_up().await?;
                    self.doubt_subscriptions()?;
                    return self.state();
                }
            }
        }
    }

    fn state(&mut self) -> Result<DesiredState> {
        self.watching.saw(&self.now.mandelboxes);
        self.reader.understand(&self.now)
    }

    /// Delivers what waits, then reads everything.
    async fn catch_up(&mut self) -> Result<()> {
        self.alarm.mark_unchanged();
        let Shared { server, outbox, poll } = &*self.shared;
        outbox.catch_up(server, &self.instance).await?;
        let begun = Instant::now();
        self.now = statements::read(server, &self.instance).await?;
        self.rested_at = Instant::now() + begun.elapsed();
        self.read_at = Instant::now() + jittered(*poll).min(*poll);
        Ok(())
    }

    /// A result of a subscription. Whether it says anything new.
    fn take(&mut self, result: &Payload) -> Result<bool> {
        let answer: Answer<'_> = serde_json::from_str(&result.json)
            .map_err(|error| failure::invalid(DOING, "a result cannot be read").with_source(error))?;
        self.doubt = false;
        let (server, headers) = (&self.shared.server, || self.socket.headers.clone());
        match result.id.as_str() {
            INSTANCE => {
                let rows: ops::WatchInstance = server.read(DOING, headers(), &answer)?;
                let status = statements::status(rows.cloud_instance_info);
                let is_new = self.now.instance != status;
                self.now.instance.clone_from(&status);
                self.shown.instance = Some(status);
                Ok(is_new)
            }
            MANDELBOXES => {
                let rows: ops::WatchMandelboxes = server.read(DOING, headers(), &answer)?;
                let rows: Vec<_> = rows.cloud_mandelbox_info.into_iter().map(Raw::from).collect();
                let is_new = self.now.mandelboxes != rows;
                self.now.mandelboxes.clone_from(&rows);
                self.shown.mandelboxes = Some(rows);
                Ok(is_new)
            }
            _ => Ok(false),
        }
    }

    /// After a read: subscriptions that do not show it yet have until the next read, which is soon.
    fn doubt_subscriptions(&mut self) -> Result<()> {
        let shown = self.shown.instance.as_ref() == Some(&self.now.instance)
            && self.shown.mandelboxes.as_ref() == Some(&self.now.mandelboxes);
        if shown {
            self.doubt = false;
            return Ok(());
        }
        if self.doubt {
            let what = "a subscription has fallen silent: it does not show what there is";
            return Err(failure::unavailable(DOING, what));
        }
        self.doubt = true;
        self.read_at = self.read_at.min(Instant::now() + self.grace());
        Ok(())
    }

    /// Many times as long as a change takes to be shown.
    fn grace(&self) -> Duration {
        self.shared.poll / 3
    }
}
