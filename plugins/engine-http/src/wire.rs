//! Requests that do not go through a client library: those send a streaming request only when its stream is first
//! polled (an event in between would be lost), guess where a terminal's log has frames, and hide heads.
//!
//! A request owns its connection and no task: dropping it, or its answer, closes the connection.

use std::{
    fmt, io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::{
    FutureExt, Stream, StreamExt, TryFutureExt, TryStreamExt,
    future::{BoxFuture, Either, ready as resolved, select},
    poll, stream,
};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Body as _, Frame, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_util::io::ReaderStream;

use crate::Endpoint;

/// More than any error's text has; a broken engine must not fill the memory.
const MOST_REFUSAL_BYTES: usize = 64 << 10;
const CHUNK_BYTES: usize = 64 << 10;

/// Why there is no answer, or no more of it. Wraps a [`hyper::Error`] or an [`io::Error`].
pub type Broken = Box<dyn std::error::Error + Send + Sync>;

/// What is sent.
pub type Body = UnsyncBoxBody<Bytes, Broken>;

/// Nothing.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A file's content, read as it is sent.
pub fn file(file: File) -> Body {
    let pieces = ReaderStream::with_capacity(file, CHUNK_BYTES);
    StreamBody::new(pieces.map_ok(Frame::data).map_err(Broken::from)).boxed_unsync()
}

/// Why a request failed.
#[derive(Debug)]
pub enum Failure {
    /// There is no answer.
    Broken(Broken),
    /// The answer is no: its status and text.
    Refused(u16, String),
}

impl From<Broken> for Failure {
    fn from(error: Broken) -> Self {
        Self::Broken(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.into())
    }
}

/// An engine to send requests to.
#[derive(Debug, Clone)]
pub struct Wire {
    endpoint: Endpoint,
}

/// A request on its way.
pub struct Pending(BoxFuture<'static, Result<Answer, Failure>>);

/// An answer whose head has come.
pub struct Answer {
    /// The head's.
    pub headers: HeaderMap,
    status: StatusCode,
    body: Coming,
}

struct Coming {
    incoming: Incoming,
    /// Moves the bytes; `None` once the engine has closed.
    connection: Option<BoxFuture<'static, hyper::Result<()>>>,
    /// The connection ends when nobody could send on it any more.
    _sender: http1::SendRequest<Body>,
}

impl Wire {
    /// To an engine, which is not looked at yet.
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    /// Returns once the head of a successful answer has come.
    ///
    /// # Errors
    /// There is none.
    pub async fn get(&self, path_and_query: &str) -> Result<Answer, Failure> {
        let request = Request::get(path_and_query).body(empty()).map_err(Broken::from)?;
        self.send(request).await
    }

    /// The same for any request; its target is a path.
    ///
    /// # Errors
    /// There is no successful answer.
    pub async fn send(&self, request: Request<Body>) -> Result<Answer, Failure> {
        self.begin(request).await?.0.await
    }

    /// Returns once the request is on its way: some engines send the head of a stream only with its first piece.
    ///
    /// # Errors
    /// The engine cannot be reached.
    pub async fn begin(&self, request: Request<Body>) -> Result<Pending, Failure> {
        match &self.endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await?;
                begin(stream, "localhost", request).await
            }
            Endpoint::Tcp(authority) => {
                let stream = TcpStream::connect(authority).await?;
                begin(stream, authority, request).await
            }
        }
    }
}

async fn begin<S>(stream: S, host: &str, mut request: Request<Body>) -> Result<Pending, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let host = HeaderValue::from_str(host).map_err(Broken::from)?;
    request.headers_mut().insert(header::HOST, host);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Broken::from)?;
    let answer = Box::pin(sender.send_request(request));
    let mut exchange = async move { exchanged(answer, connection.boxed(), sender).await }.boxed();
    // A fresh connection takes a request at once.
    let exchange = match poll!(&mut exchange) {
        Poll::Ready(answer) => resolved(answer).boxed(),
        Poll::Pending => exchange,
    };
    Ok(Pending(exchange))
}

async fn exchanged(
    answer: impl Future<Output = hyper::Result<http::Response<Incoming>>> + Unpin,
    connection: BoxFuture<'static, hyper::Result<()>>,
    sender: http1::SendRequest<Body>,
) -> Result<Answer, Failure> {
    let (answer, connection) = match select(answer, connection).await {
        Either::Left((answer, connection)) => (answer, Some(connection)),
        // The engine closed: after its whole answer, or instead of it.
        Either::Right((_, answer)) => (answer.await, None),
    };
    let (head, incoming) = answer.map_err(Broken::from)?.into_parts();
    let body = Coming { incoming, connection, _sender: sender };
    let answer = Answer { headers: head.headers, status: head.status, body };
    if answer.status.is_success() {
        return Ok(answer);
    }
    let status = answer.status.as_u16();
    Err(Failure::Refused(status, answer.refusal().await?))
}

impl Pending {
    /// The body as it comes. Ends with an error unless the engine ended it properly.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, Failure>> + Send + 'static {
        let answer = self.0.map_ok(|answer| answer.into_stream().map_err(Failure::Broken));
        answer.try_flatten_stream().fuse()
    }
}

impl Answer {
    /// The body as it comes. Ends with an error unless the engine ended it properly.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, Broken>> + Send + 'static {
        let mut body = self.body;
        stream::poll_fn(move |context| body.poll_next(context))
    }

    /// The whole body, unless it has more bytes than that.
    ///
    /// # Errors
    /// It has, or breaks off.
    pub async fn whole(self, most: usize) -> Result<Vec<u8>, Broken> {
        let (body, is_whole) = self.read(most).await?;
        if is_whole { Ok(body) } else { Err(format!("an answer of more than {most} bytes").into()) }
    }

    /// The body's beginning, and whether that is all of it.
    async fn read(self, most: usize) -> Result<(Vec<u8>, bool), Broken> {
        let mut body = Vec::new();
        let mut chunks = pin!(self.into_stream());
        while let Some(chunk) = chunks.try_next().await? {
            body.extend_from_slice(&chunk);
            if body.len() > most {
                return Ok((body, false));
            }
        }
        Ok((body, true))
    }

    async fn refusal(self) -> Result<String, Broken> {
        let (text, _) = self.read(MOST_REFUSAL_BYTES).await?;
        Ok(match serde_json::from_slice(&text) {
            Ok(Refusal { message }) => message,
            Err(_) => String::from_utf8_lossy(&text).into_owned(),
        })
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pending").finish_non_exhaustive()
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).finish_non_exhaustive()
    }
}

#[derive(serde::Deserialize)]
struct Refusal {
    message: String,
}

impl Coming {
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
