//! One engine: its connection, the version spoken with it, and what it can do.

use std::{future::Future, time::Duration};

use bollard::{Docker, errors::Error};
use engine_http::{Answer, Doing, Endpoint, Failure, Wire};
use host_core::{ErrorKind, PluginError, runtime::Result};
use http::HeaderMap;
use serde::de::DeserializeOwned;

use crate::{
    config::Config,
    error::{Explain, nonsense, refused},
    support::Support,
    version::ApiVersion,
};

/// bollard's own deadline counts whole seconds and covers only the head of an answer; ours are outside it.
const NO_DEADLINE_SECS: u64 = u64::MAX;

/// More than an answer has; a broken engine must not fill the memory.
const MOST_ANSWER_BYTES: usize = 16 << 20;

const PING: Doing = Doing("ping the engine", "");

/// A reachable engine.
#[derive(Debug)]
pub(crate) struct Engine {
    /// Every request through this carries the version.
    pub(crate) api: Docker,
    pub(crate) explain: Explain,
    pub(crate) support: Support,
    version: ApiVersion,
    wire: Wire,
    timeout: Duration,
}

/// The engine's answer to a ping.
#[derive(Debug)]
pub(crate) struct Pong {
    /// The newest version that it speaks.
    pub(crate) newest: ApiVersion,
    /// `20.10.24`.
    pub(crate) version: String,
}

impl Engine {
    pub(crate) async fn connect(config: Config) -> Result<Self> {
        let Config { endpoint, timeout } = config;
        let wire = Wire::new(endpoint.clone());
        let explain = Explain::new(endpoint.clone());
        let pong = ping(&wire, &explain, timeout).await?;
        let version = pong.newest.negotiated()?;
        let connecting = |error| explain.failed(Doing("connect", ""), error);
        let api = client(&endpoint, version).map_err(connecting)?;
        let info = within(&explain, timeout, Doing("ask what the engine can do", ""), api.info()).await?;
        Ok(Self { api, explain, support: Support::of(&info), version, wire, timeout })
    }

    /// Costs the engine nothing, unlike `/version`, which runs programs.
    pub(crate) async fn ping(&self) -> Result<Pong> {
        let pong = ping(&self.wire, &self.explain, self.timeout).await?;
        if pong.newest < self.version {
            let text = format!(
                "docker speaks API {} at most and spoke {} before: restart the host service after its downgrade",
                pong.newest, self.version
            );
            return Err(PluginError::new(ErrorKind::Unsupported, text));
        }
        Ok(pong)
    }

    /// What is spoken.
    pub(crate) fn version(&self) -> ApiVersion {
        self.version
    }

    /// A look-up: has the section's deadline.
    pub(crate) async fn look_up<T>(
        &self,
        doing: Doing<'_>,
        request: impl Future<Output = std::result::Result<T, Error>>,
    ) -> Result<T> {
        within(&self.explain, self.timeout, doing, request).await
    }

    /// A look-up past bollard, with the section's deadline.
    pub(crate) async fn get_json<T: DeserializeOwned>(
        &self,
        doing: Doing<'_>,
        path_and_query: &str,
    ) -> Result<T> {
        let answer = self.get(doing, path_and_query).await?;
        let whole = match tokio::time::timeout(self.timeout, answer.whole(MOST_ANSWER_BYTES)).await {
            Ok(whole) => whole.map_err(|error| self.explain.disconnected(doing, error.as_ref()))?,
            Err(_) => return Err(self.explain.timed_out(doing)),
        };
        // The error's text may hold a piece of the answer, and so of a container's environment.
        serde_json::from_slice(&whole)
            .map_err(|error| nonsense(doing, format_args!("at column {}", error.column())))
    }

    /// A request whose answer is read as it comes; only its head has the section's deadline.
    pub(crate) async fn get(&self, doing: Doing<'_>, path_and_query: &str) -> Result<Answer> {
        let path = format!("/v{}{path_and_query}", self.version);
        get(&self.wire, &self.explain, self.timeout, doing, &path).await
    }
}

fn client(endpoint: &Endpoint, version: ApiVersion) -> std::result::Result<Docker, Error> {
    let newest = bollard::API_DEFAULT_VERSION;
    let docker = match endpoint {
        Endpoint::Unix(path) => Docker::connect_with_unix(&path.to_string_lossy(), NO_DEADLINE_SECS, newest)?,
        Endpoint::Tcp(authority) => Docker::connect_with_http(authority, NO_DEADLINE_SECS, newest)?,
    };
    Ok(docker.with_request_modifier(move |mut request| {
        *request.uri_mut() = version.prefix(request.uri());
        request
    }))
}

async fn ping(wire: &Wire, explain: &Explain, timeout: Duration) -> Result<Pong> {
    let answer = get(wire, explain, timeout, PING, "/_ping").await?;
    pong(&answer.headers).ok_or_else(|| nonsense(PING, "no Api-Version header"))
}

fn pong(headers: &HeaderMap) -> Option<Pong> {
    let text = |name| headers.get(name)?.to_str().ok();
    // `Docker/20.10.24 (linux)`
    let server = text("server").unwrap_or_default();
    let version = server.split(['/', ' ']).nth(1).unwrap_or("unknown");
    Some(Pong { newest: text("api-version")?.parse().ok()?, version: version.to_owned() })
}

async fn get(
    wire: &Wire,
    explain: &Explain,
    timeout: Duration,
    doing: Doing<'_>,
    path: &str,
) -> Result<Answer> {
    match tokio::time::timeout(timeout, wire.get(path)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(Failure::Refused(status, message))) => Err(refused(doing, status, &message)),
        Ok(Err(Failure::Broken(error))) => Err(explain.disconnected(doing, error.as_ref())),
        Err(_) => Err(explain.timed_out(doing)),
    }
}

async fn within<T>(
    explain: &Explain,
    timeout: Duration,
    doing: Doing<'_>,
    request: impl Future<Output = std::result::Result<T, Error>>,
) -> Result<T> {
    match tokio::time::timeout(timeout, request).await {
        Ok(answer) => answer.map_err(|error| explain.failed(doing, error)),
        Err(_) => Err(explain.timed_out(doing)),
    }
}
