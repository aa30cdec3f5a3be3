//! How long one connection may take between its requests and for their headers.
//!
//! ```text
//!   Fresh ──first byte──▶ Header ──request──▶ Busy ──answer──▶ Idle ──first byte──▶ Header …
//!   └───── header time-out ─────┘             (the handler's    └ idle time-out
//!                                              own limits)
//! ```
//!
//! hyper has one time-out for both waiting and header; a kept-alive connection may wait much longer than a header
//! may take. The phases are set by the stream that hyper reads from and by the service that it calls, both polled
//! within the connection's own task, and [`Pace::expired`] is polled after them in the same task: no wake-ups are
//! needed.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// For its first byte.
    Fresh,
    /// For the rest of a header.
    Header,
    /// For its handler.
    Busy,
    /// For another request.
    Idle,
}

/// The time limits.
#[derive(Debug, Clone, Copy)]
pub(super) struct PaceLimits {
    pub header: Duration,
    pub idle: Duration,
}

/// A connection's phase and since when it is in it.
#[derive(Debug, Clone)]
pub(super) struct Pace(Arc<Mutex<(Phase, Instant)>>);

impl Pace {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new((Phase::Fresh, Instant::now()))))
    }

    pub(super) fn enter(&self, phase: Phase) {
        *self.state() = (phase, Instant::now());
    }

    fn bytes_came(&self) {
        if matches!(self.state().0, Phase::Fresh | Phase::Idle) {
            self.enter(Phase::Header);
        }
    }

    /// The phase that took too long. To be polled after the connection, in its task.
    pub(super) async fn expired(&self, limits: PaceLimits) -> Phase {
        let mut sleep = pin!(sleep_until(Instant::now() + limits.header));
        poll_fn(|context| {
            let (phase, since) = *self.state();
            let limit = match phase {
                Phase::Fresh | Phase::Header => limits.header,
                Phase::Idle => limits.idle,
                Phase::Busy => return Poll::Pending,
            };
            if sleep.deadline() != since + limit {
                sleep.as_mut().reset(since + limit);
            }
            sleep.as_mut().poll(context).map(|()| phase)
        })
        .await
    }

    fn state(&self) -> MutexGuard<'_, (Phase, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that tells a [`Pace`] of what it reads.
#[derive(Debug)]
pub(super) struct Paced<S> {
    pub stream: S,
    pub pace: Pace,
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        let result = Pin::new(&mut this.stream).poll_read(context, into);
        if into.filled().len() > before {
            this.pace.bytes_came();
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
