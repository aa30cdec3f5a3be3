//! EC2's instance metadata service, version 2: a session token by `PUT`, then plain values by `GET`.
//!
//! | answer | means |
//! |---|---|
//! | 401 | the token has expired; a new one is fetched, once for each value |
//! | 403 | the service is switched off for this instance; nothing is tried again |
//! | 404 | there is no such value |
//! | 429, 5xx, silence | tried again until the deadline |
//! | a page, binary data, more than [`LONGEST_VALUE_BYTES`] | whatever answers, it is no metadata service |

use std::{env, time::Duration};

use reqwest::{Client, Method, RequestBuilder, StatusCode, Url, header::HeaderValue, redirect};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout, timeout_at},
};

use crate::retry::Pauses;

/// EC2's own, the same on every instance.
const ENDPOINT: &str = "http://169.254.169.254";
/// Where the AWS command line and libraries look for another.
const ENDPOINT_VARIABLE: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const TOKEN_TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// The longest there is: six hours.
const TOKEN_TTL_SECONDS: &str = "21600";
/// One request, on a link of its own; a lost packet is not waited for.
const ATTEMPT: Duration = Duration::from_secs(1);
/// Between two attempts. Throttling is by packets per second, so it passes soon.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Credentials are the longest of what is asked here, of about 1.5 KiB.
const LONGEST_VALUE_BYTES: usize = 8 << 10;

/// The metadata service as this host sees it.
#[derive(Debug)]
pub(crate) struct Imds {
    client: Client,
    /// Without a slash at its end.
    endpoint: String,
    token: Mutex<Option<HeaderValue>>,
}

/// Why a value could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ImdsError {
    /// The endpoint is no URL.
    #[error(
        "{endpoint:?} is no URL of a metadata service; look at instance.metadata_endpoint and {ENDPOINT_VARIABLE}"
    )]
    Endpoint {
        /// What was given.
        endpoint: String,
    },
    /// Nothing useful came until the deadline.
    #[error("the metadata service {endpoint} did not tell {path}: {reason}")]
    Away {
        /// Where it was asked.
        endpoint: String,
        /// For what.
        path: String,
        /// The last attempt's.
        reason: String,
    },
    /// It says that nobody may ask it.
    #[error(
        "the metadata service {endpoint} is switched off for this instance; switch it on: \
         aws ec2 modify-instance-metadata-options --http-endpoint enabled --instance-id …"
    )]
    Disabled {
        /// Where it was asked.
        endpoint: String,
    },
    /// It does not speak as it must.
    #[error("what answers at {endpoint} is no metadata service: {reason}")]
    Strange {
        /// Where it was asked.
        endpoint: String,
        /// What it did; nothing of its answer is repeated.
        reason: String,
    },
}

/// What one request came to.
enum Attempt {
    Value(String),
    Absent,
    TokenExpired,
    Retry(String),
}

impl Imds {
    /// At `endpoint`, or where the environment says, or where EC2 has it. Asks nothing yet.
    pub(crate) fn new(endpoint: Option<&str>) -> Result<Self, ImdsError> {
        let text = endpoint.map(str::to_owned).or_else(|| env::var(ENDPOINT_VARIABLE).ok());
        let text = text.unwrap_or_else(|| ENDPOINT.to_owned());
        let no_url = || ImdsError::Endpoint { endpoint: text.clone() };
        // Nothing else is spoken there, so no certificates are read either.
        let url = Url::parse(&text).ok().filter(|url| url.scheme() == "http").ok_or_else(no_url)?;
        let endpoint = url.as_str().trim_end_matches('/').to_owned();
        let client = Client::builder()
            .tls_backend_preconfigured(crate::outgoing::plain())
            .redirect(redirect::Policy::none())
            .no_proxy() // a proxy's instance is another
            .build()
            .map_err(|_| no_url())?;
        Ok(Self { client, endpoint, token: Mutex::new(None) })
    }

    /// The value at `path` below `/latest/`; `None` where there is none. Tried again until `deadline`.
    pub(crate) async fn get(&self, path: &str, deadline: Instant) -> Result<Option<String>, ImdsError> {
        let mut pauses = Pauses::up_to(LONGEST_PAUSE);
        let mut reason = format!("no answer within {:?}", deadline.saturating_duration_since(Instant::now()));
        let tried = timeout_at(deadline, async {
            loop {
                match self.attempt(path).await? {
                    Attempt::Value(value) => return Ok(Some(value)),
                    Attempt::Absent => return Ok(None),
                    Attempt::TokenExpired => "its tokens expire at once".clone_into(&mut reason),
                    Attempt::Retry(why) => reason = why,
                }
                pauses.pause().await;
            }
        });
        match tried.await {
            Ok(result) => result,
            Err(_) => Err(ImdsError::Away { endpoint: self.endpoint.clone(), path: path.to_owned(), reason }),
        }
    }

    async fn attempt(&self, path: &str) -> Result<Attempt, ImdsError> {
        let mut held = self.token.lock().await;
        if let Some(token) = held.clone() {
            match self.ask(path, &token).await? {
                Attempt::TokenExpired => {}
                other => return Ok(other),
            }
        }
        *held = None;
        let ttl = HeaderValue::from_static(TOKEN_TTL_SECONDS);
        let request = self.request(Method::PUT, "api/token").header(TOKEN_TTL_HEADER, ttl);
        let token = match self.send(request).await? {
            Attempt::Value(token) => token,
            Attempt::Absent => return Err(self.strange("it has no tokens (IMDSv2)")),
            Attempt::TokenExpired => return Err(self.strange("it wants a token to give one")),
            Attempt::Retry(why) => return Ok(Attempt::Retry(why)),
        };
        let mut token = HeaderValue::try_from(token).map_err(|_| self.strange("its token is none"))?;
        token.set_sensitive(true);
        *held = Some(token.clone());
        drop(held);
        self.ask(path, &token).await
    }

    async fn ask(&self, path: &str, token: &HeaderValue) -> Result<Attempt, ImdsError> {
        self.send(self.request(Method::GET, path).header(TOKEN_HEADER, token)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}/latest/{path}", self.endpoint))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Attempt, ImdsError> {
        let answer = timeout(ATTEMPT, async {
            let answer = request.send().await?;
            let status = answer.status();
            Ok((status, read(answer).await?))
        });
        let (status, text) = match answer.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                return Ok(Attempt::Retry(host_core::chain(&reqwest::Error::without_url(error))));
            }
            Err(_) => return Ok(Attempt::Retry(format!("no answer within {ATTEMPT:?}"))),
        };
        match status {
            StatusCode::OK => {
                let value = text.filter(|text| is_value(text));
                value.map(Attempt::Value).ok_or_else(|| self.strange("its answer is no plain value"))
            }
            StatusCode::NOT_FOUND => Ok(Attempt::Absent),
            StatusCode::UNAUTHORIZED => Ok(Attempt::TokenExpired),
            StatusCode::FORBIDDEN => Err(ImdsError::Disabled { endpoint: self.endpoint.clone() }),
            StatusCode::TOO_MANY_REQUESTS => Ok(Attempt::Retry("it is asked too often (429)".to_owned())),
            status if status.is_server_error() => Ok(Attempt::Retry(format!("status {status}"))),
            status => Err(self.strange(&format!("status {status}"))),
        }
    }

    fn strange(&self, reason: &str) -> ImdsError {
        ImdsError::Strange { endpoint: self.endpoint.clone(), reason: reason.to_owned() }
    }
}

/// `None` where it is too long, or no text.
async fn read(mut answer: reqwest::Response) -> reqwest::Result<Option<String>> {
    let mut bytes = Vec::new();
    while let Some(part) = answer.chunk().await? {
        if bytes.len() + part.len() > LONGEST_VALUE_BYTES {
            return Ok(None);
        }
        bytes.extend_from_slice(&part);
    }
    Ok(String::from_utf8(bytes).ok())
}

/// A portal's page, or nothing, is no value; JSON is.
fn is_value(text: &str) -> bool {
    let text = text.trim();
    !text.is_empty()
        && !text.starts_with('<')
        && !text.chars().any(|letter| letter.is_control() && !letter.is_whitespace())
}
