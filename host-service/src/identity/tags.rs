//! The Name tag by EC2's API, for instances whose metadata does not show tags: one signed `DescribeTags`.
//!
//! The credentials are those of the environment, as for the AWS command line, or of the instance's profile.

use std::{
    env,
    time::{Duration, SystemTime},
};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use reqwest::{Client, Url, redirect};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::{Imds, ImdsError};
use crate::outgoing;

/// Answers have less than one KiB.
const LARGEST_ANSWER_BYTES: usize = 64 << 10;
const API_VERSION: &str = "2016-11-15";
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// Why the tag could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// There is nothing to sign with.
    #[error("there are no credentials: the instance has no profile, and AWS_ACCESS_KEY_ID is not set")]
    NoCredentials,
    /// Those of the instance's profile are not in the form they must have.
    #[error("the credentials of the instance's profile cannot be read")]
    Credentials,
    /// Neither are they there.
    #[error(transparent)]
    Imds(#[from] ImdsError),
    /// The endpoint is no URL.
    #[error("{0:?} is no URL of EC2's API; look at instance.ec2_endpoint")]
    Endpoint(String),
    /// The request cannot be signed.
    #[error("the request cannot be signed")]
    Signing,
    /// EC2 does not answer, or not so.
    #[error("{endpoint} does not tell it: {reason}")]
    Refused {
        /// Who was asked.
        endpoint: String,
        /// The status with EC2's code, or what happened on the way.
        reason: String,
    },
}

/// What the role's path of the metadata service holds.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RoleCredentials {
    access_key_id: String,
    secret_access_key: String,
    token: String,
}

/// Whose Name tag is asked for.
pub(super) struct Instance<'a> {
    pub id: &'a str,
    pub region: &'a str,
    /// Instead of the region's own.
    pub endpoint: Option<&'a str>,
}

/// The Name tag; `None` where the instance has none.
pub(super) async fn name(
    imds: &Imds,
    instance: &Instance<'_>,
    deadline: Instant,
) -> Result<Option<String>, TagError> {
    let text = instance
        .endpoint
        .map_or_else(|| format!("https://ec2.{}.amazonaws.com/", instance.region), str::to_owned);
    let endpoint = Url::parse(&text).map_err(|_| TagError::Endpoint(text))?;
    let credentials = credentials(imds, deadline).await?;
    let body = form(instance.id);
    let request = signed(&endpoint, &body, instance.region, credentials)?;
    let refused = |reason| TagError::Refused { endpoint: endpoint.to_string(), reason };
    let answer = timeout_at(deadline, send(&endpoint, request, body)).await;
    let text = answer.map_err(|_| refused("no complete answer in time".to_owned()))?.map_err(refused)?;
    Ok(tag(&text))
}

async fn credentials(imds: &Imds, deadline: Instant) -> Result<Credentials, TagError> {
    let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
    if let (Some(id), Some(secret)) = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
        let session = variable("AWS_SESSION_TOKEN");
        return Ok(Credentials::new(id, secret, session, None, "environment"));
    }
    const ROLES: &str = "meta-data/iam/security-credentials/";
    let role = imds.get(ROLES, deadline).await?.ok_or(TagError::NoCredentials)?;
    let role = role.lines().next().unwrap_or_default().trim();
    let text = imds.get(&format!("{ROLES}{role}"), deadline).await?.ok_or(TagError::NoCredentials)?;
    // serde's error may show a part of them.
    let of: RoleCredentials = serde_json::from_str(&text).map_err(|_| TagError::Credentials)?;
    Ok(Credentials::new(of.access_key_id, of.secret_access_key, Some(of.token), None, "instance profile"))
}

fn form(instance: &str) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs([
            ("Action", "DescribeTags"),
            ("Version", API_VERSION),
            ("Filter.1.Name", "resource-id"),
            ("Filter.1.Value.1", instance),
            ("Filter.2.Name", "key"),
            ("Filter.2.Value.1", "Name"),
        ])
        .finish()
}

/// The headers that sign `body`.
fn signed(
    endpoint: &Url,
    body: &str,
    region: &str,
    credentials: Credentials,
) -> Result<Vec<(String, String)>, TagError> {
    let identity = credentials.into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("ec2")
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()
        .map_err(|_| TagError::Signing)?
        .into();
    let headers = [("content-type", FORM)].into_iter();
    let signable =
        SignableRequest::new("POST", endpoint.as_str(), headers, SignableBody::Bytes(body.as_bytes()));
    let output = signable.and_then(|request| sign(request, &parameters)).map_err(|_| TagError::Signing)?;
    let (instructions, _) = output.into_parts();
    let (headers, _) = instructions.into_parts();
    Ok(headers.into_iter().map(|header| (header.name().to_owned(), header.value().to_owned())).collect())
}

async fn send(endpoint: &Url, headers: Vec<(String, String)>, body: String) -> Result<String, String> {
    let told = |error: reqwest::Error| host_core::chain(&error.without_url());
    let tls = if endpoint.scheme() == "https" { outgoing::trusting() } else { outgoing::plain() };
    let client = Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(redirect::Policy::none()) // the signature is for this host
        .connect_timeout(Duration::from_secs(5))
        .build()
        .map_err(told)?;
    let mut request = client.post(endpoint.clone()).header("content-type", FORM).body(body);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let mut answer = request.send().await.map_err(told)?;
    let status = answer.status();
    let mut bytes = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(told)? {
        if bytes.len() + part.len() > LARGEST_ANSWER_BYTES {
            return Err(format!("more than {LARGEST_ANSWER_BYTES} bytes"));
        }
        bytes.extend_from_slice(&part);
    }
    let text = String::from_utf8(bytes).map_err(|_| "its answer is no text".to_owned())?;
    match element(&text, "Code") {
        _ if status.is_success() && text.contains("DescribeTagsResponse") => Ok(text),
        Some(code) if !status.is_success() => Err(format!("status {status}, {code}")),
        _ => Err(format!("status {status}, and no answer of EC2's")),
    }
}

/// The value of the one tag that was asked for. The answer has a handful of elements without attributes, so it needs no
/// parser of XML.
fn tag(text: &str) -> Option<String> {
    let item = element(text, "item")?;
    let value = element(item, "value")?;
    let plain = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    let value = plain.iter().fold(value.to_owned(), |value, (code, letter)| value.replace(code, letter));
    Some(value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(content, _)| content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_found_in_ec2s_answer() {
        let answer = |item: &str| {
            format!(
                "<?xml version=\"1.0\"?><DescribeTagsResponse xmlns=\"x\"><tagSet>{item}</tagSet></DescribeTagsResponse>"
            )
        };
        let item = "<item><resourceId>i-1</resourceId><key>Name</key><value>a &amp;lt; b</value></item>";
        assert_eq!(tag(&answer(item)).as_deref(), Some("a &lt; b"));
        assert_eq!(tag(&answer("")), None);
        assert_eq!(tag("<item><value></value></item>"), None);
        assert_eq!(tag("<item><value>"), None);
    }
}
