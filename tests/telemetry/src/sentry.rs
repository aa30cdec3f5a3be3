//! Sentry's ingestion of envelopes: a line of JSON, then for each item a line with its type and length, and so many
//! bytes.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::request::Parts;
use serde_json::{Value, json};

use crate::{Arrived, KEY, Reply, plain};

/// Larger events are refused.
const LARGEST_EVENT_BYTES: usize = 1 << 20;

/// One envelope, taken apart.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// Its header.
    pub header: Value,
    /// Its item's header.
    pub item: Value,
    /// The event, as text.
    pub text: String,
    /// The event.
    pub event: Value,
}

pub(crate) fn take(parts: &Parts, body: &Bytes, arrived: &mut Arrived) -> Reply {
    let auth = parts.headers.get("x-sentry-auth").and_then(|auth| auth.to_str().ok()).unwrap_or_default();
    let Some(fields) = auth.strip_prefix("Sentry ") else { return Reply::new(401, "no x-sentry-auth") };
    let has = |name: &str, value: &str| {
        fields.split(',').filter_map(|field| field.trim().split_once('=')).any(|field| field == (name, value))
    };
    if !has("sentry_key", KEY) || !has("sentry_version", "7") {
        return Reply::new(403, "no such key");
    }
    if parts.uri.path() != "/api/42/envelope/" {
        return Reply::new(404, "no such project");
    }
    let envelope = plain(&parts.headers, body).and_then(|text| parse(&text));
    match envelope {
        Ok(envelope) if envelope.text.len() > LARGEST_EVENT_BYTES => Reply::new(413, ""),
        Ok(envelope) => {
            let id = envelope.event["event_id"].clone();
            arrived.envelopes.push(envelope);
            Reply::new(200, json!({"id": id}).to_string())
        }
        Err(error) => Reply::new(400, format!("{error:#}")),
    }
}

fn parse(envelope: &[u8]) -> Result<Envelope> {
    let (header, rest) = line(envelope).context("no header")?;
    let header: Value = serde_json::from_slice(header)?;
    let (item, rest) = line(rest).context("no item")?;
    let item: Value = serde_json::from_slice(item)?;
    ensure!(item["type"] == "event", "an item of type {}", item["type"]);
    let length = usize::try_from(item["length"].as_u64().context("no length")?)?;
    ensure!(rest.len() >= length, "{} of {length} bytes", rest.len());
    let (event, rest) = rest.split_at(length);
    ensure!(rest.iter().all(|byte| *byte == b'\n'), "{} bytes after the event", rest.len());
    let text = String::from_utf8(event.to_vec())?;
    let event: Value = serde_json::from_str(&text)?;
    ensure!(
        header["event_id"].as_str().map(|id| id.replace('-', ""))
            == event["event_id"].as_str().map(|id| id.replace('-', "")),
        "two ids"
    );
    Ok(Envelope { header, item, text, event })
}

fn line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|byte| *byte == b'\n')?;
    Some((&text[..end], &text[end + 1..]))
}
