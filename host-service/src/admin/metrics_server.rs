//! `/healthz`, `/readyz` and `/metrics` on `[metrics] listen`, for probes and Prometheus: read only, without secrets.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    serve::{Limits, serve},
    show,
    views::{NotReady, Readiness},
};
use crate::host::Condition;

/// A few probes and scrapers, each for a moment.
const LIMITS: Limits = Limits {
    name: "metrics",
    connections: 32,
    header: Duration::from_secs(10),
    drain: Duration::from_secs(1),
};

/// What `prometheus_client` writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {listen} for metrics; set metrics.listen to another address")]
pub struct ListenError {
    listen: SocketAddr,
    source: io::Error,
}

/// A bound server.
pub struct MetricsServer {
    listener: TcpListener,
    router: Router,
}

type Encode = Arc<dyn Fn() -> String + Send + Sync>;
type Ready = Arc<dyn Fn() -> Readiness + Send + Sync>;

impl MetricsServer {
    /// Binds. `encode` gives the metrics in OpenMetrics text, `ready` whether this host should get mandelboxes; both
    /// are called for each request and must not block.
    ///
    /// # Errors
    /// The address is taken or not this machine's.
    pub async fn bind(
        listen: SocketAddr,
        encode: impl Fn() -> String + Send + Sync + 'static,
        ready: impl Fn() -> Readiness + Send + Sync + 'static,
    ) -> Result<Self, ListenError> {
        let bound = TcpListener::bind(listen).await;
        let listener = bound.map_err(|source| ListenError { listen, source })?;
        let (encode, ready): (Encode, Ready) = (Arc::new(encode), Arc::new(ready));
        let router = Router::new()
            .route("/healthz", get("ok\n"))
            .route("/readyz", get(readyz).with_state(ready))
            .route("/metrics", get(metrics).with_state(encode));
        Ok(Self { listener, router })
    }

    /// Where it listens: the port that was chosen, where the configuration says 0.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`, then lets requests in flight end.
    pub async fn run(self, stop: CancellationToken) {
        serve(self.listener, self.router, LIMITS, stop).await;
    }
}

impl std::fmt::Debug for MetricsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MetricsServer").field("listener", &self.listener).finish_non_exhaustive()
    }
}

async fn readyz(State(ready): State<Ready>) -> impl IntoResponse {
    let readiness = ready();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}

async fn metrics(State(encode): State<Encode>) -> impl IntoResponse {
    ([(CONTENT_TYPE, OPEN_METRICS)], encode())
}

impl Readiness {
    /// Ready means: not draining, and engine and control plane are heard.
    pub fn of(condition: &Condition) -> Self {
        let because = |code: &str, reason: String| NotReady { code: code.to_owned(), reason };
        let draining = condition
            .draining
            .map(|cause| because("draining", format!("ordered by {}", show::drain_cause(cause))));
        let runtime = condition.runtime_error.clone().map(|error| because("runtime", error));
        let pubsub = condition.pubsub_error.clone().map(|error| because("pubsub", error));
        let reasons: Vec<_> = [draining, runtime, pubsub].into_iter().flatten().collect();
        Self { ready: reasons.is_empty(), reasons }
    }
}

#[cfg(test)]
mod tests {
    use host_core::planner::DrainCause;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn answer(condition: Condition, path: &str) -> String {
        let any = "127.0.0.1:0".parse().unwrap();
        let ready = move || Readiness::of(&condition);
        let server = MetricsServer::bind(any, || "up 1\n# EOF\n".to_owned(), ready).await.unwrap();
        let address = server.local_addr().unwrap();
        let stop = CancellationToken::new();
        let ask = async {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            stop.cancel();
            text
        };
        let ((), text) = tokio::join!(server.run(stop.clone()), ask);
        text
    }

    #[tokio::test]
    async fn metrics_are_told_apart_by_their_content_type() {
        let text = answer(Condition::default(), "/metrics").await;
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        assert!(text.contains("application/openmetrics-text") && text.ends_with("# EOF\n"), "{text}");
    }

    #[tokio::test]
    async fn readiness_says_why_not() {
        let condition = Condition {
            draining: Some(DrainCause::Operator),
            pubsub_error: Some("the database does not answer".into()),
            ..Condition::default()
        };
        let text = answer(condition.clone(), "/readyz").await;
        assert!(text.starts_with("HTTP/1.1 503"), "{text}");
        let codes: Vec<_> = Readiness::of(&condition).reasons.into_iter().map(|reason| reason.code).collect();
        assert_eq!(codes, ["draining", "pubsub"]);
        assert!(
            text.contains("ordered by operator") && text.contains("the database does not answer"),
            "{text}"
        );
        assert!(answer(condition, "/healthz").await.starts_with("HTTP/1.1 200"), "it lives all the same");
        assert!(answer(Condition::default(), "/readyz").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_busy_port_is_a_clear_error() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = taken.local_addr().unwrap();
        let error = MetricsServer::bind(listen, String::new, Readiness::default).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot listen on {listen} for metrics; set metrics.listen to another address")
        );
    }
}
