//! A server that behaves as logz.io's listener and as Sentry do. What a plugin sends is taken apart byte by byte, and
//! kept as it came: tests look at both.
//!
//! One thread, owned by [`Server`], with a runtime of its own, so that a test that blocks its thread finds it answering.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{oneshot, watch},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

mod certificate;
mod logzio;
mod sentry;

pub use certificate::Certificate;
pub use logzio::{LARGEST_BODY_BYTES, LONGEST_LINE_BYTES};
pub use sentry::Envelope;

/// The only token that the listener knows.
pub const TOKEN: &str = "stand-in-shipping-token";
/// The only key that Sentry knows.
pub const KEY: &str = "0123456789abcdef0123456789abcdef";

/// How the server behaves.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Mood {
    /// As the real ones do.
    #[default]
    Takes,
    /// Answers nothing, and does as before when it comes to itself.
    Stalls,
    /// Answers every request with this.
    Answers {
        /// The status.
        status: u16,
        /// More headers.
        headers: Vec<(&'static str, String)>,
        /// The body.
        body: &'static str,
    },
    /// Takes so long for each answer.
    Slow(Duration),
    /// Takes in this much at once, and answers 413 to more.
    Small(usize),
}

impl Mood {
    /// Answers every request with `status`.
    pub fn answers(status: u16) -> Self {
        Self::Answers { status, headers: Vec::new(), body: "" }
    }
}

/// One request, as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Path and query.
    pub target: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as it was on the wire.
    pub body: Bytes,
    /// What was answered.
    pub status: u16,
}

/// Everything that came.
#[derive(Debug, Default)]
pub struct Arrived {
    /// Every request, the answered ones.
    pub requests: Vec<Seen>,
    /// Lines that the listener took.
    pub lines: Vec<String>,
    /// Envelopes that Sentry took.
    pub envelopes: Vec<Envelope>,
}

#[derive(Debug, Default)]
struct Shared {
    arrived: Mutex<Arrived>,
    print: bool,
}

impl Shared {
    fn arrived(&self) -> MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How to start.
#[derive(Debug, Default)]
pub struct Options {
    /// Where; the default is any free port of this machine.
    pub listen: Option<SocketAddr>,
    /// With TLS.
    pub certificate: Option<Certificate>,
    /// Prints what arrives.
    pub print: bool,
}

/// The server. It ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    mood: watch::Sender<Mood>,
    scheme: &'static str,
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// It cannot.
    pub fn start(options: Options) -> Result<Self> {
        let shared = Arc::new(Shared { print: options.print, ..Shared::default() });
        let (mood, moods) = watch::channel(Mood::default());
        let (end, ended) = oneshot::channel::<()>();
        let listener = std::net::TcpListener::bind(options.listen.unwrap_or(([127, 0, 0, 1], 0).into()))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let scheme = if options.certificate.is_some() { "https" } else { "http" };
        let acceptor = options.certificate.map(|certificate| certificate.acceptor()).transpose()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let kept = shared.clone();
        let thread = thread::Builder::new().name("telemetry stand-in".to_owned()).spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    () = serve(listener, acceptor, kept, moods) => {}
                    _ = ended => {}
                }
            });
        })?;
        Ok(Self { address, shared, mood, scheme, end: Some(end), thread: Some(thread) })
    }

    /// The listener's URL.
    pub fn url(&self) -> String {
        format!("{}://localhost:{}", self.scheme, self.address.port())
    }

    /// The DSN of the one project there is.
    pub fn dsn(&self) -> String {
        format!("{}://{KEY}@localhost:{}/42", self.scheme, self.address.port())
    }

    /// From now on it behaves like this.
    pub fn set(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// What came so far.
    pub fn arrived<T>(&self, look: impl FnOnce(&Arrived) -> T) -> T {
        look(&self.shared.arrived())
    }

    /// The lines that the listener took, decoded.
    pub fn lines(&self) -> Vec<Value> {
        self.arrived(|arrived| {
            arrived.lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
        })
    }

    /// The events that Sentry took.
    pub fn events(&self) -> Vec<Value> {
        self.arrived(|arrived| arrived.envelopes.iter().map(|envelope| envelope.event.clone()).collect())
    }

    /// How many requests were answered.
    pub fn requests(&self) -> usize {
        self.arrived(|arrived| arrived.requests.len())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    moods: watch::Receiver<Mood>,
) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (shared, moods, acceptor) = (shared.clone(), moods.clone(), acceptor.clone());
        connections.spawn(async move {
            match acceptor {
                None => converse(stream, shared, moods).await,
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        converse(stream, shared, moods).await;
                    }
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    shared: Arc<Shared>,
    moods: watch::Receiver<Mood>,
) {
    let service = service_fn(move |request| {
        let (shared, moods) = (shared.clone(), moods.clone());
        async move { Ok::<_, Infallible>(answer(request, &shared, moods).await) }
    });
    // A client that hangs up is no error of the server's.
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
}

/// What is said to one request.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<String>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }
}

async fn answer(
    request: Request<Incoming>,
    shared: &Shared,
    mut moods: watch::Receiver<Mood>,
) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    // It fails only when the server has ended.
    let _ = moods.wait_for(|mood| *mood != Mood::Stalls).await;
    let mood = moods.borrow().clone();
    let reply = match mood {
        Mood::Answers { status, headers, body } => Reply { status, headers, body: body.to_owned() },
        Mood::Small(most) if body.len() > most => Reply::new(413, ""),
        mood => {
            if let Mood::Slow(pause) = mood {
                tokio::time::sleep(pause).await;
            }
            match parts.uri.path().starts_with("/api/") {
                true => sentry::take(&parts, &body, &mut shared.arrived()),
                false => logzio::take(&parts, &body, &mut shared.arrived()),
            }
        }
    };
    let target = parts.uri.to_string();
    if shared.print {
        print(&target, reply.status, &shared.arrived());
    }
    let seen = Seen { target, headers: parts.headers, body, status: reply.status };
    shared.arrived().requests.push(seen);
    let mut response = Response::new(Full::from(reply.body));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or_default();
    for (name, value) in reply.headers {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// The latest, for a person who tries it out.
#[allow(clippy::print_stdout, reason = "only the program prints")]
fn print(target: &str, status: u16, arrived: &Arrived) {
    let path = target.split('?').next().unwrap_or_default();
    println!("POST {path} {status}");
    if path.starts_with("/api/") {
        arrived.envelopes.last().iter().for_each(|envelope| println!("{:#}", envelope.event));
    } else {
        println!("  {} lines so far; the last one:", arrived.lines.len());
        arrived.lines.last().iter().for_each(|line| println!("  {line}"));
    }
}

/// A body as it was before compression.
pub(crate) fn plain(headers: &HeaderMap, body: &[u8]) -> Result<Vec<u8>> {
    use std::io::Read;
    match headers.get(http::header::CONTENT_ENCODING).map(|encoding| encoding.to_str()) {
        None => Ok(body.to_vec()),
        Some(Ok("gzip")) => {
            let mut text = Vec::new();
            flate2::read::GzDecoder::new(body).read_to_end(&mut text).context("no gzip")?;
            Ok(text)
        }
        Some(other) => anyhow::bail!("encoding {other:?}"),
    }
}
