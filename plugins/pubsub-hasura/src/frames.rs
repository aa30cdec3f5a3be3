//! The two subprotocols, frame by frame.
//!
//! | step | `graphql-transport-ws` | `graphql-ws` (legacy) |
//! |---|---|---|
//! | first | `connection_init` ⇄ `connection_ack` | the same |
//! | subscribe | `subscribe` | `start` |
//! | results | `next` | `data` |
//! | alive | `ping`, answered by `pong` | `ka` |
//! | an operation fails | `error` | `error`, or `data` with errors |
//! | refused | close 4403 | `connection_error`, close 4400 |
//!
//! Pings may come before the acknowledgement, and what an `error` carries has any of several forms.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::credentials::Headers;

/// A subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Transport,
    Legacy,
}

impl Dialect {
    /// As the upgrade names it. Hasura compares the whole header, so exactly one is asked for.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Transport => "graphql-transport-ws",
            Self::Legacy => "graphql-ws",
        }
    }

    fn subscribe(self) -> &'static str {
        match self {
            Self::Transport => "subscribe",
            Self::Legacy => "start",
        }
    }
}

/// The first message. It holds secrets.
pub(crate) fn init(headers: &Headers) -> String {
    let headers: serde_json::Map<_, _> =
        headers.iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    serde_json::json!({ "type": "connection_init", "payload": { "headers": headers } }).to_string()
}

/// Begins an operation.
pub(crate) fn subscribe(
    dialect: Dialect,
    id: &str,
    operation: &impl Serialize,
) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Subscribe<'a, T> {
        r#type: &'a str,
        id: &'a str,
        payload: &'a T,
    }
    serde_json::to_string(&Subscribe { r#type: dialect.subscribe(), id, payload: operation })
}

/// Answers a ping.
pub(crate) fn pong() -> String {
    r#"{"type":"pong"}"#.to_owned()
}

/// A message of the server, in either subprotocol: their names do not clash.
#[derive(Debug)]
pub(crate) enum Frame<'a> {
    Acknowledged,
    /// The credentials, or the last message, are refused; the payload.
    Refused(&'a RawValue),
    Ping,
    /// The server lives.
    Alive,
    /// A result of the operation: `{"data":…}`, `{"errors":…}` or both.
    Result(String, &'a RawValue),
    /// The operation failed.
    Failed(&'a RawValue),
    /// The operation is over.
    Complete,
    /// Nothing that is known; ignored, as newer versions may send more.
    Other,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    r#type: String,
    #[serde(default)]
    id: Option<String>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

/// # Errors
/// It is no message of either subprotocol.
pub(crate) fn parse(text: &str) -> serde_json::Result<Frame<'_>> {
    let Envelope { r#type, id, payload } = serde_json::from_str(text)?;
    let payload = payload.unwrap_or(RawValue::NULL);
    Ok(match r#type.as_str() {
        "connection_ack" => Frame::Acknowledged,
        "connection_error" => Frame::Refused(payload),
        "ping" => Frame::Ping,
        "pong" | "ka" => Frame::Alive,
        "next" | "data" => Frame::Result(id.unwrap_or_default(), payload),
        "error" => Frame::Failed(payload),
        "complete" => Frame::Complete,
        _ => Frame::Other,
    })
}

/// What a result carries.
#[derive(Debug, Deserialize)]
pub(crate) struct Answer<'a> {
    #[serde(borrow, default)]
    pub(crate) data: Option<&'a RawValue>,
    #[serde(default)]
    pub(crate) errors: Option<serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn recorded_frames_are_understood() {
        let is = |text: &str, expected: &str| {
            let frame = format!("{:?}", parse(text).unwrap());
            assert!(frame.starts_with(expected), "{text} is {frame}");
        };
        // From the protocols' documents and Hasura's source.
        is(r#"{"type":"connection_ack"}"#, "Acknowledged");
        is(r#"{"type":"connection_ack","payload":null}"#, "Acknowledged");
        is(r#"{"type":"ka"}"#, "Alive");
        is(r#"{"type":"ping","payload":{"message":"keepalive"}}"#, "Ping");
        is(r#"{"type":"pong","payload":{"a":1}}"#, "Alive");
        is(r#"{"type":"data","id":"1","payload":{"data":{"cloud_instance_info":[]}}}"#, "Result(\"1\"");
        is(
            r#"{"id":"1","type":"next","payload":{"errors":[{"message":"connection error"}]}}"#,
            "Result(\"1\"",
        );
        is(r#"{"type":"error","id":"1","payload":"an operation already exists with this id: 1"}"#, "Failed");
        is(r#"{"type":"error","id":"1","payload":{"errors":[{"message":"m"}]}}"#, "Failed");
        is(r#"{"type":"error","id":"1","payload":[{"message":"m"}]}"#, "Failed");
        is(r#"{"type":"complete","id":"1"}"#, "Complete");
        is(
            r#"{"type":"connection_error","payload":"invalid x-hasura-admin-secret/x-hasura-access-key"}"#,
            "Refused",
        );
        is(r#"{"type":"connection_something_new"}"#, "Other");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_harm(text in any::<String>()) {
            let _ = parse(&text);
        }

        #[test]
        fn any_fields_are_read_without_harm(kind in any::<String>(), id in any::<String>(), payload in any::<String>()) {
            let text = serde_json::json!({ "type": kind, "id": id, "payload": payload }).to_string();
            prop_assert!(parse(&text).is_ok());
        }
    }
}
