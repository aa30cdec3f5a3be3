//! What server and connection say, in the kinds that the host acts on.

use std::{error::Error as StdError, time::Duration};

use control_plane::short;
use host_core::{ErrorKind, PluginError, Retry};
use serde_json::Value;
use tokio_tungstenite::tungstenite::{self, error::CapacityError, protocol::CloseFrame};

/// The largest message that is taken, over HTTP and over the websocket. Everything about a busy host is a tenth.
pub(crate) const LARGEST_BYTES: usize = 1_048_576;

/// What the server says is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) code: String,
    pub(crate) message: String,
}

/// From whatever form it has: `[E]`, `{"errors":[E]}`, `E` with or without extensions, or a text.
pub(crate) fn said(payload: &Value) -> Said {
    let first = match payload {
        Value::Array(errors) => errors.first(),
        Value::Object(object) => match object.get("errors") {
            Some(Value::Array(errors)) => errors.first(),
            Some(inner) => Some(inner),
            None => Some(payload),
        },
        other => Some(other),
    };
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let Some(first) = first else { return Said { code: String::new(), message: "nothing".to_owned() } };
    let code = text(first.pointer("/extensions/code")).or_else(|| text(first.get("code")));
    let message =
        text(Some(first)).or_else(|| text(first.get("message"))).or_else(|| text(first.get("error")));
    Said {
        code: code.unwrap_or_default(),
        message: message.unwrap_or_else(|| "what cannot be read".to_owned()),
    }
}

/// The server does not do it.
pub(crate) fn of_server(doing: &str, said: &Said) -> PluginError {
    let kind = kind(&said.code);
    let remedy = match said.code.as_str() {
        "validation-failed" | "not-exists" => {
            "; are both tables tracked, and does the role see the columns? metadata/ is what a host needs"
        }
        "permission-denied" | "permission-error" => "; metadata/ has the permissions that a host needs",
        _ => "",
    };
    let (text, code) = (short(&said.message), short(&said.code));
    PluginError::new(kind, format!("{doing}: Hasura says {text:?} ({code}){remedy}"))
}

fn kind(code: &str) -> ErrorKind {
    match code {
        "constraint-violation" => ErrorKind::Conflict,
        "permission-denied" | "permission-error" => ErrorKind::Denied,
        code if refuses_credentials(code) => ErrorKind::Denied,
        // The database behind is away, or has refused.
        "unexpected" | "postgres-error" | "connection-error" => ErrorKind::Unavailable,
        "postgres-max-connections-error" | "concurrent-limit-exceeded" | "rate-limit-exceeded" => {
            ErrorKind::Exhausted
        }
        "time-limit-exceeded" => ErrorKind::Timeout,
        "validation-failed"
        | "parse-failed"
        | "bad-request"
        | "data-exception"
        | "not-exists"
        | "not-supported"
        | "invalid-configuration" => ErrorKind::Invalid,
        _ => ErrorKind::Internal,
    }
}

/// The server does not believe who this is.
pub(crate) fn refuses_credentials(code: &str) -> bool {
    matches!(
        code,
        "access-denied"
            | "invalid-headers"
            | "invalid-jwt"
            | "invalid-jwt-key"
            | "jwt-invalid-claims"
            | "jwt-missing-role-claims"
    )
}

/// The credentials themselves are refused: the same will be until somebody changes something.
pub(crate) fn refused(doing: &str, said: &str) -> PluginError {
    let text = short(said);
    let message = format!(
        "{doing}: Hasura refuses this host: {text:?}; check pubsub.hasura.admin_secret, token, token_file and role"
    );
    PluginError::new(ErrorKind::Denied, message)
}

/// The operation's own deadline has passed.
pub(crate) fn late(doing: &str, limit: Duration) -> PluginError {
    PluginError::new(ErrorKind::Timeout, format!("{doing}: Hasura did not answer within {limit:?}"))
}

pub(crate) fn unavailable(doing: &str, what: &str) -> PluginError {
    PluginError::new(ErrorKind::Unavailable, format!("{doing}: {what}"))
}

/// What is there is no Hasura, or one that speaks otherwise.
pub(crate) fn invalid(doing: &str, what: &str) -> PluginError {
    PluginError::new(ErrorKind::Invalid, format!("{doing}: {what}"))
}

pub(crate) fn too_large(doing: &str) -> PluginError {
    unavailable(doing, &format!("Hasura sends more than {LARGEST_BYTES} bytes in one message; not taken"))
}

/// The connection was lost, or never made. The URL stays out: it is the configuration's, and known.
pub(crate) fn of_http(doing: &str, error: reqwest::Error) -> PluginError {
    if is_distrust(&error) {
        return distrusted(doing).with_source(error.without_url());
    }
    let kind = if error.is_timeout() { ErrorKind::Timeout } else { ErrorKind::Unavailable };
    PluginError::new(kind, format!("{doing}: Hasura is not reached")).with_source(error.without_url())
}

/// The credentials may be at fault, or who answers is: an authentication hook that is away, a proxy.
pub(crate) fn doubted(doing: &str, said: &str) -> PluginError {
    refused(doing, said).with_retry(Retry::Later)
}

/// An HTTP status that is no answer to a query.
pub(crate) fn of_status(doing: &str, status: u16) -> PluginError {
    let what = format!("the answer is HTTP status {status}");
    match status {
        401 | 403 => doubted(doing, &what),
        408 | 429 | 500.. => unavailable(doing, &what),
        404 => invalid(doing, &format!("{what}; pubsub.hasura.url ends in /v1/graphql as a rule")),
        300..=399 => invalid(doing, &format!("{what}; redirects are not followed")),
        _ => invalid(doing, &what),
    }
}

/// The server ends the connection. Its reason is JSON: `{"server_error_msg":"4400: …"}`.
pub(crate) fn of_close(doing: &str, frame: Option<&CloseFrame>) -> PluginError {
    let Some(frame) = frame else { return unavailable(doing, "Hasura has closed the connection") };
    let code = u16::from(frame.code);
    let reason = serde_json::from_str::<Value>(&frame.reason).ok();
    let reason = reason.as_ref().and_then(|reason| reason.get("server_error_msg")?.as_str());
    let reason = short(reason.unwrap_or(&frame.reason));
    match code {
        4401 | 4403 => refused(doing, &reason),
        4408 => PluginError::new(
            ErrorKind::Timeout,
            format!("{doing}: Hasura has closed the connection: {reason:?}"),
        ),
        _ => unavailable(doing, &format!("Hasura has closed the connection ({code}): {reason:?}")),
    }
}

pub(crate) fn of_websocket(doing: &str, error: tungstenite::Error) -> PluginError {
    use tungstenite::Error;
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => of_close(doing, None),
        Error::Http(response) => of_status(doing, response.status().as_u16()),
        Error::Capacity(CapacityError::MessageTooLong { .. }) => too_large(doing),
        Error::Protocol(error) => {
            unavailable(doing, "what comes over the websocket is not one's protocol").with_source(error)
        }
        error if is_distrust(&error) => distrusted(doing).with_source(error),
        error => unavailable(doing, "Hasura is not reached").with_source(error),
    }
}

/// A failure of TCP or TLS.
pub(crate) fn of_io(doing: &str, error: std::io::Error) -> PluginError {
    if is_distrust(&error) {
        return distrusted(doing).with_source(error);
    }
    unavailable(doing, "Hasura is not reached").with_source(error)
}

fn distrusted(doing: &str) -> PluginError {
    PluginError::new(ErrorKind::Denied, format!("{doing}: no trusted connection to Hasura"))
}

/// Whether TLS is at the bottom of it, and not a connection that broke off.
fn is_distrust(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        if cause.is::<rustls::Error>() {
            return true;
        }
        // An io::Error shows the source of what it wraps, not what it wraps.
        let wrapped = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if wrapped.is_some_and(|wrapped| is_distrust(wrapped)) {
            return true;
        }
        next = cause.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_is_read_in_every_form_it_comes_in() {
        let e = json!({ "extensions": { "path": "$", "code": "validation-failed" }, "message": "field not found" });
        let same = Said { code: "validation-failed".into(), message: "field not found".into() };
        for payload in [json!([e]), json!({ "errors": [e] }), e.clone(), json!({ "errors": e })] {
            assert_eq!(said(&payload), same, "{payload}");
        }
        let old = json!({ "path": "$", "error": "field not found", "code": "validation-failed" });
        assert_eq!(said(&old), same);
        let text = said(&json!("start received before the connection is initialised"));
        assert_eq!((text.code.as_str(), text.message.len()), ("", 51));
        assert_eq!(said(&json!([])).message, "nothing");
        assert_eq!(said(&json!({ "a": 1 })).message, "what cannot be read");
    }

    #[test]
    fn codes_have_the_kinds_that_the_host_acts_on() {
        for (code, expected) in [
            ("access-denied", ErrorKind::Denied),
            ("invalid-jwt", ErrorKind::Denied),
            ("constraint-violation", ErrorKind::Conflict),
            ("unexpected", ErrorKind::Unavailable),
            ("validation-failed", ErrorKind::Invalid),
            ("", ErrorKind::Internal),
        ] {
            assert_eq!(kind(code), expected, "{code}");
        }
    }
}
