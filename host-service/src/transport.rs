//! The clients' side: `PUT /json_transport` over HTTPS.
//!
//! ```text
//!   accept ─▶ TLS ─▶ header ─▶ path, method ─▶ length ─▶ token in a header ─▶ body ─▶ token in it ─▶ fields
//!    │ no place: closed   │ 408, 429  │ 404, 405     │ 413        │ 401            │ 408, 413,   │ 401     │ 400
//!    ▼                    ▼           ▼              ▼            ▼                ▼ 429, 400    ▼         ▼
//!                                                                                       ─▶ Lobby ─▶ answer
//! ```
//!
//! Nothing is believed before the token is verified, and everything until then is bounded in size, in time and in
//! number. The token is usually in the body; a client that sends it as `Authorization: Bearer` is told before its
//! body is read.
//!
//! Tasks: [`Server::run`] accepts; each connection has a task; where a request allocates its mandelbox itself, each
//! allocation has one, because a client that goes away must not take back half of it; where the issuer of tokens serves
//! its keys, one keeps them fresh. All belong to the server and
//! have ended when `run` returns. A request's handler owns nothing: what it brings is the [`Lobby`]'s at once.
//!
//! Deliberately absent: HTTP/2 (one request per client), compression (nothing to compress), CORS (no browser is a
//! client). What is not HTTP at all is told so by hyper, with a status and no body.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
    routing::put,
};
use futures::future::BoxFuture;
use host_core::{AppName, ErrorKind, PluginError, UserId, pubsub::Allocation};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use crate::lobby::{Answer, ClientRequest, Failure, Lobby, Pending};

mod auth;
mod body;
mod pace;
mod quota;
mod reload;
mod reply;
mod request;
mod server;
mod settings;
#[cfg(test)]
mod tests;
mod tls;

pub(crate) use auth::count_keys;
pub use auth::{Auth, KeySource, KeysError, Served};
pub use quota::Quota;
pub use tls::{Certificate, CertificateError};

use auth::{Refresh, Verifier};
use body::Bodies;
use quota::Quotas;
use reload::Reload;
use reply::Refusal;
use request::{Fields, bearer};
use server::Connections;

/// What one server may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open connections.
    pub max_connections: usize,
    /// For the TLS handshake.
    pub handshake_timeout: Duration,
    /// For a header, from its first byte; for the first byte, from the handshake.
    pub header_timeout: Duration,
    /// For a body, from the end of the header.
    pub body_timeout: Duration,
    /// For the next request of a connection that has had one.
    pub idle_timeout: Duration,
    /// The largest body.
    pub body_limit_bytes: usize,
    /// Of each address and of all.
    pub quota: Quota,
}

/// How to serve.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where.
    pub listen: SocketAddr,
    /// As whom.
    pub certificate: Certificate,
    /// How often files are looked at for another one; zero for never.
    pub certificate_check: Duration,
    /// For whom.
    pub auth: Auth,
    /// How much.
    pub limits: Limits,
}

/// Inserts an allocation, as the control plane would; it must have a deadline of its own.
pub type Allocate = Arc<dyn Fn(Allocation) -> BoxFuture<'static, Result<(), PluginError>> + Send + Sync>;

/// For hosts without a control plane: a request allocates its mandelbox itself.
pub struct OnRequest {
    /// How.
    pub allocate: Allocate,
    /// For whom where tokens are not checked.
    pub user: UserId,
    /// What where the request does not say.
    pub app: AppName,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The port is another's.
    #[error(
        "port {} is taken by another program on {}; end that program (`ss -ltnp` names it) or set http.listen to \
         another port",
        listen.port(), listen.ip()
    )]
    Busy {
        /// What was to be listened on.
        listen: SocketAddr,
    },
    /// It cannot be listened on for another reason.
    #[error("http.listen: cannot listen on {listen}")]
    Listen {
        /// What was to be listened on.
        listen: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// What is set needs this to be set too.
    #[error("{0} is not set")]
    Unset(&'static str),
    /// There is no certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Tokens could not be verified.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// A server that listens and does not answer yet.
pub struct Server {
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    limits: Limits,
    /// Where tokens are checked with keys that the issuer serves.
    refresh: Option<Refresh>,
    /// Where the certificate is from files.
    reload: Option<Reload>,
    certificate_check: Duration,
    tasks: TaskTracker,
}

impl Server {
    /// Reads keys and certificate, and listens. Spawns nothing.
    ///
    /// # Errors
    /// Each says what to change.
    pub async fn build(
        options: Options,
        lobby: Arc<Lobby>,
        on_request: Option<OnRequest>,
    ) -> Result<Self, BuildError> {
        let Options { listen, certificate, certificate_check, auth, limits } = options;
        let (verifier, refresh) = Verifier::build(&auth).await?;
        let (tls, reload) = tls::config(&certificate)?;
        let tls = Arc::new(tls);
        let listener = TcpListener::bind(listen).await.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => BuildError::Busy { listen },
            _ => BuildError::Listen { listen, source },
        })?;
        let tasks = TaskTracker::new();
        let bodies = Bodies::new(limits.body_limit_bytes, limits.body_timeout);
        let handler = Handler { lobby, verifier, bodies, on_request, tasks: tasks.clone() };
        Ok(Self { listener, tls, router: router(handler), limits, refresh, reload, certificate_check, tasks })
    }

    /// Where it listens: the port that was chosen, where `listen` said 0.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`. Then no connection is accepted, idle ones are closed, and requests in flight have `drain`
    /// to end before they are cut off. When it returns, nothing of it runs any more.
    pub async fn run(self, stop: CancellationToken, drain: Duration) {
        let Self { listener, tls, router, limits, refresh, reload, certificate_check, tasks } = self;
        let kill = CancellationToken::new();
        // Beside the connections; they never end by themselves, so nobody waits for them.
        let mut background = JoinSet::new();
        if let Some(refresh) = refresh {
            background.spawn(refresh.run());
        }
        if let Some(reload) = reload.filter(|_| !certificate_check.is_zero()) {
            background.spawn(reload.run(certificate_check));
        }
        let quotas = Quotas::new(limits.quota);
        let connections =
            Connections { tls, router, limits, quotas, tasks: tasks.clone(), stop, kill: kill.clone() };
        Arc::new(connections).accept(listener).await;
        tasks.close();
        if timeout(drain, tasks.wait()).await.is_err() {
            tracing::warn!(tasks = tasks.len(), "cutting off requests that did not end in time");
            kill.cancel();
            tasks.wait().await;
        }
        background.shutdown().await;
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for OnRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnRequest").field("user", &self.user).field("app", &self.app).finish_non_exhaustive()
    }
}

fn router(handler: Handler) -> Router {
    Router::new()
        .route("/json_transport", put(json_transport))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Arc::new(handler))
}

async fn unknown_path(request: Request) -> Response {
    let (parts, body) = request.into_parts();
    refuse(&parts.headers, body, Refusal::UnknownPath).await
}

async fn wrong_method(request: Request) -> Response {
    let (parts, body) = request.into_parts();
    refuse(&parts.headers, body, Refusal::WrongMethod).await
}

async fn refuse(headers: &HeaderMap, body: Body, refusal: Refusal) -> Response {
    if !matches!(refusal, Refusal::SlowBody(_)) {
        body::throw_away(headers, body).await;
    }
    refusal.into_response()
}

async fn json_transport(State(handler): State<Arc<Handler>>, request: Request) -> Response {
    let began = Instant::now();
    let (parts, mut body) = request.into_parts();
    let result = handler.answer(&parts.headers, &mut body).await;
    let took_ms = began.elapsed().as_secs_f64() * 1e3;
    match result {
        Ok(answer) => {
            tracing::debug!(took_ms, "json_transport answered");
            reply::granted(&answer)
        }
        Err(refusal) => {
            tracing::debug!(took_ms, code = refusal.code(), "json_transport refused");
            refuse(&parts.headers, body, refusal).await
        }
    }
}

/// What requests are answered with.
struct Handler {
    lobby: Arc<Lobby>,
    verifier: Verifier,
    bodies: Bodies,
    on_request: Option<OnRequest>,
    tasks: TaskTracker,
}

impl Handler {
    async fn answer(&self, headers: &HeaderMap, body: &mut Body) -> Result<Arc<Answer>, Refusal> {
        self.bodies.check_length(body)?;
        let shown = match bearer(headers) {
            Some(token) => Some((token, self.verifier.subject(Some(token)).await?)),
            None => None,
        };
        let request = {
            let read = self.bodies.read(body).await?;
            let fields = Fields::parse(&read.bytes)?;
            match shown {
                Some((token, subject)) => fields.request(Some(token), subject)?,
                None => {
                    let token = fields.token()?;
                    let subject = self.verifier.subject(token.as_deref()).await?;
                    fields.request(token.as_deref(), subject)?
                }
            }
        };
        tracing::debug!(mandelbox = %request.id, "a client asks for its mandelbox");
        Ok(self.meet(request)?.await?)
    }

    /// First the lobby, then the allocation: what the mandelbox will ask for is there before it is.
    fn meet(&self, request: ClientRequest) -> Result<Pending, Failure> {
        let Some(on_request) = &self.on_request else {
            return self.lobby.join(request);
        };
        let allocation = on_request.allocation(&request)?;
        self.lobby.forget(&request.id);
        let pending = self.lobby.join(request)?;
        if pending.awaits_allocation() {
            let span = tracing::info_span!("allocate", mandelbox = %allocation.id);
            let allocated = allocate(on_request.allocate.clone(), allocation, self.lobby.clone());
            self.tasks.spawn(allocated.instrument(span));
        }
        Ok(pending)
    }
}

impl OnRequest {
    fn allocation(&self, request: &ClientRequest) -> Result<Allocation, Failure> {
        // Nobody else knows this session; it only has to be like no other.
        let session = format!("{:032x}", rand::random::<u128>()).parse();
        Ok(Allocation {
            id: request.id.clone(),
            user: request.subject.clone().unwrap_or_else(|| self.user.clone()),
            session: session
                .map_err(|error: host_core::InvalidId| Failure::Unavailable(error.to_string()))?,
            app: Some(request.data.app.clone().unwrap_or_else(|| self.app.clone())),
        })
    }
}

async fn allocate(allocate: Allocate, allocation: Allocation, lobby: Arc<Lobby>) {
    let id = allocation.id.clone();
    match allocate(allocation).await {
        Ok(()) => {}
        // Somebody has allocated it already; the request waits for that one.
        Err(error) if error.kind() == ErrorKind::Conflict => {}
        Err(error) => {
            tracing::warn!(error = host_core::chain(&error), "a mandelbox could not be allocated");
            let failure = Failure::Unavailable(format!("it could not be allocated: {error}"));
            lobby.refuse(&id, failure);
        }
    }
}
