//! A client of the admin API: HTTP/1.1 over the unix socket, typed by the server's own views.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use host_core::MandelboxId;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, task::JoinSet, time::timeout};

use crate::admin::views::{
    AllocateRequest, AllocatedView, DrainRequest, DrainView, ErrorView, LogsQuery, MandelboxView,
    MandelboxesView, SpinUpRequest, SpinUpView, StatusView, StopRequest, StoppedView,
};

/// For what the service answers from memory.
const PROMPT: Duration = Duration::from_secs(10);
/// For what waits on containers; the service has shorter deadlines of its own, and says so when one passes.
const PATIENT: Duration = Duration::from_secs(30 * 60);
/// More is no answer of this service.
const ANSWER_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// What kept the service from answering as asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the socket, or there is none.
    #[error("no host-service answers at {}; start one with `host-service run`", socket.display())]
    NoService {
        /// Where.
        socket: PathBuf,
        /// How that was found out.
        source: io::Error,
    },
    /// The socket is for root and its group only.
    #[error(
        "permission denied at {}; run as root, or as a member of the group that admin.group names",
        .0.display()
    )]
    Denied(PathBuf),
    /// The service understood and refused.
    #[error("{}", .0.error)]
    Refused(ErrorView),
    /// The service did not answer in time. What was asked may still happen.
    #[error("the service at {} did not answer within {}", socket.display(), humantime::format_duration(*limit))]
    Timeout {
        /// Where.
        socket: PathBuf,
        /// For how long it was waited.
        limit: Duration,
    },
    /// The connection broke, or what came was no answer of this API.
    #[error("the service at {} gave no proper answer", socket.display())]
    Broken {
        /// Where.
        socket: PathBuf,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What a call returns.
pub type Result<T> = std::result::Result<T, ClientError>;

/// Talks to the service at one socket, a connection for each call.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// An answer whose body is still coming. The task that drives its connection ends with it.
#[derive(Debug)]
struct Exchange {
    response: Response<Incoming>,
    _connection: JoinSet<()>,
}

/// A mandelbox's output as it comes.
#[derive(Debug)]
pub struct Logs {
    exchange: Exchange,
    socket: PathBuf,
}

impl Client {
    /// Connects nowhere yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Where it connects.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The whole service at a glance.
    ///
    /// # Errors
    /// See [`ClientError`], here and below.
    pub async fn status(&self) -> Result<StatusView> {
        self.get("/v1/status").await
    }

    /// Every mandelbox.
    pub async fn mandelboxes(&self) -> Result<MandelboxesView> {
        self.get("/v1/mandelboxes").await
    }

    /// One mandelbox.
    pub async fn mandelbox(&self, id: &MandelboxId) -> Result<MandelboxView> {
        self.get(&format!("/v1/mandelboxes/{id}")).await
    }

    /// Only the database event.
    pub async fn allocate(&self, request: &AllocateRequest) -> Result<AllocatedView> {
        self.post("/v1/mandelboxes", request, PROMPT * 3).await
    }

    /// Allocates, delivers the startup data, and waits.
    pub async fn spin_up(&self, request: &SpinUpRequest) -> Result<SpinUpView> {
        self.post("/v1/mandelboxes/spin-up", request, PATIENT).await
    }

    /// Stops a mandelbox and waits until it is gone.
    pub async fn stop(&self, id: &MandelboxId, request: &StopRequest) -> Result<StoppedView> {
        self.post(&format!("/v1/mandelboxes/{id}/stop"), request, PATIENT).await
    }

    /// Orders a drain.
    pub async fn drain(&self, request: &DrainRequest) -> Result<DrainView> {
        self.post("/v1/drain", request, PROMPT).await
    }

    /// A mandelbox's output.
    pub async fn logs(&self, id: &MandelboxId, query: LogsQuery) -> Result<Logs> {
        let tail = query.tail.map(|lines| format!("&tail={lines}")).unwrap_or_default();
        let path = format!("/v1/mandelboxes/{id}/logs?follow={}{tail}", query.follow);
        let opened = async {
            let exchange = self.send(Method::GET, &path, Bytes::new()).await?;
            match exchange.response.status() {
                StatusCode::OK => Ok(exchange),
                _ => self.read::<ErrorView>(exchange).await.map(ClientError::Refused).and_then(Err),
            }
        };
        let exchange = self.within(PROMPT * 3, opened).await?;
        Ok(Logs { exchange, socket: self.socket.clone() })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.within(PROMPT, self.call(Method::GET, path, Bytes::new())).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<T> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(error))?;
        self.within(limit, self.call(Method::POST, path, body.into())).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T> {
        let exchange = self.send(method, path, body).await?;
        if exchange.response.status().is_success() {
            self.read(exchange).await
        } else {
            Err(ClientError::Refused(self.read(exchange).await?))
        }
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Exchange> {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Its error reaches the request or the body as well.
            drop(connection.await);
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(error))?;
        let response = sender.send_request(request).await.map_err(|error| self.broken(error))?;
        Ok(Exchange { response, _connection: driver })
    }

    async fn connect(&self) -> Result<UnixStream> {
        UnixStream::connect(&self.socket).await.map_err(|source| self.unreachable(source))
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Denied(self.socket.clone()),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoService { socket: self.socket.clone(), source }
            }
            _ => self.broken(source),
        }
    }

    async fn read<T: DeserializeOwned>(&self, exchange: Exchange) -> Result<T> {
        let Exchange { response, _connection } = exchange;
        let body = Limited::new(response.into_body(), ANSWER_LIMIT_BYTES).collect().await;
        let body = body.map_err(|error| self.broken(error))?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| self.broken(error))
    }

    async fn within<T>(&self, limit: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
        timeout(limit, call)
            .await
            .unwrap_or_else(|_| Err(ClientError::Timeout { socket: self.socket.clone(), limit }))
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), source: source.into() }
    }
}

impl Logs {
    /// The next piece; `None` at the end. There is no deadline: a log may be silent for long.
    ///
    /// # Errors
    /// The connection broke before the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let Some(frame) = self.exchange.response.body_mut().frame().await else {
                return Ok(None);
            };
            let frame = frame
                .map_err(|error| ClientError::Broken { socket: self.socket.clone(), source: error.into() })?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    use super::*;

    #[tokio::test]
    async fn no_service_and_no_permission_have_different_remedies() {
        let scratch = tempfile::tempdir().unwrap();
        let client = Client::new(scratch.path().join("none"));
        let missing = client.status().await.unwrap_err();
        assert!(missing.to_string().ends_with("start one with `host-service run`"), "{missing}");
        drop(UnixListener::bind(client.socket()).unwrap());
        let dead = client.status().await.unwrap_err();
        assert!(matches!(dead, ClientError::NoService { .. }), "{dead}");
        // Root, as which these tests may run, is never denied.
        let denied = client.unreachable(io::ErrorKind::PermissionDenied.into());
        assert!(denied.to_string().contains("admin.group"), "{denied}");
    }

    #[tokio::test]
    async fn who_speaks_another_language_is_told_apart() {
        let scratch = tempfile::tempdir().unwrap();
        let client = Client::new(scratch.path().join("s"));
        let listener = UnixListener::bind(client.socket()).unwrap();
        for answer in ["220 mail.example ESMTP\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", ""] {
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).await.unwrap() > 0);
                stream.write_all(answer.as_bytes()).await.unwrap();
            };
            let (status, ()) = tokio::join!(client.status(), serve);
            let error = status.unwrap_err();
            assert!(matches!(error, ClientError::Broken { .. }), "{answer:?}: {error}");
        }
    }
}
