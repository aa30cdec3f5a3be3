//! A metadata service as EC2's is, version 2 only, and everything that one in its place may do.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use tokio::{net::TcpListener, task::JoinSet};

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Good,
    /// As where the instance's metadata is switched off (403), or of a service that is broken.
    Status(u16),
    /// As a portal that wants to be clicked through.
    Page,
    /// As version 1.
    NoTokens,
    Flood,
    Silence,
}

#[derive(Debug)]
pub(crate) struct Script {
    pub mode: Mode,
    /// Below `/latest/`.
    pub values: BTreeMap<String, String>,
    /// The first requests are told that there are too many.
    pub throttle: usize,
    /// Requests that a token is good for.
    pub token_uses: usize,
    pub delay: Duration,
    /// Tokens given out, and how often each was used.
    tokens: Vec<usize>,
}

/// It ends with this.
pub(crate) struct Imds {
    pub endpoint: String,
    script: Arc<Mutex<Script>>,
    _server: JoinSet<()>,
}

impl Imds {
    /// Of an instance that has every fact.
    pub(crate) async fn start() -> Self {
        let values = [
            ("ami-id", "ami-0abc"),
            ("instance-id", "i-0123456789"),
            ("instance-type", "g4dn.xlarge"),
            ("placement/region", "eu-west-1"),
            ("public-ipv4", "203.0.113.7"),
            ("local-ipv4", "10.0.0.7"),
            ("tags/instance/Name", "host-7"),
        ];
        let values = values.map(|(path, value)| (format!("meta-data/{path}"), value.to_owned()));
        let script = Script {
            mode: Mode::Good,
            values: BTreeMap::from(values),
            throttle: 0,
            token_uses: usize::MAX,
            delay: Duration::ZERO,
            tokens: Vec::new(),
        };
        let script = Arc::new(Mutex::new(script));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(script.clone());
        let server = async move { axum::serve(listener, router).await.unwrap() };
        Self { endpoint, script, _server: JoinSet::from_iter([server]) }
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    pub(crate) fn set(&self, path: &str, value: &str) {
        self.script().values.insert(format!("meta-data/{path}"), value.to_owned());
    }

    pub(crate) fn unset(&self, path: &str) {
        self.script().values.remove(&format!("meta-data/{path}"));
    }

    pub(crate) fn tokens(&self) -> usize {
        self.script().tokens.len()
    }
}

async fn answer(State(script): State<Arc<Mutex<Script>>>, request: Request) -> Response {
    let (mode, delay) = {
        let script = script.lock().unwrap();
        (script.mode, script.delay)
    };
    tokio::time::sleep(delay).await;
    match mode {
        Mode::Silence => std::future::pending().await,
        Mode::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Mode::Page => "<!DOCTYPE html><html><body>Log in</body></html>".into_response(),
        Mode::NoTokens if request.method() == Method::PUT => StatusCode::NOT_FOUND.into_response(),
        Mode::Flood => {
            let part = || Ok::<_, std::io::Error>(vec![b'a'; 1 << 16]);
            Body::from_stream(futures::stream::repeat_with(part)).into_response()
        }
        Mode::Good | Mode::NoTokens => script.lock().unwrap().answer(&request),
    }
}

impl Script {
    fn answer(&mut self, request: &Request) -> Response {
        if self.throttle > 0 {
            self.throttle -= 1;
            let status = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE][self.throttle % 2];
            return status.into_response();
        }
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        let Some(path) = request.uri().path().strip_prefix("/latest/") else {
            return StatusCode::NOT_FOUND.into_response();
        };
        if request.method() == Method::PUT && path == "api/token" {
            let ttl = header("x-aws-ec2-metadata-token-ttl-seconds").and_then(|ttl| ttl.parse::<u32>().ok());
            if !ttl.is_some_and(|ttl| (1..=21600).contains(&ttl)) {
                return StatusCode::BAD_REQUEST.into_response();
            }
            self.tokens.push(0);
            return format!("token-{}", self.tokens.len() - 1).into_response();
        }
        let token = header("x-aws-ec2-metadata-token").and_then(|token| token.strip_prefix("token-"));
        let uses = token.and_then(|token| self.tokens.get_mut(token.parse::<usize>().ok()?));
        match uses {
            Some(uses) if *uses < self.token_uses => *uses += 1,
            _ => return StatusCode::UNAUTHORIZED.into_response(),
        }
        match self.values.get(path) {
            Some(value) if request.method() == Method::GET => value.clone().into_response(),
            _ => StatusCode::NOT_FOUND.into_response(),
        }
    }
}
