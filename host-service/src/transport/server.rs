//! Accepting connections, and one connection's life.

use std::{io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use axum::{Router, response::IntoResponse};
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use super::{
    Limits,
    pace::{Pace, PaceLimits, Paced, Phase},
    quota::{Quotas, Visitor},
    reply::Refusal,
};

/// A request's header and everything that comes with it. A token in a header has one or two KiB.
const LARGEST_HEADER_BYTES: usize = 32 << 10;
/// For the last words on a connection that is being closed.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// When no connection can be accepted, for instance because no file descriptor is left.
const AFTER_ACCEPT_FAILED: Duration = Duration::from_millis(100);

/// What every connection needs.
pub(super) struct Connections {
    pub tls: Arc<ServerConfig>,
    pub router: Router,
    pub limits: Limits,
    pub quotas: Arc<Quotas>,
    pub tasks: TaskTracker,
    /// No new requests.
    pub stop: CancellationToken,
    /// No more connections at all.
    pub kill: CancellationToken,
}

impl Connections {
    /// Accepts until told to stop.
    ///
    /// When all places are taken, a new connection is accepted and closed at once. It costs no handshake, the client
    /// knows immediately instead of waiting in the kernel's queue for as long as it likes to, and when a place becomes
    /// free it goes to a client that is still there. The connections that have a place notice nothing.
    pub(super) async fn accept(self: &Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(self.limits.max_connections));
        let mut full = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let Some(visitor) = self.quotas.admit(peer.ip()) else { continue };
                    let place = places.clone().try_acquire_owned().ok();
                    if place.is_none() && !full {
                        tracing::warn!(
                            places = self.limits.max_connections,
                            "closing new connections: all places are taken"
                        );
                    }
                    full = place.is_none();
                    if let Some(place) = place {
                        self.spawn(stream, peer, visitor, place);
                    }
                }
                // The client's, who has gone again.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    self.stop.run_until_cancelled(sleep(AFTER_ACCEPT_FAILED)).await;
                }
            }
        }
    }

    fn spawn(
        self: &Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        visitor: Visitor,
        place: OwnedSemaphorePermit,
    ) {
        let this = self.clone();
        let served = async move {
            if let Some(Err(error)) = this.kill.run_until_cancelled(this.tcp(stream, &visitor)).await {
                tracing::debug!(error = %host_core::chain(&error), "a connection ended early");
            }
            drop(place);
        };
        self.tasks.spawn(served.instrument(tracing::info_span!("client", %peer)));
    }

    async fn tcp(&self, stream: TcpStream, visitor: &Visitor) -> io::Result<()> {
        // A small answer must not wait for the acknowledgement of the one before.
        stream.set_nodelay(true)?;
        let deadline = Instant::now() + self.limits.handshake_timeout;
        if timeout_at(deadline, speaks_http(&stream)).await.map_err(|_| late())?? {
            return last_words(stream, Refusal::PlainHttp).await;
        }
        self.serve(stream, visitor, deadline).await
    }

    /// A connection from the handshake, which has until `deadline`, to its end.
    pub(super) async fn serve<S>(&self, stream: S, visitor: &Visitor, deadline: Instant) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake = TlsAcceptor::from(self.tls.clone()).accept(stream);
        let stream = timeout_at(deadline, handshake).await.map_err(|_| late())??;
        self.http(stream, visitor).await
    }

    async fn http<S>(&self, stream: S, visitor: &Visitor) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let pace = Pace::new();
        let router = TowerToHyperService::new(self.router.clone());
        let service = service_fn(|request: Request<Incoming>| {
            pace.enter(Phase::Busy);
            let answer = visitor.may_ask().then(|| router.call(request));
            let pace = &pace;
            async move {
                let answer = match answer {
                    Some(answer) => answer.await,
                    None => Ok(Refusal::TooOften.into_response()),
                };
                pace.enter(Phase::Idle);
                answer
            }
        });
        let stream = TokioIo::new(Paced { stream, pace: pace.clone() });
        let mut connection = http1::Builder::new()
            .header_read_timeout(None)
            .max_header_size(LARGEST_HEADER_BYTES)
            .serve_connection(stream, service);
        let limits = PaceLimits { header: self.limits.header_timeout, idle: self.limits.idle_timeout };
        let mut stopping = false;
        let expired = loop {
            tokio::select! {
                biased;
                ended = &mut connection => return ended.map_err(io::Error::other),
                expired = pace.expired(limits) => break expired,
                () = self.stop.cancelled(), if !stopping => {
                    stopping = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
            }
        };
        if expired == Phase::Header {
            let stream = connection.into_parts().io.into_inner().stream;
            return last_words(stream, Refusal::SlowHeader(limits.header)).await;
        }
        Pin::new(&mut connection).graceful_shutdown();
        timeout(LAST_WORDS, connection).await.map_err(|_| late())?.map_err(io::Error::other)
    }
}

/// Whether the first byte is a letter, as in `PUT` and `GET`; a TLS handshake begins with the byte 22.
async fn speaks_http(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    Ok(stream.peek(&mut first).await? == 1 && first[0].is_ascii_uppercase())
}

/// Says why, and reads a little of what the client still sends, so that it gets to read the answer.
async fn last_words<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, refusal: Refusal) -> io::Result<()> {
    let say = async {
        stream.write_all(&refusal.into_bytes()).await?;
        stream.shutdown().await?;
        let mut rest = stream.take(LARGEST_HEADER_BYTES as u64);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    timeout(LAST_WORDS, say).await.map_err(|_| late())?.map(drop)
}

fn late() -> io::Error {
    io::ErrorKind::TimedOut.into()
}
