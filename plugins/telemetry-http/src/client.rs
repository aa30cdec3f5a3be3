//! Requests, one at a time, each with a deadline.

use std::{path::Path, time::Duration};

use host_core::{ErrorKind, PluginError};
use reqwest::{
    Url,
    header::{HeaderMap, RETRY_AFTER},
    redirect,
};

use crate::tls;

/// An answer to telemetry is a line or two; the rest is not read.
const LARGEST_ANSWER: usize = 64 << 10;
/// A server may ask for patience, within reason.
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// An HTTP client for one server.
#[derive(Debug, Clone)]
pub struct Client {
    client: reqwest::Client,
    timeout: Duration,
}

/// What a server answered.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, cut short where it is absurdly long.
    pub body: Vec<u8>,
}

impl Client {
    /// For `url`, with the certificate authorities of `ca_file` or of this machine. Reads files.
    ///
    /// # Errors
    /// `Invalid`: the authorities cannot be read, or there are none.
    pub fn new(url: &Url, ca_file: Option<&Path>, timeout: Duration) -> Result<Self, PluginError> {
        let encrypted = url.scheme() == "https";
        if !encrypted && ca_file.is_some() {
            let message = "ca_file is of no use, since the URL is not https";
            return Err(PluginError::new(ErrorKind::Invalid, message));
        }
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::config(ca_file, encrypted)?)
            .redirect(redirect::Policy::none()) // they would take the token along
            .no_proxy()
            .timeout(timeout)
            .connect_timeout(timeout)
            .build()
            .map_err(|error| {
                PluginError::new(ErrorKind::Invalid, "no HTTP client").with_source(error.without_url())
            })?;
        Ok(Self { client, timeout })
    }

    /// Sends `body`. The whole exchange ends by the deadline.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`: there was no whole answer. The error shows no URL.
    pub async fn post(&self, url: Url, headers: HeaderMap, body: Vec<u8>) -> Result<Reply, PluginError> {
        let exchange = async {
            let mut response = self.client.post(url).headers(headers).body(body).send().await?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                body.extend_from_slice(&chunk[..chunk.len().min(LARGEST_ANSWER - body.len())]);
                if body.len() == LARGEST_ANSWER {
                    break;
                }
            }
            Ok(Reply { status, headers, body })
        };
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(answer) => answer.map_err(|error: reqwest::Error| {
                let kind = if error.is_timeout() { ErrorKind::Timeout } else { ErrorKind::Unavailable };
                PluginError::new(kind, "no answer").with_source(error.without_url())
            }),
            Err(_) => {
                Err(PluginError::new(ErrorKind::Timeout, format!("no answer within {:?}", self.timeout)))
            }
        }
    }
}

/// What `Retry-After` says in seconds; a date is not understood.
pub fn pause_asked_for(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse::<u64>().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
}
