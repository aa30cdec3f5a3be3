//! What clients are told: one shape for every answer.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{auth::Denied, request::Malformed};
use crate::lobby::{Answer, Failure};

/// When to come again after a refusal that passes by itself.
const COME_AGAIN_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// Why a request is not granted. `Display` is for the client and holds nothing that it sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("this port speaks HTTPS; use https:// instead of http://")]
    PlainHttp,
    #[error("the body broke off")]
    BrokenBody,
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("there is nothing at this path; clients send PUT /json_transport")]
    UnknownPath,
    #[error("/json_transport takes PUT and nothing else")]
    WrongMethod,
    #[error("the header was not complete within {0:?}")]
    SlowHeader(Duration),
    #[error("the body was not complete within {0:?}")]
    SlowBody(Duration),
    #[error("the body is larger than {limit_bytes} bytes")]
    TooLarge { limit_bytes: usize },
    #[error("too many large requests arrive at once; try again in a moment")]
    Busy,
    #[error("too many requests from this address; try again in a moment")]
    TooOften,
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) | Self::PlainHttp | Self::BrokenBody => StatusCode::BAD_REQUEST,
            Self::Denied(Denied::NoKeys) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Denied(_) => StatusCode::UNAUTHORIZED,
            Self::UnknownPath => StatusCode::NOT_FOUND,
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::SlowHeader(_) | Self::SlowBody(_) => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Busy | Self::TooOften => StatusCode::TOO_MANY_REQUESTS,
            Self::Failed(failure) => {
                StatusCode::from_u16(failure.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }

    /// A stable name, for programs.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::BrokenBody => "malformed",
            Self::PlainHttp => "plain_http",
            Self::Denied(denied) => denied.code(),
            Self::UnknownPath => "unknown_path",
            Self::WrongMethod => "wrong_method",
            Self::SlowHeader(_) | Self::SlowBody(_) => "too_slow",
            Self::TooLarge { .. } => "too_large",
            Self::Busy | Self::TooOften => "too_many",
            Self::Failed(failure) => failure.code(),
        }
    }

    /// A header that says more than the status; `Allow` is the router's.
    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::Denied(Denied::NoKeys) => Some((RETRY_AFTER, COME_AGAIN_SECONDS)),
            Self::Denied(_) => Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            Self::Busy | Self::TooOften | Self::Failed(Failure::TooMany | Failure::Unavailable(_)) => {
                Some((RETRY_AFTER, COME_AGAIN_SECONDS))
            }
            _ => None,
        }
    }

    fn body(&self) -> Refused {
        let (error, code) = (self.to_string(), self.code());
        Refused { result: (), error, code }
    }

    /// The whole answer in bytes, for a connection on which HTTP is not, or no longer, spoken.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let body = serde_json::to_string(&self.body()).unwrap_or_default();
        let (status, length) = (self.status(), body.len());
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
             connection: close\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

#[derive(Serialize)]
struct Refused {
    /// Always `null`.
    result: (),
    error: String,
    code: &'static str,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let headers = self.header().map(|header| [header]);
        (self.status(), headers, Json(self.body())).into_response()
    }
}

/// `{"result":{"port_32262":N,…,"aes_key":"…"}}`, for nobody's cache.
pub(super) fn granted(answer: &Arc<Answer>) -> Response {
    let ports = answer.ports.iter().map(|(port, host)| (format!("port_{}", port.port), Value::from(*host)));
    let key = ("aes_key".to_owned(), Value::from(answer.aes_key.expose()));
    let result: Map<String, Value> = ports.chain([key]).collect();
    let body = Json(Map::from_iter([("result".to_owned(), Value::Object(result))]));
    ([(CACHE_CONTROL, "no-store")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_outside_of_http_is_a_whole_one() {
        let text = String::from_utf8(Refusal::PlainHttp.into_bytes()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())));
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!((&body["result"], &body["code"]), (&Value::Null, &Value::from("plain_http")));
    }

    #[test]
    fn a_body_that_is_refused_is_what_the_contract_says() {
        let text = serde_json::to_string(&Refusal::TooLarge { limit_bytes: 9 }.body()).unwrap();
        assert_eq!(text, r#"{"result":null,"error":"the body is larger than 9 bytes","code":"too_large"}"#);
    }
}
