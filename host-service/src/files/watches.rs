//! Waiting for files, on one inotify instance for the whole service: closing an instance waits for the kernel's grace
//! period (8 ms), and a user has only 128 of them, whereas a watch of an instance costs next to nothing.

use std::{
    collections::HashMap,
    fmt, io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::StreamExt;
use inotify::{Event, EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::sync::Notify;

/// The instance. Clones share it.
#[derive(Clone)]
pub(super) struct Watches(Arc<Inner>);

struct Inner {
    watches: inotify::Watches,
    told: Mutex<HashMap<WatchDescriptor, Arc<Notify>>>,
    /// Until it is read.
    unread: Mutex<Option<Inotify>>,
}

impl Watches {
    pub(super) fn new() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let (watches, told) = (inotify.watches(), Mutex::default());
        Ok(Self(Arc::new(Inner { watches, told, unread: Mutex::new(Some(inotify)) })))
    }

    /// Tells whoever waits. To be run once, as long as anybody waits.
    pub(super) async fn read(&self) -> io::Result<()> {
        let inotify = self.0.unread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(inotify) = inotify else { return Ok(()) };
        let mut events = inotify.into_event_stream(vec![0; 4096])?;
        while let Some(event) = events.next().await {
            self.tell(&event?);
        }
        Ok(())
    }

    fn tell<S>(&self, event: &Event<S>) {
        let told = self.told();
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            told.values().for_each(|waiter| waiter.notify_one());
        } else if let Some(waiter) = told.get(&event.wd) {
            waiter.notify_one();
        }
    }

    /// From now on, files that come to be in `directory` are told.
    pub(super) fn add(&self, directory: &Path) -> io::Result<Watch> {
        let descriptor = self.0.watches.clone().add(directory, WatchMask::CREATE | WatchMask::MOVED_TO)?;
        let waiter = Arc::new(Notify::new());
        self.told().insert(descriptor.clone(), waiter.clone());
        Ok(Watch { of: self.clone(), descriptor, waiter })
    }

    fn told(&self) -> MutexGuard<'_, HashMap<WatchDescriptor, Arc<Notify>>> {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Watches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watches").finish_non_exhaustive()
    }
}

/// A watch of one directory, removed when dropped.
#[derive(Debug)]
pub(super) struct Watch {
    of: Watches,
    descriptor: WatchDescriptor,
    waiter: Arc<Notify>,
}

impl Watch {
    /// Returns when something has come to be since the watch began or since the last call.
    pub(super) async fn told(&self) {
        self.waiter.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.of.told().remove(&self.descriptor);
        // It is gone by itself when the directory is.
        let _ = self.of.0.watches.clone().remove(self.descriptor.clone());
    }
}
