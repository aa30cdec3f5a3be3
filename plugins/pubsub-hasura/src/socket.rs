//! The websocket: connected, acknowledged, and read with a limit to everything that may come.
//!
//! It has no task: whoever waits on it drives it, and dropping it closes the connection.

use std::{io, net::SocketAddr, time::Duration};

use futures::{SinkExt, StreamExt};
use host_core::{ErrorKind, PluginError, pubsub::Result};
use http::{HeaderValue, header::SEC_WEBSOCKET_PROTOCOL};
use rustls_pki_types::ServerName;
use serde::Serialize;
use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self, Message, client::IntoClientRequest, error::ProtocolError, protocol::WebSocketConfig,
    },
};
use tokio_util::either::Either;

use crate::{
    credentials::Headers,
    failure::{self, LARGEST_BYTES},
    frames::{self, Dialect, Frame},
    server::Server,
};

/// More than this within a second is no live query, which has a result a second, but a flood.
const MOST_FRAMES: u32 = 1000;
const MOST_BYTES: usize = 16 * LARGEST_BYTES;

type Stream = Either<TcpStream, TlsStream<TcpStream>>;

/// An acknowledged connection.
pub(crate) struct Socket {
    stream: WebSocketStream<Stream>,
    dialect: Dialect,
    /// What it was acknowledged for.
    pub(crate) headers: Headers,
    quiet: Quiet,
    meter: Meter,
}

/// A server that says nothing is asked whether it lives.
struct Quiet {
    /// Longer than it ever is silent.
    patience: Duration,
    /// It has to answer within this.
    answer: Duration,
    until: Instant,
    asked: bool,
}

/// How much came in within this second.
struct Meter {
    since: Instant,
    frames: u32,
    bytes: usize,
}

/// A result of one of the operations.
#[derive(Debug)]
pub(crate) struct Payload {
    pub(crate) id: String,
    pub(crate) json: String,
}

/// How a connection could not be made.
enum Attempt {
    /// The server has another subprotocol than the one that was asked for.
    OtherDialect(PluginError),
    Failed(PluginError),
}

impl Socket {
    /// Connects and is acknowledged. The caller has the deadline. `patience` is how long a live server is ever silent.
    pub(crate) async fn open(server: &Server, patience: Duration, doing: &str) -> Result<Self> {
        let headers = server.credentials.headers().await?;
        let mut dialect = server.dialect();
        let stream = loop {
            dialect = match (upgrade(server, dialect, doing).await, server.fall_back(dialect)) {
                (Ok(stream), _) => break stream,
                (Err(Attempt::OtherDialect(_)), Some(other)) => other,
                (Err(Attempt::OtherDialect(error) | Attempt::Failed(error)), _) => return Err(error),
            }
        };
        let now = Instant::now();
        let quiet = Quiet { patience, answer: server.timeout, until: now + patience, asked: false };
        let meter = Meter { since: now, frames: 0, bytes: 0 };
        let mut socket = Self { stream, dialect, headers, quiet, meter };
        match socket.acknowledged(doing).await {
            Ok(()) => {
                server.acknowledged(dialect);
                Ok(socket)
            }
            Err(error) if error.kind() == ErrorKind::Denied => {
                Err(server.credentials.refused(socket.headers, &error))
            }
            Err(error) => Err(error),
        }
    }

    async fn acknowledged(&mut self, doing: &str) -> Result<()> {
        self.send(doing, frames::init(&self.headers)).await?;
        loop {
            let text = self.text(doing).await?;
            match parse(doing, &text)? {
                Frame::Acknowledged => return Ok(()),
                Frame::Ping => self.send(doing, frames::pong()).await?,
                Frame::Refused(why) => {
                    let said = failure::said(&value(why));
                    // As a rule it is a text, without a code.
                    return Err(match failure::refuses_credentials(&said.code) {
                        true => failure::refused(doing, &said.message),
                        false => failure::doubted(doing, &said.message),
                    });
                }
                _ => {}
            }
        }
    }

    /// Begins an operation, whose results come under `id`.
    pub(crate) async fn subscribe(
        &mut self,
        doing: &str,
        id: &str,
        operation: &impl Serialize,
    ) -> Result<()> {
        let text = frames::subscribe(self.dialect, id, operation).map_err(|error| {
            PluginError::new(ErrorKind::Internal, format!("{doing}: no request")).with_source(error)
        })?;
        self.send(doing, text).await
    }

    /// Waits for the next result. May be dropped at any time: nothing that came in is lost.
    pub(crate) async fn next(&mut self, doing: &str) -> Result<Payload> {
        loop {
            let text = self.text(doing).await?;
            match parse(doing, &text)? {
                Frame::Result(id, payload) => return Ok(Payload { id, json: payload.get().to_owned() }),
                Frame::Ping => self.send(doing, frames::pong()).await?,
                Frame::Failed(why) | Frame::Refused(why) => {
                    let said = failure::said(&value(why));
                    return Err(match failure::refuses_credentials(&said.code) {
                        true => failure::refused(doing, &said.message),
                        false => failure::of_server(doing, &said),
                    });
                }
                Frame::Complete => {
                    return Err(failure::unavailable(doing, "Hasura has ended a subscription"));
                }
                Frame::Acknowledged | Frame::Alive | Frame::Other => {}
            }
        }
    }

    async fn send(&mut self, doing: &str, text: String) -> Result<()> {
        let sent = self.stream.send(Message::text(text)).await;
        sent.map_err(|error| failure::of_websocket(doing, error))
    }

    /// The next message, whatever it is.
    async fn text(&mut self, doing: &str) -> Result<String> {
        loop {
            let message = match timeout_at(self.quiet.until, self.stream.next()).await {
                Ok(Some(message)) => message.map_err(|error| failure::of_websocket(doing, error))?,
                Ok(None) => return Err(failure::of_close(doing, None)),
                Err(_) if self.quiet.asked => return Err(silent(doing, &self.quiet)),
                Err(_) => {
                    self.quiet.asked = true;
                    self.quiet.until = Instant::now() + self.quiet.answer;
                    let asked = self.stream.send(Message::Ping(Vec::new().into())).await;
                    asked.map_err(|error| failure::of_websocket(doing, error))?;
                    continue;
                }
            };
            self.quiet.asked = false;
            self.quiet.until = Instant::now() + self.quiet.patience;
            self.meter.count(message.len(), doing)?;
            match message {
                Message::Text(text) => return Ok(text.as_str().to_owned()),
                Message::Close(frame) => return Err(failure::of_close(doing, frame.as_ref())),
                _ => {}
            }
        }
    }
}

impl Meter {
    fn count(&mut self, bytes: usize, doing: &str) -> Result<()> {
        if self.since.elapsed() >= Duration::from_secs(1) {
            *self = Self { since: Instant::now(), frames: 0, bytes: 0 };
        }
        self.frames += 1;
        self.bytes += bytes;
        if self.frames <= MOST_FRAMES && self.bytes <= MOST_BYTES {
            return Ok(());
        }
        let what = format!(
            "Hasura floods this host: {} messages, {} bytes within a second",
            self.frames, self.bytes
        );
        Err(failure::unavailable(doing, &what))
    }
}

fn silent(doing: &str, quiet: &Quiet) -> PluginError {
    let Quiet { patience, answer, .. } = quiet;
    let message =
        format!("{doing}: Hasura was silent for {patience:?}, and did not answer a ping within {answer:?}");
    PluginError::new(ErrorKind::Timeout, message)
}

fn parse<'a>(doing: &str, text: &'a str) -> Result<Frame<'a>> {
    frames::parse(text)
        .map_err(|error| failure::unavailable(doing, "a message of Hasura cannot be read").with_source(error))
}

fn value(payload: &serde_json::value::RawValue) -> serde_json::Value {
    serde_json::from_str(payload.get()).unwrap_or_default()
}

async fn upgrade(
    server: &Server,
    dialect: Dialect,
    doing: &str,
) -> std::result::Result<WebSocketStream<Stream>, Attempt> {
    let request =
        request(server, dialect).map_err(|error| Attempt::Failed(failure::of_websocket(doing, error)))?;
    let stream = connect(server).await.map_err(|error| Attempt::Failed(failure::of_io(doing, error)))?;
    let limits =
        WebSocketConfig::default().max_message_size(Some(LARGEST_BYTES)).max_frame_size(Some(LARGEST_BYTES));
    match client_async_with_config(request, stream, Some(limits)).await {
        Ok((stream, _)) => Ok(stream),
        Err(tungstenite::Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(error))) => {
            let what = format!("Hasura does not speak {}", dialect.name());
            Err(Attempt::OtherDialect(failure::invalid(doing, &what).with_source(error)))
        }
        Err(error) => Err(Attempt::Failed(failure::of_websocket(doing, error))),
    }
}

fn request(
    server: &Server,
    dialect: Dialect,
) -> std::result::Result<tungstenite::handshake::client::Request, tungstenite::Error> {
    // "http" becomes "ws", and "https" "wss".
    let url = server.url.as_str().replacen("http", "ws", 1);
    let mut request = url.into_client_request()?;
    request.headers_mut().extend(server.credentials.plain());
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(dialect.name()));
    Ok(request)
}

async fn connect(server: &Server) -> io::Result<Stream> {
    let host = server.url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = server.url.port_or_known_default().unwrap_or(443);
    let addresses: Vec<_> = lookup_host((host, port)).await?.collect();
    let stream = reach(&addresses, server.timeout).await?;
    stream.set_nodelay(true)?;
    if server.url.scheme() != "https" {
        return Ok(Either::Left(stream));
    }
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let stream = TlsConnector::from(server.tls.clone()).connect(name, stream).await?;
    Ok(Either::Right(stream))
}

/// The first address that answers. One that does not leaves the others their part of `limit`.
async fn reach(addresses: &[SocketAddr], limit: Duration) -> io::Result<TcpStream> {
    let each = limit / u32::try_from(addresses.len()).unwrap_or(u32::MAX).saturating_add(1);
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        failure = match timeout(each, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    #[tokio::test]
    async fn an_address_that_does_not_answer_leaves_time_for_the_next() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        // Its queue is full, so that nobody is answered any more.
        let full = TcpSocket::new_v4().unwrap();
        full.bind(any).unwrap();
        let full = full.listen(1).unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) =
            timeout(Duration::from_millis(200), TcpStream::connect(full.local_addr().unwrap())).await
        {
            waiting.push(stream.unwrap());
        }
        let live = TcpListener::bind(any).await.unwrap();
        let addresses = [full.local_addr().unwrap(), live.local_addr().unwrap()];
        let stream = reach(&addresses, Duration::from_secs(2)).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), addresses[1]);
        assert!(reach(&[], Duration::from_secs(2)).await.is_err());
    }
}
