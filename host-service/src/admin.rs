//! The admin API: HTTP/1.1 over a unix socket, for root and one group. It serves the command line; `openapi.json`
//! describes it.
//!
//! Build: [`AdminServer::bind`] makes the socket and spawns nothing. Run: [`AdminServer::run`] owns the accept loop
//! and one task for each connection. Drain: after its token is cancelled, requests in flight have two seconds; then
//! the tasks have ended and the socket is gone.
//!
//! No handler owns a mandelbox: it gives orders to the [`Host`] and watches. A client that goes away takes back
//! nothing that it ordered.

use std::time::Duration;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{Method, StatusCode, Uri},
    routing::{get, post},
};
use host_config::AdminSettings;
use tokio_util::sync::CancellationToken;

use crate::host::Host;

mod body;
mod error;
mod instance;
mod mandelboxes;
pub mod metrics_server;
pub mod openapi;
mod serve;
mod show;
mod socket;
mod spin_up;
#[cfg(test)]
mod tests;
pub mod views;

use error::ApiError;
use serve::Limits;
pub use socket::BindError;
use socket::BoundSocket;

/// Operators and scripts of one host; a followed log holds its connection.
const LIMITS: Limits = Limits {
    name: "admin",
    connections: 128,
    header: Duration::from_secs(30),
    drain: Duration::from_secs(2),
};

/// A bound admin API.
#[derive(Debug)]
pub struct AdminServer {
    socket: BoundSocket,
}

impl AdminServer {
    /// Makes the socket. Clients can connect from here on, and are answered once the server runs.
    ///
    /// # Errors
    /// Another service answers there, or the system refuses.
    pub fn bind(settings: &AdminSettings) -> Result<Self, BindError> {
        let socket = BoundSocket::bind(&settings.socket, settings.group.as_deref())?;
        Ok(Self { socket })
    }

    /// Serves `host` until `stop`, then lets requests in flight end and removes the socket.
    pub async fn run(self, host: Host, stop: CancellationToken) {
        let BoundSocket { listener, file } = self.socket;
        serve::serve(listener, router(host), LIMITS, stop).await;
        drop(file);
    }
}

fn router(host: Host) -> Router {
    Router::new()
        .route("/v1/status", get(instance::status))
        .route("/v1/drain", post(instance::drain))
        .route("/v1/mandelboxes", get(mandelboxes::list).post(spin_up::allocate))
        .route("/v1/mandelboxes/spin-up", post(spin_up::spin_up))
        .route("/v1/mandelboxes/{id}", get(mandelboxes::inspect))
        .route("/v1/mandelboxes/{id}/logs", get(mandelboxes::logs))
        .route("/v1/mandelboxes/{id}/stop", post(mandelboxes::stop))
        .route("/openapi.json", get(openapi::answer))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(body::LIMIT_BYTES))
        .with_state(host)
}

async fn unknown_path(uri: Uri) -> ApiError {
    let message = format!("there is no {}; see /openapi.json", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, "unknown_path", message)
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}; see /openapi.json", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", message)
}
