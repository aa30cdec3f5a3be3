//! Calls to one instance, wherever it runs.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture};
use host_core::{ErrorKind, PluginError};
use host_plugin_abi as abi;
use host_plugin_protocol::{Answer, Caller, Encoding, Item, Items, decode_error};
use tokio::sync::mpsc;

use crate::{
    backend::Backend,
    calls::{Calls, Ended, Event, WINDOW, count},
};

/// Requests that nobody waits for, under way at once.
const POSTS: u64 = 4096;

/// What is known of one plugin's calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// Its name.
    pub plugin: String,
    /// Calls begun.
    pub calls: u64,
    /// Calls that it answered with an error.
    pub failures: u64,
    /// Completions that came late or twice.
    pub late: u64,
    /// Completions of what was never called.
    pub invented: u64,
    /// How often its process was started again.
    pub restarts: u64,
}

static ALL: Mutex<Vec<Weak<Calls>>> = Mutex::new(Vec::new());

/// Of every plugin that is loaded.
pub fn figures() -> Vec<Figures> {
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|calls| calls.strong_count() > 0);
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let figures = |calls: Arc<Calls>| Figures {
        plugin: calls.plugin().to_owned(),
        calls: read(&calls.counts.calls),
        failures: read(&calls.counts.failures),
        late: read(&calls.counts.unknown),
        invented: read(&calls.counts.invented),
        restarts: read(&calls.counts.restarts),
    };
    all.iter().filter_map(Weak::upgrade).map(figures).collect()
}

/// One instance of a plugin.
#[derive(Debug)]
pub(crate) struct Instance {
    calls: Arc<Calls>,
    backend: Arc<dyn Backend>,
    encoding: Encoding,
    figures: Mutex<HashMap<u32, Arc<AtomicU64>>>,
}

impl Instance {
    pub(crate) fn new(calls: Arc<Calls>, backend: Arc<dyn Backend>, encoding: Encoding) -> Self {
        ALL.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&calls));
        Self { calls, backend, encoding, figures: Mutex::default() }
    }

    fn answer(&self, ended: Ended) -> Result<Answer, PluginError> {
        match ended? {
            (abi::OK, body) => Ok(Answer::Body(body)),
            (abi::UNIMPLEMENTED, _) => Ok(Answer::Unimplemented),
            (status, body) => Err(decode_error(self.encoding, status, &body)),
        }
    }

    fn reader(&self, method: u32, request: Vec<u8>) -> Reader {
        let (call, events) = self.calls.stream();
        let reader = Reader {
            waiting: Waiting { call, calls: Arc::clone(&self.calls), backend: Arc::clone(&self.backend) },
            events,
            taken: 0,
        };
        self.backend.call(call, method, request, WINDOW);
        reader
    }
}

/// Cancels the call when it is dropped before its end.
#[derive(Debug)]
struct Waiting {
    call: u64,
    calls: Arc<Calls>,
    backend: Arc<dyn Backend>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.calls.forget(self.call) {
            self.backend.cancel(self.call);
        }
    }
}

/// What comes of one stream; grants as it is read.
#[derive(Debug)]
struct Reader {
    waiting: Waiting,
    events: mpsc::UnboundedReceiver<Event>,
    taken: u32,
}

impl Reader {
    async fn next(&mut self) -> Event {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        let event = ready!(self.events.poll_recv(context));
        if matches!(event, Some(Event::Item(_))) {
            self.taken += 1;
            if self.taken >= WINDOW / 2 {
                let taken = std::mem::take(&mut self.taken);
                self.waiting.calls.grant(self.waiting.call, taken);
                self.waiting.backend.grant(self.waiting.call, taken);
            }
        }
        let lost =
            || Event::End(Err(PluginError::new(ErrorKind::Internal, "the call is not known any more")));
        Poll::Ready(event.unwrap_or_else(lost))
    }
}

/// The items after the first, up to the end.
struct Open {
    reader: Option<Reader>,
    encoding: Encoding,
}

impl Stream for Open {
    type Item = Result<Vec<u8>, PluginError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(reader) = self.reader.as_mut() else { return Poll::Ready(None) };
        match ready!(reader.poll(context)) {
            Event::Item(item) => Poll::Ready(Some(Ok(item))),
            Event::End(ended) => {
                self.reader = None;
                Poll::Ready(match ended {
                    Ok((abi::OK, _)) => None,
                    Ok((status, body)) => Some(Err(decode_error(self.encoding, status, &body))),
                    Err(error) => Some(Err(error)),
                })
            }
        }
    }
}

impl Caller for Instance {
    fn encoding(&self) -> Encoding {
        self.encoding
    }

    fn call(&self, method: u32, request: Vec<u8>) -> BoxFuture<'_, Result<Answer, PluginError>> {
        async move {
            let (call, answered) = self.calls.once();
            let waiting =
                Waiting { call, calls: Arc::clone(&self.calls), backend: Arc::clone(&self.backend) };
            self.backend.call(call, method, request, 0);
            let lost = |_| Err(PluginError::new(ErrorKind::Internal, "the call is not known any more"));
            let ended = answered.await.unwrap_or_else(lost);
            drop(waiting);
            self.answer(ended)
        }
        .boxed()
    }

    fn call_with_items<'a>(
        &'a self,
        method: u32,
        request: Vec<u8>,
        item: Item<'a>,
    ) -> BoxFuture<'a, Result<Answer, PluginError>> {
        async move {
            let mut reader = self.reader(method, request);
            loop {
                match reader.next().await {
                    Event::Item(bytes) => item(bytes),
                    Event::End(ended) => return self.answer(ended),
                }
            }
        }
        .boxed()
    }

    fn open(&self, method: u32, request: Vec<u8>) -> BoxFuture<'_, Result<Option<Items>, PluginError>> {
        async move {
            let mut reader = self.reader(method, request);
            match reader.next().await {
                Event::Item(first) if first.is_empty() => {
                    Ok(Some(Open { reader: Some(reader), encoding: self.encoding }.boxed()))
                }
                Event::Item(_) => {
                    let text = "the plugin sent an item before the empty one that opens a stream";
                    Err(PluginError::new(ErrorKind::Internal, text))
                }
                Event::End(ended) => match self.answer(ended)? {
                    Answer::Body(_) => Ok(Some(futures::stream::empty().boxed())),
                    Answer::Unimplemented => Ok(None),
                },
            }
        }
        .boxed()
    }

    fn post(&self, method: u32, request: Vec<u8>) {
        if self.calls.counts.posts.load(Ordering::Relaxed) >= POSTS {
            return count(&self.calls.counts.untaken);
        }
        let call = self.calls.post();
        self.backend.call(call, method, request, 0);
    }

    fn figure(&self, method: u32) -> u64 {
        let known = {
            let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(figures.entry(method).or_default())
        };
        let request = self.encoding.encode(&HashMap::<(), ()>::new()).unwrap_or_default();
        let (call, told) = (self.calls.figure(Arc::clone(&known), self.encoding), &self.backend);
        told.call(call, method, request, 0);
        known.load(Ordering::Relaxed) + self.calls.counts.untaken.load(Ordering::Relaxed)
    }
}
