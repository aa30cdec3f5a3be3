//! One connection that listens on its host's own channel. It has no task: whoever waits on it drives it.

use std::{
    future::poll_fn,
    pin::pin,
    task::{Context, Poll},
};

use host_core::{InstanceName, pubsub::Result};
use tokio_postgres::{
    AsyncMessage, Client, Connection, Error, Row, SimpleQueryMessage, Socket, tls::MakeTlsConnect,
    types::Type,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{
    database::{Database, Parameters},
    failure,
};

type Stream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;

/// The payload that only shows whether notifications come through.
const PROBE: &str = "";

/// A listening connection.
pub(crate) struct Ear {
    client: Client,
    connection: Connection<Socket, Stream>,
    channel: String,
    heard: Heard,
}

/// What came in while the connection was driven.
#[derive(Debug, Default, Clone, Copy)]
struct Heard {
    /// A change concerns the host.
    change: bool,
    /// Notifications come through.
    any: bool,
}

/// Why a connection can be driven no further.
enum Ended {
    Failed(Error),
    Closed,
}

impl Ear {
    /// Connects and listens. The caller has the deadline.
    pub(crate) async fn open(database: &Database, instance: &InstanceName, doing: &str) -> Result<Self> {
        // Boxed: with TLS in it, it is large.
        let connected = Box::pin(database.target.postgres.connect(database.tls.clone())).await;
        let (client, connection) = connected.map_err(|error| failure::of_connecting(doing, error))?;
        let mut ear = Self { client, connection, channel: String::new(), heard: Heard::default() };
        let sql = "SELECT cloud.host_channel($1)";
        let rows = ear.query(doing, sql, &[(&instance.as_str(), Type::TEXT)]).await?;
        let channel = rows.first().map(|row| row.try_get::<_, String>(0)).transpose();
        ear.channel = channel.map_err(|error| failure::of_driver(doing, error))?.unwrap_or_default();
        let listen = format!("LISTEN \"{}\"", ear.channel.replace('"', "\"\""));
        ear.simple(doing, &listen).await?;
        Ok(ear)
    }

    pub(crate) fn channel(&self) -> &str {
        &self.channel
    }

    /// Whether a change was heard since the last call.
    pub(crate) fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.heard.change)
    }

    pub(crate) fn has_change(&self) -> bool {
        self.heard.change
    }

    /// Whether any notification ever came through.
    pub(crate) fn hears(&self) -> bool {
        self.heard.any
    }

    /// Has something sent through another connection that this one must hear.
    pub(crate) async fn probe(&mut self, database: &Database, doing: &str) -> Result<()> {
        let channel = self.channel.clone();
        let parameters: Parameters<'_> = &[(&channel, Type::TEXT), (&PROBE, Type::TEXT)];
        let sent = database.query(doing, "SELECT pg_notify($1, $2)", parameters);
        self.meanwhile(doing, sent).await?.map(drop)
    }

    /// Waits until a notification comes in, of whatever kind.
    pub(crate) async fn listen(&mut self, doing: &str) -> Result<()> {
        let Self { connection, heard, .. } = self;
        let heard = poll_fn(|cx| {
            let before = *heard;
            if let Poll::Ready(ended) = drive(connection, heard, cx) {
                return Poll::Ready(Err(ended));
            }
            let new = heard.change || heard.any != before.any;
            if new { Poll::Ready(Ok(())) } else { Poll::Pending }
        });
        heard.await.map_err(|ended| ended.while_doing(doing))
    }

    pub(crate) async fn query(
        &mut self,
        doing: &str,
        sql: &str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>> {
        let Self { client, connection, heard, .. } = self;
        let rows = alongside(connection, heard, client.query_typed(sql, parameters)).await;
        rows.map_err(|ended| ended.while_doing(doing))?.map_err(|error| failure::of_driver(doing, error))
    }

    async fn simple(&mut self, doing: &str, sql: &str) -> Result<Vec<SimpleQueryMessage>> {
        let Self { client, connection, heard, .. } = self;
        let answer = alongside(connection, heard, client.simple_query(sql)).await;
        answer.map_err(|ended| ended.while_doing(doing))?.map_err(|error| failure::of_driver(doing, error))
    }

    /// Something else, while this connection is driven.
    pub(crate) async fn meanwhile<T>(&mut self, doing: &str, other: impl Future<Output = T>) -> Result<T> {
        let Self { connection, heard, .. } = self;
        alongside(connection, heard, other).await.map_err(|ended| ended.while_doing(doing))
    }
}

impl std::fmt::Debug for Ear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ear")
            .field("channel", &self.channel)
            .field("heard", &self.heard)
            .finish_non_exhaustive()
    }
}

impl Ended {
    fn while_doing(self, doing: &str) -> host_core::PluginError {
        match self {
            Self::Failed(error) => failure::of_driver(doing, error),
            Self::Closed => {
                let message = format!("{doing}: the database closed the connection");
                host_core::PluginError::new(host_core::ErrorKind::Unavailable, message)
            }
        }
    }
}

async fn alongside<T>(
    connection: &mut Connection<Socket, Stream>,
    heard: &mut Heard,
    other: impl Future<Output = T>,
) -> std::result::Result<T, Ended> {
    let mut other = pin!(other);
    poll_fn(|cx| {
        // Both ways: the connection delivers the answer, and what is asked next goes out through it.
        let ended = drive(connection, heard, cx);
        if let Poll::Ready(answer) = other.as_mut().poll(cx) {
            return Poll::Ready(Ok(answer));
        }
        ended.map(Err)
    })
    .await
}

/// Takes in whatever there is. Ready only when the connection has ended.
fn drive(
    connection: &mut Connection<Socket, Stream>,
    heard: &mut Heard,
    cx: &mut Context<'_>,
) -> Poll<Ended> {
    loop {
        match connection.poll_message(cx) {
            Poll::Ready(Some(Ok(AsyncMessage::Notification(note)))) => {
                heard.any = true;
                heard.change |= note.payload() != PROBE;
            }
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Ended::Failed(error)),
            Poll::Ready(None) => return Poll::Ready(Ended::Closed),
            Poll::Pending => return Poll::Pending,
        }
    }
}
