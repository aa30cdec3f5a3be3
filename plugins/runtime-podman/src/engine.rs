//! One engine: its connection, and what it can do.

use std::{future::Future, path::PathBuf, time::Duration};

use bytes::Bytes;
use engine_http::{Answer, Body, Broken, Doing, Failure, Pending, Wire, empty};
use host_core::{ErrorKind, PluginError, runtime::Result};
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use podman_api::{Error, Podman};
use serde::de::DeserializeOwned;

use crate::{
    config::Config,
    error::{Explain, nonsense, unsupported},
    support::Support,
};

/// What podman-api was made for; every later engine speaks it too.
pub(crate) const API_VERSION: &str = "4.3.1";

/// The oldest engine, in major and minor.
const OLDEST: (u32, u32) = (4, 3);
/// More than an answer has; a broken engine must not fill the memory.
const MOST_ANSWER_BYTES: usize = 16 << 20;

const PING: Doing = Doing("ping the engine", "");
const EXPLORE: Doing = Doing("ask what the engine can do", "");

/// A reachable engine.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub(crate) api: Podman,
    pub(crate) explain: Explain,
    pub(crate) support: Support,
    /// Where files for the engine are put.
    pub(crate) scratch: PathBuf,
    pub(crate) timeout: Duration,
    /// Where it finds descriptions of devices.
    pub(crate) cdi: Vec<PathBuf>,
    wire: Wire,
}

impl Engine {
    pub(crate) async fn connect(config: Config, scratch: PathBuf) -> Result<Self> {
        let Config { endpoint, timeout, cdi } = config;
        let explain = Explain::new(endpoint.clone());
        let api =
            Podman::new(endpoint.to_string()).map_err(|error| explain.failed(Doing("connect", ""), error))?;
        let wire = Wire::new(endpoint);
        let mut engine = Self { api, explain, support: Support::default(), scratch, timeout, cdi, wire };
        check_version(&engine.version().await?)?;
        engine.support = Support::of(&engine.look_up(EXPLORE, engine.api.info()).await?);
        if engine.support.events == "none" {
            return Err(unsupported(
                "podman keeps no events: set events_logger in containers.conf",
                "watching containers",
            ));
        }
        Ok(engine)
    }

    /// The engine's own version; costs it nothing.
    pub(crate) async fn version(&self) -> Result<String> {
        Ok(self.look_up(PING, self.api.ping()).await?.libpod_api_version)
    }

    /// A look-up through podman-api: has the section's deadline.
    pub(crate) async fn look_up<T>(
        &self,
        doing: Doing<'_>,
        request: impl Future<Output = std::result::Result<T, Error>>,
    ) -> Result<T> {
        match tokio::time::timeout(self.timeout, request).await {
            Ok(answer) => answer.map_err(|error| self.explain.failed(doing, error)),
            Err(_) => Err(self.explain.timed_out(doing)),
        }
    }

    /// A look-up past podman-api, with the section's deadline.
    pub(crate) async fn get<T: DeserializeOwned>(&self, doing: Doing<'_>, path: &str) -> Result<T> {
        let answered = async {
            let answer = self.send(doing, Method::GET, path, empty()).await?;
            self.read(doing, answer).await
        };
        tokio::time::timeout(self.timeout, answered)
            .await
            .unwrap_or_else(|_| Err(self.explain.timed_out(doing)))
    }

    /// A whole answer.
    pub(crate) async fn read<T: DeserializeOwned>(&self, doing: Doing<'_>, answer: Answer) -> Result<T> {
        let whole = answer.whole(MOST_ANSWER_BYTES).await;
        let whole = whole.map_err(|error| self.explain.broken(doing, error))?;
        // The error's text may hold a piece of the answer.
        serde_json::from_slice(&whole)
            .map_err(|error| nonsense(doing, format_args!("at column {}", error.column())))
    }

    /// A request past podman-api.
    pub(crate) async fn send(
        &self,
        doing: Doing<'_>,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Answer> {
        self.answer(method, path, body).await.map_err(|failure| self.explain.unanswered(doing, failure))
    }

    /// The same with the engine's own word.
    pub(crate) async fn answer(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> std::result::Result<Answer, Failure> {
        self.wire.send(request(method, path, body)?).await
    }

    /// A request whose answer is a stream, whose head this engine sends only with its first piece. Reaching the engine has
    /// the section's deadline.
    pub(crate) async fn begin(&self, doing: Doing<'_>, path: &str) -> Result<Pending> {
        let begun = async { self.wire.begin(request(Method::GET, path, empty())?).await };
        match tokio::time::timeout(self.timeout, begun).await {
            Ok(begun) => begun.map_err(|failure| self.explain.unanswered(doing, failure)),
            Err(_) => Err(self.explain.timed_out(doing)),
        }
    }
}

fn request(method: Method, path: &str, body: Body) -> std::result::Result<Request<Body>, Failure> {
    let request = Request::builder().method(method).uri(format!("/v{API_VERSION}/libpod{path}"));
    let request = request.header(header::CONTENT_TYPE, "application/json").body(body);
    request.map_err(|error| Failure::Broken(Broken::from(error)))
}

/// A body in JSON.
pub(crate) fn json(body: &serde_json::Value) -> Body {
    Full::new(Bytes::from(body.to_string())).map_err(|never| match never {}).boxed_unsync()
}

/// # Errors
/// `Unsupported` when it is too old.
fn check_version(version: &str) -> Result<()> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    let known = (parts.next().flatten(), parts.next().flatten());
    match known {
        (Some(major), Some(minor)) if (major, minor) < OLDEST => {
            let text = format!("podman is {version}, and 4.3 is needed: install podman 4.3 or later");
            Err(PluginError::new(ErrorKind::Unsupported, text))
        }
        (Some(_), Some(_)) => Ok(()),
        _ => Err(nonsense(PING, format_args!("its version is {version:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_is_too_old_is_refused_with_the_remedy() {
        for version in ["4.3.1", "4.9.0-dev", "5.4.2", "10.0.0"] {
            check_version(version).unwrap();
        }
        let error = check_version("3.4.4").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("podman 4.3 or later"), "{error}");
        assert_eq!(check_version("").unwrap_err().kind(), ErrorKind::Internal);
    }
}
