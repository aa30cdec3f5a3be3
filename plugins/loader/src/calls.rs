//! What is waited for, by the host's ids.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use host_core::{ErrorKind, PluginError};
use host_plugin_abi::{EMITTED, GONE, NO_CREDIT, OK};
use host_plugin_protocol::Encoding;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

/// Items that a stream may be ahead of its reader.
pub(crate) const WINDOW: u32 = 256;

/// A status and a body, or why there are none.
pub(crate) type Ended = Result<(i32, Vec<u8>), PluginError>;

/// What comes of a stream.
#[derive(Debug)]
pub(crate) enum Event {
    Item(Vec<u8>),
    End(Ended),
}

#[derive(Debug)]
enum Pending {
    Once(oneshot::Sender<Ended>),
    Stream {
        events: mpsc::UnboundedSender<Event>,
        credits: u32,
    },
    /// Its answer is looked at by nobody.
    Post,
    /// Its answer is a number to be kept.
    Figure(Arc<AtomicU64>, Encoding),
}

/// A record of a plugin.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Log {
    pub(crate) level: u32,
    pub(crate) target: String,
    pub(crate) message: String,
    pub(crate) fields: String,
}

/// Where a plugin's answers go.
pub(crate) trait Sink: Send + Sync + std::fmt::Debug + 'static {
    fn complete(&self, call: u64, status: i32, body: &[u8]);
    fn emit(&self, call: u64, item: &[u8]) -> i32;
    fn log(&self, log: Log);
    fn log_level(&self) -> u32;
}

/// What went wrong with one plugin's calls, and how many there were.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) calls: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) unknown: AtomicU64,
    pub(crate) invented: AtomicU64,
    pub(crate) restarts: AtomicU64,
    pub(crate) untaken: AtomicU64,
    pub(crate) posts: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The calls of one instance.
#[derive(Debug)]
pub(crate) struct Calls {
    plugin: String,
    next: AtomicU64,
    pending: Mutex<HashMap<u64, Pending>>,
    pub(crate) counts: Counts,
}

impl Calls {
    pub(crate) fn new(plugin: String) -> Self {
        Self { plugin, next: AtomicU64::new(1), pending: Mutex::default(), counts: Counts::default() }
    }

    pub(crate) fn plugin(&self) -> &str {
        &self.plugin
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, pending: Pending) -> u64 {
        count(&self.counts.calls);
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(call, pending);
        call
    }

    /// An id that nothing waits for.
    pub(crate) fn unawaited(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn once(&self) -> (u64, oneshot::Receiver<Ended>) {
        let (answer, answered) = oneshot::channel();
        (self.insert(Pending::Once(answer)), answered)
    }

    pub(crate) fn stream(&self) -> (u64, mpsc::UnboundedReceiver<Event>) {
        // Bounded by the credits.
        let (events, read) = mpsc::unbounded_channel();
        (self.insert(Pending::Stream { events, credits: WINDOW }), read)
    }

    pub(crate) fn post(&self) -> u64 {
        count(&self.counts.posts);
        self.insert(Pending::Post)
    }

    pub(crate) fn figure(&self, kept: Arc<AtomicU64>, encoding: Encoding) -> u64 {
        self.insert(Pending::Figure(kept, encoding))
    }

    /// Nobody waits any more; whether somebody did until now.
    pub(crate) fn forget(&self, call: u64) -> bool {
        self.lock().remove(&call).is_some()
    }

    /// A stream's reader has taken so many.
    pub(crate) fn grant(&self, call: u64, more: u32) {
        if let Some(Pending::Stream { credits, .. }) = self.lock().get_mut(&call) {
            *credits = credits.saturating_add(more);
        }
    }

    pub(crate) fn end(&self, call: u64, ended: Ended) {
        let pending = self.lock().remove(&call);
        // Whoever waited may have given up.
        match pending {
            Some(Pending::Once(answer)) => drop(answer.send(ended)),
            Some(Pending::Stream { events, .. }) => drop(events.send(Event::End(ended))),
            Some(Pending::Post) => {
                self.counts.posts.fetch_sub(1, Ordering::Relaxed);
            }
            Some(Pending::Figure(kept, encoding)) => {
                let figure = ended.ok().filter(|(status, _)| *status == OK);
                if let Some(Ok(figure)) = figure.map(|(_, body)| encoding.decode(&body)) {
                    kept.store(figure, Ordering::Relaxed);
                }
            }
            None if call >= self.next.load(Ordering::Relaxed) => count(&self.counts.invented),
            None => count(&self.counts.unknown),
        }
    }

    /// Everything that is waited for ends with this.
    pub(crate) fn fail_all(&self, why: &str) {
        let all: Vec<u64> = self.lock().keys().copied().collect();
        for call in all {
            self.end(call, Err(PluginError::new(ErrorKind::Unavailable, why)));
        }
    }
}

impl Sink for Calls {
    fn complete(&self, call: u64, status: i32, body: &[u8]) {
        if status != 0 {
            count(&self.counts.failures);
        }
        self.end(call, Ok((status, body.to_vec())));
    }

    fn emit(&self, call: u64, item: &[u8]) -> i32 {
        match self.lock().get_mut(&call) {
            Some(Pending::Stream { credits: 0, .. }) => NO_CREDIT,
            Some(Pending::Stream { events, credits }) => {
                if events.send(Event::Item(item.to_vec())).is_err() {
                    return GONE;
                }
                *credits -= 1;
                EMITTED
            }
            _ => GONE,
        }
    }

    fn log(&self, log: Log) {
        let Log { level, target, message, fields } = log;
        let plugin = self.plugin();
        match level {
            0 => tracing::trace!(plugin, module = target, fields, "plugin: {message}"),
            1 => tracing::debug!(plugin, module = target, fields, "plugin: {message}"),
            2 => tracing::info!(plugin, module = target, fields, "plugin: {message}"),
            3 => tracing::warn!(plugin, module = target, fields, "plugin: {message}"),
            _ => tracing::error!(plugin, module = target, fields, "plugin: {message}"),
        }
    }

    fn log_level(&self) -> u32 {
        match tracing::level_filters::LevelFilter::current().into_level() {
            Some(tracing::Level::TRACE) => 0,
            Some(tracing::Level::DEBUG) => 1,
            Some(tracing::Level::INFO) => 2,
            Some(tracing::Level::WARN) => 3,
            Some(tracing::Level::ERROR) => 4,
            None => 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_comes_twice_late_or_for_nothing_is_counted() {
        let calls = Calls::new("x".to_owned());
        let (call, answered) = calls.once();
        calls.complete(call, 0, b"1");
        calls.complete(call, 0, b"2");
        assert_eq!(answered.await.unwrap().unwrap(), (0, b"1".to_vec()));
        let (late, answered) = calls.once();
        drop(answered);
        assert!(calls.forget(late));
        calls.complete(late, 0, b"");
        calls.complete(1 << 40, 0, b"");
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!((read(&calls.counts.unknown), read(&calls.counts.invented)), (2, 1));
    }

    #[tokio::test]
    async fn a_flood_stops_at_the_window() {
        let calls = Calls::new("x".to_owned());
        let (call, mut events) = calls.stream();
        let taken = (0..10_000).filter(|_| calls.emit(call, b"item") == EMITTED).count();
        assert_eq!(taken, WINDOW as usize);
        assert_eq!(calls.emit(call, b""), NO_CREDIT);
        calls.grant(call, 1);
        assert_eq!(calls.emit(call, b""), EMITTED);
        events.close();
        calls.grant(call, 1);
        assert_eq!(calls.emit(call, b""), GONE);
    }
}
