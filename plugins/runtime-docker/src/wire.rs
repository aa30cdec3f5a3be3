//! `GET` requests that do not go through bollard, which sends a streaming request only when its stream is first
//! polled (an event in between would be lost), guesses where a terminal's log has frames, and hides the headers.
//!
//! A request owns its connection and no task: dropping it, or its answer, closes the connection.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use futures::{
    FutureExt, Stream, TryStreamExt,
    future::{BoxFuture, Either, select},
    stream,
};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::Empty;
use hyper::{
    body::{Body as _, Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use crate::config::Endpoint;

/// More than any error's text has; a broken engine must not fill the memory.
const MOST_REFUSAL_BYTES: usize = 64 << 10;

/// Why there is no answer, or no more of it. Wraps a [`hyper::Error`] or an [`std::io::Error`].
pub(crate) type Broken = Box<dyn std::error::Error + Send + Sync>;

/// Why a request failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// There is no answer.
    Broken(Broken),
    /// The answer is no: its status and text.
    Refused(u16, String),
}

/// An engine to send requests to.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    endpoint: Endpoint,
}

/// An answer whose head has come.
pub(crate) struct Answer {
    pub(crate) headers: HeaderMap,
    status: StatusCode,
    body: Body,
}

struct Body {
    incoming: Incoming,
    /// Moves the bytes; `None` once the engine has closed.
    connection: Option<BoxFuture<'static, hyper::Result<()>>>,
    /// The connection ends when nobody could send on it any more.
    _sender: http1::SendRequest<Empty<Bytes>>,
}

impl Wire {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    /// Returns once the head of a successful answer has come.
    pub(crate) async fn get(&self, path_and_query: &str) -> Result<Answer, Failure> {
        let answer = self.ask(path_and_query).await.map_err(Failure::Broken)?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let status = answer.status.as_u16();
        let text = answer.refusal().await.map_err(Failure::Broken)?;
        Err(Failure::Refused(status, text))
    }

    async fn ask(&self, path_and_query: &str) -> Result<Answer, Broken> {
        match &self.endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await?;
                exchange(stream, "localhost", path_and_query).await
            }
            Endpoint::Tcp(authority) => {
                let stream = TcpStream::connect(authority).await?;
                exchange(stream, authority, path_and_query).await
            }
        }
    }
}

async fn exchange<S>(stream: S, host: &str, path_and_query: &str) -> Result<Answer, Broken>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let request = Request::get(path_and_query).header(header::HOST, host).body(Empty::new())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = Box::pin(sender.send_request(request));
    let (answer, connection) = match select(answer, connection.boxed()).await {
        Either::Left((answer, connection)) => (answer?, Some(connection)),
        // The engine closed: after its whole answer, or instead of it.
        Either::Right((_, answer)) => (answer.await?, None),
    };
    let (head, incoming) = answer.into_parts();
    let body = Body { incoming, connection, _sender: sender };
    Ok(Answer { headers: head.headers, status: head.status, body })
}

impl Answer {
    /// The body as it comes. Ends with an error unless the engine ended it properly.
    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<Bytes, Broken>> + Send + 'static {
        let mut body = self.body;
        stream::poll_fn(move |context| body.poll_next(context))
    }

    async fn refusal(self) -> Result<String, Broken> {
        let mut text = Vec::new();
        let mut chunks = pin!(self.into_stream());
        while let Some(chunk) = chunks.try_next().await? {
            text.extend_from_slice(&chunk);
            if text.len() > MOST_REFUSAL_BYTES {
                break;
            }
        }
        Ok(match serde_json::from_slice(&text) {
            Ok(Refusal { message }) => message,
            Err(_) => String::from_utf8_lossy(&text).into_owned(),
        })
    }
}

#[derive(serde::Deserialize)]
struct Refusal {
    message: String,
}

impl Body {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        loop {
            // Whatever ends the connection, the body below tells whether it was complete.
            if let Some(connection) = &mut self.connection
                && connection.poll_unpin(context).is_ready()
            {
                self.connection = None;
            }
            let incoming = Pin::new(&mut self.incoming);
            match ready!(incoming.poll_frame(context)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
            }
        }
    }
}
