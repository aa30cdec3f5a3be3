//! A server that behaves as Hasura GraphQL Engine v2 does towards its clients, over a real PostgreSQL.
//!
//! No Hasura server can be had where the tests run, so they run against this one. It reads the very metadata that a
//! user applies to Hasura, takes columns and keys from the database, has async-graphql check every document, and says
//! over HTTP and both websocket subprotocols what Hasura's source and documents say it says. What the client does is
//! thereby checked against a second reading of the same documents, not against the original.
//!
//! ```text
//!  accept ──▶ one task per connection ──▶ http: queries and mutations ──┐
//!                      └──▶ upgrade ──▶ socket: live queries ───────────┴──▶ Engine of the caller's role ──▶ database
//! ```
//!
//! [`StandIn`] owns all tasks: when it is stopped or dropped they end. Its switches do what goes wrong in real life.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{net::TcpListener, sync::mpsc, time::Instant};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

mod auth;
mod failure;
mod http;
mod metadata;
mod schema;
mod sdl;
mod socket;
mod sql;
mod tables;

use schema::Engine;
use tables::Database;

/// The role that the metadata is for.
const HOST: &str = "host";

/// How the server is set up.
#[derive(Debug, Clone)]
pub struct Setup {
    /// `HASURA_GRAPHQL_ADMIN_SECRET`; without one everybody is the administrator.
    pub admin_secret: Option<String>,
    /// `HASURA_GRAPHQL_LIVE_QUERIES_MULTIPLEXED_REFETCH_INTERVAL`, 1 s by default.
    pub refetch: Duration,
    /// `HASURA_GRAPHQL_WEBSOCKET_KEEPALIVE`, 5 s by default.
    pub keepalive: Duration,
    /// As before version 2.0: only `graphql-ws`, whatever is asked for.
    pub is_old: bool,
    /// `HASURA_GRAPHQL_STRINGIFY_NUMERIC_TYPES`.
    pub stringify: bool,
    /// https.
    pub tls: Option<Arc<ServerConfig>>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            admin_secret: Some("hasurasecret".to_owned()),
            refetch: Duration::from_secs(1),
            keepalive: Duration::from_secs(5),
            is_old: false,
            stringify: false,
            tls: None,
        }
    }
}

/// What goes wrong at the moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Connections are accepted, and nobody ever answers.
    pub mute: bool,
    /// The same, only of websockets.
    pub deaf: bool,
    /// Live queries show nothing new any more, without a sign.
    pub silent: bool,
    /// Live queries send their result as fast as the client takes it.
    pub flood: bool,
    /// The database does not answer: every result carries an error.
    pub no_database: bool,
    /// Results of live queries are held back, to be sent in order when that is over: they are on the way.
    pub held: bool,
    /// Results carry an error beside their data.
    pub partial: bool,
    /// A source is inconsistent, so that its tables' fields are unknown.
    pub inconsistent: bool,
    /// Somebody else answers, with this status and a page: a proxy, while the server is deployed.
    pub proxy: Option<u16>,
    /// It is about to end: websockets are refused with 503.
    pub shutting_down: bool,
}

/// Who a token is for.
#[derive(Debug, Clone)]
pub struct Token {
    /// `x-hasura-instance-name`.
    pub instance: String,
    /// When it is no longer believed.
    pub expires: Option<Instant>,
}

/// A running server.
#[derive(Debug)]
pub struct StandIn {
    shared: Arc<Shared>,
    address: SocketAddr,
    tasks: TaskTracker,
    down: CancellationToken,
}

struct Shared {
    setup: Setup,
    /// By role.
    engines: BTreeMap<String, Engine>,
    state: Mutex<State>,
    requests: AtomicU64,
    upgrades: AtomicU64,
    refusals: AtomicU64,
    held: AtomicU64,
}

#[derive(Default)]
struct State {
    faults: Faults,
    admin_secret: Option<String>,
    tokens: BTreeMap<String, Token>,
    sockets: BTreeMap<u64, mpsc::UnboundedSender<Order>>,
    /// How many live queries there are of each kind, and since when.
    pollers: BTreeMap<String, (usize, Instant)>,
    /// What clients said, frame by frame, secrets and all.
    heard: Vec<String>,
}

/// What a socket is told by a test.
#[derive(Debug, Clone)]
enum Order {
    /// To send this text, whatever it is.
    Text(String),
    /// To close like this.
    Close(u16, String),
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("setup", &self.setup).finish_non_exhaustive()
    }
}

impl StandIn {
    /// A server on a free port of 127.0.0.1 over the database at `url`, with the metadata of the project directory
    /// `hasura`.
    ///
    /// # Errors
    /// The metadata cannot be read, or does not fit the database.
    pub async fn start(url: &str, hasura: &Path, setup: Setup) -> Result<Self> {
        let database = Database::new(url)?;
        let tables = database.describe(metadata::read(hasura)?).await.context("describing the tables")?;
        let mut engines = BTreeMap::new();
        for role in ["admin", HOST] {
            engines.insert(role.to_owned(), Engine::new(&tables, &database, role)?);
        }
        let state = State { admin_secret: setup.admin_secret.clone(), ..State::default() };
        let shared = Arc::new(Shared {
            setup,
            engines,
            state: Mutex::new(state),
            requests: AtomicU64::new(0),
            upgrades: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            held: AtomicU64::new(0),
        });
        Self::serve(shared, "127.0.0.1:0".parse()?).await
    }

    /// The same on a thread of its own, for a test that blocks the one it is on. It is in the caller's network.
    ///
    /// # Errors
    /// As [`StandIn::start`].
    pub fn apart(url: &str, hasura: &Path, setup: Setup) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (url, hasura) = (url.to_owned(), hasura.to_owned());
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::Builder::new().name("hasura".to_owned()).spawn(move || {
            runtime.block_on(async {
                let started = Self::start(&url, &hasura, setup).await;
                let down = started.as_ref().ok().map(|server| server.down.clone());
                // Whoever waits for it is there.
                let _ = sender.send(started);
                if let Some(down) = down {
                    down.cancelled().await;
                }
            });
        })?;
        receiver.recv()?
    }

    async fn serve(shared: Arc<Shared>, address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (tasks, down) = (TaskTracker::new(), CancellationToken::new());
        let server = Self { shared, address, tasks, down };
        let acceptor = server.shared.setup.tls.clone().map(TlsAcceptor::from);
        let of = (server.shared.clone(), server.tasks.clone(), server.down.clone());
        server.spawn(async move {
            let (shared, tasks, down) = of;
            while let Ok((stream, _)) = listener.accept().await {
                let connection =
                    http::serve(shared.clone(), tasks.clone(), down.clone(), stream, acceptor.clone());
                tasks.spawn(down.clone().run_until_cancelled_owned(connection));
            }
        });
        Ok(server)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.down.clone().run_until_cancelled_owned(task));
    }

    /// Ends all connections and the listener, as a crash does.
    pub async fn stop(&self) {
        self.down.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The same server again, at the same address.
    ///
    /// # Errors
    /// The address is taken.
    pub async fn restart(self) -> Result<Self> {
        self.stop().await;
        Self::serve(self.shared.clone(), self.address).await
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What clients are given.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.shared.setup.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://localhost:{}/v1/graphql", self.address.port())
    }

    /// What a schema in SDL has, and the administrator's does not: types, fields and arguments. Subscriptions have the
    /// queries' fields.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn missing(&self, sdl: &str) -> Result<Vec<String>> {
        let ours = self.shared.engines.get("admin").map(Engine::sdl).unwrap_or_default();
        let ours = sdl::parts(&ours)?;
        let given = sdl::parts(&sdl.replace("subscription_root", "query_root"))?;
        Ok(given.difference(&ours).cloned().collect())
    }

    /// Has something go wrong, or right again.
    pub fn fault(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.shared.lock().faults);
    }

    /// Another secret than before. Connections that are there stay.
    pub fn set_admin_secret(&self, secret: &str) {
        self.shared.lock().admin_secret = Some(secret.to_owned());
    }

    /// A token of the role `host`.
    pub fn add_token(&self, text: &str, token: Token) {
        self.shared.lock().tokens.insert(text.to_owned(), token);
    }

    /// A token is believed no more.
    pub fn remove_token(&self, text: &str) {
        self.shared.lock().tokens.remove(text);
    }

    /// What a change of metadata or of the authentication does to every websocket.
    pub fn reload_metadata(&self) {
        self.close_all(1012, "1012: Service Restart: Hasura server is reloading metadata");
    }

    /// Closes every websocket, with a reason as Hasura writes it.
    pub fn close_all(&self, code: u16, message: &str) {
        let reason = serde_json::json!({ "server_error_msg": message }).to_string();
        self.order(&Order::Close(code, reason));
    }

    /// Sends a text over every websocket.
    pub fn send_all(&self, text: &str) {
        self.order(&Order::Text(text.to_owned()));
    }

    fn order(&self, order: &Order) {
        for socket in self.shared.lock().sockets.values() {
            // One that is gone needs no order.
            let _ = socket.send(order.clone());
        }
    }

    /// Breaks every websocket off, without a word.
    pub fn cut(&self) {
        self.shared.lock().sockets.clear();
    }

    /// How many websockets there are.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.shared.lock().sockets.len()
    }

    /// How many queries and mutations came over HTTP.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// How many websockets were ever asked for.
    #[must_use]
    pub fn upgrades(&self) -> u64 {
        self.shared.upgrades.load(Ordering::Relaxed)
    }

    /// Whether nothing goes wrong.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.shared.faults() == Faults::default()
    }

    /// How many results were ever held back.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// How often credentials were refused.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.shared.refusals.load(Ordering::Relaxed)
    }

    /// The frames that clients sent.
    #[must_use]
    pub fn heard(&self) -> Vec<String> {
        self.shared.lock().heard.clone()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.down.cancel();
    }
}

impl Shared {
    /// No code that can panic runs under this lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn faults(&self) -> Faults {
        self.lock().faults
    }
}
