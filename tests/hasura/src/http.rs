//! Connections: queries and mutations over HTTP, and upgrades to websockets.

use std::{
    convert::Infallible,
    future::pending,
    sync::{Arc, atomic::Ordering},
};

use ::http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        CONNECTION, CONTENT_TYPE, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_PROTOCOL, UPGRADE,
    },
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Shared,
    auth::Headers,
    failure::Fault,
    schema::{Caller, Operation},
    socket::{self, Dialect},
};

type Answer = Response<Full<Bytes>>;

pub(crate) async fn serve(
    shared: Arc<Shared>,
    tasks: TaskTracker,
    down: CancellationToken,
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
) {
    // Frames are small, and wait for nobody.
    let _ = stream.set_nodelay(true);
    match acceptor {
        None => connection(shared, tasks, down, stream).await,
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                connection(shared, tasks, down, stream).await;
            }
        }
    }
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    shared: Arc<Shared>,
    tasks: TaskTracker,
    down: CancellationToken,
    stream: S,
) {
    let service = service_fn(move |request| {
        let (shared, tasks, down) = (shared.clone(), tasks.clone(), down.clone());
        async move { Ok::<_, Infallible>(answer(shared, &tasks, &down, request).await) }
    });
    // A client that breaks off is nothing special.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

async fn answer(
    shared: Arc<Shared>,
    tasks: &TaskTracker,
    down: &CancellationToken,
    request: Request<Incoming>,
) -> Answer {
    if shared.faults().mute {
        return pending().await;
    }
    if let Some(status) = shared.faults().proxy {
        let mut page = Response::new(Full::from("<html><body>nothing here</body></html>"));
        *page.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        return page;
    }
    let is_upgrade = request.headers().contains_key(SEC_WEBSOCKET_KEY);
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/v1/graphql" | "/v1alpha1/graphql" | "/v1beta1/relay") if is_upgrade => {
            upgraded(shared, tasks, down, request)
        }
        (&Method::POST, "/v1/graphql") => {
            shared.requests.fetch_add(1, Ordering::Relaxed);
            let asked = asked(&shared, request).await;
            body(StatusCode::OK, &asked.unwrap_or_else(|fault| json!({ "errors": [fault.json("$")] })))
        }
        (&Method::GET, "/healthz") => Response::new(Full::from("OK")),
        _ => body(StatusCode::NOT_FOUND, &Fault::new("not-found", "resource does not exist").json("$")),
    }
}

async fn asked(shared: &Shared, request: Request<Incoming>) -> Result<Value, Fault> {
    let headers = headers(request.headers());
    let (caller, _) = shared.authenticate(&headers)?;
    let body = request.into_body().collect().await.map_err(|_| Fault::new("parse-failed", "no body"))?;
    let operation: Operation = serde_json::from_slice(&body.to_bytes())
        .map_err(|error| Fault::new("invalid-json", error.to_string()))?;
    Ok(shared.execute(&operation, &caller).await)
}

impl Shared {
    pub(crate) async fn execute(&self, operation: &Operation, caller: &Caller) -> Value {
        self.shown(operation, caller, false).await
    }

    /// `live` is for what a live query has to show now.
    pub(crate) async fn shown(&self, operation: &Operation, caller: &Caller, live: bool) -> Value {
        let Some(engine) = self.engines.get(&caller.role) else {
            let fault = Fault::validation(&format!("no such role: {}", caller.role));
            return json!({ "errors": [fault.json("$")] });
        };
        if self.faults().no_database {
            return json!({ "errors": [Fault::connection().json("$")] });
        }
        if self.faults().inconsistent {
            let fault = Fault::validation("field 'cloud_mandelbox_info' not found in type: 'query_root'");
            return json!({ "errors": [fault.json("$")] });
        }
        let mut answer = match live {
            true => engine.poll(operation, caller).await,
            false => engine.execute(operation, caller).await,
        };
        if self.faults().partial {
            answer["errors"] = json!([Fault::connection().json("$")]);
        }
        if self.setup.stringify { stringified(answer) } else { answer }
    }
}

/// Numbers of the type `bigint` as strings; counts of rows stay what they are.
fn stringified(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let member = |(name, value): (String, Value)| match value {
                Value::Number(number) if name.ends_with("_ms") => (name, number.to_string().into()),
                value => (name, stringified(value)),
            };
            members.into_iter().map(member).collect()
        }
        Value::Array(items) => items.into_iter().map(stringified).collect(),
        other => other,
    }
}

/// Accepts a websocket. Hasura compares the whole header, and always names a subprotocol.
fn upgraded(
    shared: Arc<Shared>,
    tasks: &TaskTracker,
    down: &CancellationToken,
    mut request: Request<Incoming>,
) -> Answer {
    shared.upgrades.fetch_add(1, Ordering::Relaxed);
    if shared.faults().shutting_down {
        let mut refusal = body(StatusCode::SERVICE_UNAVAILABLE, &json!("can not accept new connections"));
        refusal.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("0"));
        return refusal;
    }
    let asked = request.headers().get(SEC_WEBSOCKET_PROTOCOL);
    let is_new = asked.is_some_and(|asked| asked == "graphql-transport-ws") && !shared.setup.is_old;
    let dialect = if is_new { Dialect::Transport } else { Dialect::Legacy };
    let key = request.headers().get(SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let headers = headers(request.headers());
    let upgrade = upgrade::on(&mut request);
    tasks.spawn(down.clone().run_until_cancelled_owned(async move {
        if let Ok(upgraded) = upgrade.await {
            let stream = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
            socket::serve(shared, stream, dialect, headers).await;
        }
    }));
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = key.and_then(|key| HeaderValue::from_str(&key).ok());
    let fields = [
        (CONNECTION, Some(HeaderValue::from_static("Upgrade"))),
        (UPGRADE, Some(HeaderValue::from_static("websocket"))),
        (SEC_WEBSOCKET_PROTOCOL, Some(HeaderValue::from_static(dialect.name()))),
        (SEC_WEBSOCKET_ACCEPT, accept),
    ];
    answer.headers_mut().extend(fields.into_iter().filter_map(|(name, value)| Some((name, value?))));
    answer
}

fn headers(map: &HeaderMap) -> Headers {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    map.iter().map(|(name, value)| (name.as_str().to_lowercase(), text(value).into())).collect()
}

fn body(status: StatusCode, json: &Value) -> Answer {
    let mut answer = Response::new(Full::from(json.to_string()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    answer
}
