//! One Hasura, and what it is asked over HTTP: queries and mutations, one request each, each with a deadline.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cynic::Operation;
use host_core::{ErrorKind, PluginError, Retry, pubsub::Result};
use reqwest::{Client, Response, Url, header, redirect};
use rustls::ClientConfig;
use secrecy::SecretString;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use crate::{
    config::{Config, Protocol},
    credentials::{Credentials, Headers},
    failure::{self, LARGEST_BYTES},
    frames::{Answer, Dialect},
    tls,
};

/// The local development server, as `make runlocaldevwithdb PUBSUB=hasura` and the documentation have it.
const LOCAL_URL: &str = "http://localhost:8080/v1/graphql";
const LOCAL_ADMIN_SECRET: &str = "hasurasecret";
/// Longer than a host ever is without a request.
const IDLE: Duration = Duration::from_secs(90);

/// Hasura as one host sees it.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) url: Url,
    pub(crate) credentials: Credentials,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) timeout: Duration,
    protocol: Protocol,
    /// It turned out to have only the legacy subprotocol.
    is_old: AtomicBool,
    client: Client,
}

impl Server {
    /// Connects nowhere yet. Blocks: it reads certificates. `local` is whether the local development server stands in
    /// for a missing URL.
    pub(crate) fn new(config: &Config, local: bool) -> Result<Self> {
        let invalid =
            |message: &str| PluginError::new(ErrorKind::Invalid, format!("pubsub.hasura.{message}"));
        let is_default = config.url.is_none();
        let url = match &config.url {
            Some(url) => url.clone(),
            None if local => Url::parse(LOCAL_URL).map_err(|error| invalid("url").with_source(error))?,
            None => return Err(invalid("url: it is not set, and only local profiles have a default")),
        };
        let says_who = config.admin_secret.is_some() || config.token.is_some() || config.token_file.is_some();
        let admin_secret = match &config.admin_secret {
            None if is_default && !says_who => Some(SecretString::from(LOCAL_ADMIN_SECRET)),
            given => given.clone(),
        };
        let credentials = Credentials::new(config, admin_secret)?;
        let encrypted = url.scheme() == "https";
        if !encrypted && config.ca_file.is_some() {
            return Err(invalid("ca_file: it is of no use, since pubsub.hasura.url is not https"));
        }
        if is_exposed(&url) && (says_who || !config.headers.is_empty()) {
            tracing::warn!("pubsub.hasura.url is not https: secrets travel where others can read them");
        }
        let tls = tls::config(config.ca_file.as_deref(), encrypted)?;
        let client = Client::builder()
            .tls_backend_preconfigured(ClientConfig::clone(&tls))
            .redirect(redirect::Policy::none()) // they would take the secrets along
            .no_proxy()
            .connect_timeout(config.timeout)
            .pool_idle_timeout(IDLE)
            .build()
            .map_err(|error| invalid("url: no client for it").with_source(error))?;
        let (protocol, timeout) = (config.protocol, config.timeout);
        Ok(Self { url, credentials, tls, timeout, protocol, is_old: AtomicBool::default(), client })
    }

    /// What an operation returns, or that its deadline has passed.
    pub(crate) async fn within<T>(
        &self,
        doing: &str,
        operation: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        timeout(self.timeout, operation).await.unwrap_or_else(|_| Err(failure::late(doing, self.timeout)))
    }

    /// The subprotocol to ask for.
    pub(crate) fn dialect(&self) -> Dialect {
        match self.protocol {
            Protocol::Transport => Dialect::Transport,
            Protocol::Legacy => Dialect::Legacy,
            Protocol::Auto if self.is_old.load(Ordering::Relaxed) => Dialect::Legacy,
            Protocol::Auto => Dialect::Transport,
        }
    }

    /// What to ask for when the server does not have this one.
    pub(crate) fn fall_back(&self, from: Dialect) -> Option<Dialect> {
        (self.protocol == Protocol::Auto && from == Dialect::Transport).then_some(Dialect::Legacy)
    }

    /// A connection was acknowledged. An upgrade alone is no proof: anybody may have answered it.
    pub(crate) fn acknowledged(&self, dialect: Dialect) {
        self.credentials.believed();
        if dialect == Dialect::Legacy && !self.is_old.swap(true, Ordering::Relaxed) {
            tracing::info!("speaking the legacy subprotocol with Hasura");
        }
    }

    /// Runs a query or a mutation, once, after [`Server::try_first`] went well. The server was right then, and the
    /// operations are; so what is called invalid now is for the moment only: metadata is inconsistent, a proxy answers
    /// during a deployment, the token's file is being replaced.
    pub(crate) async fn run<T, V>(&self, doing: &str, operation: Operation<T, V>) -> Result<T>
    where
        T: DeserializeOwned,
        V: Serialize,
    {
        self.try_first(doing, operation).await.map_err(|error| match error.kind() {
            ErrorKind::Invalid => error.with_retry(Retry::Later),
            _ => error,
        })
    }

    /// The same where nobody knows yet whether this is the right server.
    pub(crate) async fn try_first<T, V>(&self, doing: &str, operation: Operation<T, V>) -> Result<T>
    where
        T: DeserializeOwned,
        V: Serialize,
    {
        let body = serde_json::to_vec(&operation).map_err(|error| {
            PluginError::new(ErrorKind::Internal, format!("{doing}: no request")).with_source(error)
        })?;
        let asked = async {
            let headers = self.credentials.headers().await?;
            let body = self.ask(doing, &headers, body).await?;
            Ok((headers, body))
        };
        let (headers, body) = self.within(doing, asked).await?;
        let answer: Answer<'_> = serde_json::from_slice(&body)
            .map_err(|error| failure::invalid(doing, "what answers is no Hasura").with_source(error))?;
        self.read(doing, headers, &answer)
    }

    async fn ask(&self, doing: &str, headers: &Headers, body: Vec<u8>) -> Result<Vec<u8>> {
        let request = self.client.post(self.url.clone()).headers(headers.map());
        let request = request.header(header::CONTENT_TYPE, "application/json").body(body);
        let response = request.send().await.map_err(|error| failure::of_http(doing, error))?;
        match response.status().as_u16() {
            // Hasura says 400 only where it is told to, and then with the same body.
            200 | 400 => bounded(doing, response).await,
            status @ (401 | 403) => {
                Err(self.credentials.refused(headers.clone(), &failure::of_status(doing, status)))
            }
            status => Err(failure::of_status(doing, status)),
        }
    }

    /// An answer's data; a wrong secret, too, comes with status 200.
    pub(crate) fn read<T: DeserializeOwned>(
        &self,
        doing: &str,
        headers: Headers,
        answer: &Answer<'_>,
    ) -> Result<T> {
        if let Some(errors) = &answer.errors {
            let said = failure::said(errors);
            if failure::refuses_credentials(&said.code) {
                return Err(self.credentials.refused(headers, &failure::refused(doing, &said.message)));
            }
            return Err(failure::of_server(doing, &said));
        }
        self.credentials.believed();
        let data = answer.data.map_or("null", |data| data.get());
        serde_json::from_str(data)
            .map_err(|error| failure::invalid(doing, "the answer does not fit the schema").with_source(error))
    }
}

/// The body, unless it is larger than any should be.
async fn bounded(doing: &str, mut response: Response) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| failure::of_http(doing, error))? {
        if body.len() + chunk.len() > LARGEST_BYTES {
            return Err(failure::too_large(doing));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Whoever is between may read along.
fn is_exposed(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_near =
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    url.scheme() != "https" && !is_near
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_this_machine_unencrypted_is_exposed() {
        for (url, expected) in [
            ("http://localhost:8080/v1/graphql", false),
            ("http://127.0.0.2/v1/graphql", false),
            ("http://[::1]/v1/graphql", false),
            ("https://hasura.example/v1/graphql", false),
            ("http://hasura.example/v1/graphql", true),
            ("http://192.0.2.1/v1/graphql", true),
            ("http://localhost.example/v1/graphql", true),
        ] {
            assert_eq!(is_exposed(&url.parse().unwrap()), expected, "{url}");
        }
    }
}
