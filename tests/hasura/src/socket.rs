//! One websocket, in either subprotocol.

use std::{
    collections::BTreeMap,
    future::pending,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant as Clock},
};

use futures::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use crate::{
    Order, Shared,
    auth::{Believed, Headers},
    failure::Fault,
    schema::{Caller, Engine, Operation},
};

/// `connection_init` has to come within this.
const INIT: Duration = Duration::from_secs(3);

type Stream = WebSocketStream<TokioIo<Upgraded>>;

/// A subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Transport,
    Legacy,
}

impl Dialect {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Transport => "graphql-transport-ws",
            Self::Legacy => "graphql-ws",
        }
    }

    fn result(self) -> &'static str {
        match self {
            Self::Transport => "next",
            Self::Legacy => "data",
        }
    }

    fn keepalive(self) -> Value {
        match self {
            Self::Transport => json!({ "type": "ping", "payload": { "message": "keepalive" } }),
            Self::Legacy => json!({ "type": "ka" }),
        }
    }
}

/// Why a connection ends.
enum End {
    /// With a close frame.
    Close(u16, String),
    /// The other side is gone, or is to think so.
    Cut,
}

struct Connection {
    shared: Arc<Shared>,
    stream: Stream,
    dialect: Dialect,
    /// Of the upgrade; those of `connection_init` come on top.
    headers: Headers,
    caller: Option<Caller>,
    expires: Option<Instant>,
    live: BTreeMap<String, Live>,
    /// Results that are held back.
    held: Vec<Value>,
}

/// A live query.
struct Live {
    operation: Operation,
    next: Instant,
    last: Option<String>,
    poller: String,
}

pub(crate) async fn serve(shared: Arc<Shared>, stream: Stream, dialect: Dialect, headers: Headers) {
    static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let (sender, orders) = mpsc::unbounded_channel();
    shared.lock().sockets.insert(number, sender);
    let of = shared.clone();
    let mut connection = Connection {
        shared,
        stream,
        dialect,
        headers,
        caller: None,
        expires: None,
        live: BTreeMap::new(),
        held: Vec::new(),
    };
    if let End::Close(code, reason) = connection.run(orders).await {
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
        // Whoever does not wait for the answer is gone already.
        let _ = connection.stream.close(Some(frame)).await;
        let drain = async { while let Some(Ok(_)) = connection.stream.next().await {} };
        let _ = tokio::time::timeout(INIT, drain).await;
    }
    let ids: Vec<_> = connection.live.keys().cloned().collect();
    for id in ids {
        connection.forget(&id);
    }
    of.lock().sockets.remove(&number);
}

fn closed(code: u16, message: &str) -> End {
    End::Close(code, json!({ "server_error_msg": format!("{code}: {message}") }).to_string())
}

impl Connection {
    async fn run(&mut self, mut orders: mpsc::UnboundedReceiver<Order>) -> End {
        let accepted = Instant::now();
        // The first is sent at once, so it precedes everything else.
        if self.send(self.dialect.keepalive()).await.is_err() {
            return End::Cut;
        }
        let keepalive = self.shared.setup.keepalive;
        let mut keepalives = interval_at(accepted + keepalive, keepalive);
        keepalives.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let faults = self.shared.faults();
            let mute = faults.mute || faults.deaf;
            if !faults.held && self.release().await.is_err() {
                return End::Cut;
            }
            let due = self.live.values().map(|live| live.next).min();
            let due = due.filter(|_| !faults.silent);
            let done = tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(Order::Text(text)) => self.text(text).await,
                    Some(Order::Close(code, reason)) => Err(End::Close(code, reason)),
                    None => Err(End::Cut),
                },
                _ = keepalives.tick(), if !mute => self.send(self.dialect.keepalive()).await,
                () = until(self.expires), if !mute => Err(closed(1000, "JWT expired")),
                () = sleep_until(accepted + INIT), if self.caller.is_none() && !mute => {
                    Err(closed(4408, "Connection initialisation timed out"))
                }
                message = self.stream.next(), if !mute => match message {
                    Some(Ok(Message::Text(text))) => self.hear(text.as_str()).await,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => Err(End::Cut),
                    Some(Ok(_)) => Ok(()),
                },
                () = until(due), if !mute => self.show().await,
                // Faults are looked at again.
                () = tokio::time::sleep(Duration::from_millis(50)) => Ok(()),
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    async fn text(&mut self, text: String) -> Result<(), End> {
        self.stream.send(Message::text(text)).await.map_err(|_| End::Cut)
    }

    async fn send(&mut self, frame: Value) -> Result<(), End> {
        self.text(frame.to_string()).await
    }

    async fn hear(&mut self, text: &str) -> Result<(), End> {
        self.shared.lock().heard.push(text.to_owned());
        let frame: Value = serde_json::from_str(text).unwrap_or_default();
        let id = frame["id"].as_str().map(str::to_owned);
        let kind = frame["type"].as_str().unwrap_or_default();
        match (self.dialect, kind, id) {
            (_, "connection_init", _) => self.init(&frame["payload"]).await,
            (Dialect::Transport, "subscribe", Some(id)) | (Dialect::Legacy, "start", Some(id)) => {
                self.begin(id, frame["payload"].clone()).await
            }
            (Dialect::Transport, "complete", Some(id)) | (Dialect::Legacy, "stop", Some(id)) => {
                self.forget(&id);
                Ok(())
            }
            (Dialect::Transport, "ping", _) => {
                self.send(json!({ "type": "pong", "payload": frame["payload"] })).await
            }
            (Dialect::Transport, "pong", _) => Ok(()),
            (Dialect::Legacy, "connection_terminate", _) => Err(closed(1000, "terminated")),
            (Dialect::Transport, ..) => Err(closed(4400, "parsing ClientMessage failed")),
            (Dialect::Legacy, ..) => {
                self.send(json!({ "type": "connection_error", "payload": "parsing ClientMessage failed" }))
                    .await
            }
        }
    }

    /// A repeated one authenticates again.
    async fn init(&mut self, payload: &Value) -> Result<(), End> {
        let mut headers = self.headers.clone();
        for (name, value) in payload["headers"].as_object().into_iter().flatten() {
            headers.insert(name.to_lowercase(), value.clone());
        }
        match (self.shared.authenticate(&headers), self.dialect) {
            (Ok((caller, expires)), _) => {
                let believed: Believed = (caller, expires);
                (self.caller, self.expires) = (Some(believed.0), believed.1);
                self.send(json!({ "type": "connection_ack" })).await
            }
            (Err(_), Dialect::Transport) => Err(closed(4403, "Forbidden")),
            (Err(fault), Dialect::Legacy) => {
                self.send(json!({ "type": "connection_error", "payload": fault.message })).await?;
                Err(closed(4400, &fault.message))
            }
        }
    }

    async fn begin(&mut self, id: String, payload: Value) -> Result<(), End> {
        let Some(caller) = self.caller.clone() else {
            return self.refuse(&id, "start received before the connection is initialised").await;
        };
        if self.live.contains_key(&id) {
            return self.refuse(&id, &format!("an operation already exists with this id: {id}")).await;
        }
        let operation = match serde_json::from_value::<Operation>(payload) {
            Ok(operation) => operation,
            Err(error) => return self.fail(&id, &Fault::new("parse-failed", error.to_string())).await,
        };
        match Engine::is_live_query(&operation) {
            Err(fault) => self.fail(&id, &fault).await,
            Ok(false) => {
                let answer = self.shared.execute(&operation, &caller).await;
                self.send(json!({ "type": self.dialect.result(), "id": id, "payload": answer })).await?;
                self.send(json!({ "type": "complete", "id": id })).await
            }
            Ok(true) => self.live(id, operation, &caller).await,
        }
    }

    /// What is wrong with the document is said before anything is polled.
    async fn live(&mut self, id: String, operation: Operation, caller: &Caller) -> Result<(), End> {
        let first = self.shared.shown(&operation, caller, true).await;
        let invalid =
            first.pointer("/errors/0").filter(|error| error["extensions"]["code"] == "validation-failed");
        if let Some(error) = invalid {
            let message = error["message"].as_str().unwrap_or_default();
            return self.fail(&id, &Fault::validation(message)).await;
        }
        let poller = format!("{} {}", caller.role, operation.query);
        let refetch = self.shared.setup.refetch;
        let next = {
            let mut state = self.shared.lock();
            let now = Instant::now();
            let (count, since) = state.pollers.entry(poller.clone()).or_insert((0, now));
            *count += 1;
            // The first to ask is polled for at once; whoever joins waits for the next round.
            let into_round = now.duration_since(*since).as_nanos() % refetch.as_nanos().max(1);
            let into_round = Duration::from_nanos(u64::try_from(into_round).unwrap_or_default());
            if *count == 1 { now } else { now + refetch.saturating_sub(into_round) }
        };
        self.live.insert(id, Live { operation, next, last: None, poller });
        Ok(())
    }

    /// An operation that cannot begin.
    async fn refuse(&mut self, id: &str, why: &str) -> Result<(), End> {
        match self.dialect {
            Dialect::Transport => {
                self.send(json!({ "type": "error", "id": id, "payload": why })).await?;
                Err(closed(1000, why))
            }
            Dialect::Legacy => self.fail(id, &Fault::new("start-failed", why)).await,
        }
    }

    /// An operation that is wrong.
    async fn fail(&mut self, id: &str, fault: &Fault) -> Result<(), End> {
        let error = fault.json("$");
        let payload = match self.dialect {
            Dialect::Transport => json!([error]),
            Dialect::Legacy => json!({ "errors": [error] }),
        };
        self.send(json!({ "type": "error", "id": id, "payload": payload })).await?;
        self.send(json!({ "type": "complete", "id": id })).await
    }

    /// Polls what is due, and sends what has changed.
    async fn show(&mut self) -> Result<(), End> {
        let faults = self.shared.faults();
        let Some(caller) = self.caller.clone().filter(|_| !faults.silent) else { return Ok(()) };
        let now = Instant::now();
        let due: Vec<_> =
            self.live.iter().filter(|(_, live)| live.next <= now).map(|(id, _)| id.clone()).collect();
        for id in due {
            let Some(live) = self.live.get_mut(&id) else { continue };
            let operation = live.operation.clone();
            live.next = now + if faults.flood { Duration::ZERO } else { self.shared.setup.refetch };
            let answer = self.shared.shown(&operation, &caller, true).await;
            let is_error = answer.get("errors").is_some();
            let text = answer.to_string();
            let Some(live) = self.live.get_mut(&id) else { continue };
            if self.shared.faults().silent {
                // Since the poll began.
                return Ok(());
            }
            if live.last.as_ref() == Some(&text) && !is_error && !faults.flood {
                continue;
            }
            // After an error the full result is sent again, also when it is as before.
            live.last = (!is_error).then_some(text);
            let frame = json!({ "type": self.dialect.result(), "id": id, "payload": answer });
            if faults.held {
                self.held.push(frame);
                self.shared.held.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            self.release().await?;
            let begun = Clock::now();
            self.send(frame.clone()).await?;
            while faults.flood && begun.elapsed() < Duration::from_millis(20) {
                self.send(frame.clone()).await?;
            }
        }
        Ok(())
    }

    /// Sends what was held back.
    async fn release(&mut self) -> Result<(), End> {
        for frame in std::mem::take(&mut self.held) {
            self.send(frame).await?;
        }
        Ok(())
    }

    fn forget(&mut self, id: &str) {
        let Some(live) = self.live.remove(id) else { return };
        let mut state = self.shared.lock();
        if let Some((count, _)) = state.pollers.get_mut(&live.poller) {
            *count -= 1;
            if *count == 0 {
                state.pollers.remove(&live.poller);
            }
        }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}
