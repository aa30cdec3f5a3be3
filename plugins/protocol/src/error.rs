//! Errors as a status and a body.

use host_core::{ErrorKind, PluginError, Retry, chain};
use host_plugin_abi::{CANCELLED, UNIMPLEMENTED};
use serde::{Deserialize, Serialize};

use crate::Encoding;

/// More text than this tells nobody anything.
const MESSAGE_LIMIT: usize = 4096;

#[derive(Serialize, Deserialize)]
struct Body {
    message: String,
    #[serde(default)]
    retry: Option<RetryWord>,
}

#[derive(Serialize, Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum RetryWord {
    Never,
    Later,
}

/// In the order of their statuses, from 1.
const KINDS: [ErrorKind; 10] = [
    ErrorKind::NotFound,
    ErrorKind::Conflict,
    ErrorKind::AddressInUse,
    ErrorKind::Invalid,
    ErrorKind::Denied,
    ErrorKind::Unsupported,
    ErrorKind::Unavailable,
    ErrorKind::Timeout,
    ErrorKind::Exhausted,
    ErrorKind::Internal,
];
const INTERNAL: i32 = 10;

/// Its causes become part of its text.
pub fn encode_error(encoding: Encoding, error: &PluginError) -> (i32, Vec<u8>) {
    let place = KINDS.iter().position(|kind| *kind == error.kind());
    let status = place.and_then(|place| i32::try_from(place + 1).ok()).unwrap_or(INTERNAL);
    let retry = match error.retry() {
        Retry::Never => RetryWord::Never,
        Retry::Later => RetryWord::Later,
    };
    let body = Body { message: limited(chain(error)), retry: Some(retry) };
    (status, encoding.encode(&body).unwrap_or_default())
}

/// What is no [`encode_error`]'s body is taken for plain text; an unknown status for `Internal`.
pub fn decode_error(encoding: Encoding, status: i32, body: &[u8]) -> PluginError {
    let known = usize::try_from(status).ok().and_then(|status| KINDS.get(status.checked_sub(1)?).copied());
    let body = encoding
        .decode::<Body>(body)
        .unwrap_or_else(|_| Body { message: String::from_utf8_lossy(body).into_owned(), retry: None });
    let message = match (known, status) {
        (None, CANCELLED) => "the plugin says that the call was cancelled".to_owned(),
        (None, UNIMPLEMENTED) => "the plugin does not do that".to_owned(),
        (None, _) => format!("the plugin answers with the unknown status {status}: {}", body.message),
        (Some(kind), _) if body.message.is_empty() => {
            format!("the plugin says no more than {}", kind.as_str())
        }
        (Some(_), _) => body.message,
    };
    let kind = match status {
        UNIMPLEMENTED => ErrorKind::Unsupported,
        _ => known.unwrap_or(ErrorKind::Internal),
    };
    let error = PluginError::new(kind, limited(message));
    match body.retry {
        Some(RetryWord::Never) => error.with_retry(Retry::Never),
        Some(RetryWord::Later) => error.with_retry(Retry::Later),
        None => error,
    }
}

fn limited(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MESSAGE_LIMIT));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_kind_retry_and_causes() {
        for encoding in [Encoding::Json, Encoding::Msgpack] {
            for kind in KINDS {
                let cause = std::io::Error::other("the cause");
                let error = PluginError::new(kind, "the text").with_source(cause).with_retry(Retry::Later);
                let (status, body) = encode_error(encoding, &error);
                let read = decode_error(encoding, status, &body);
                assert_eq!((read.kind(), read.retry()), (kind, Retry::Later));
                assert_eq!(read.to_string(), "the text: the cause");
            }
        }
    }

    #[test]
    fn plain_text_and_unknown_statuses_are_told() {
        let plain = decode_error(Encoding::Json, 5, b"no such key");
        assert_eq!((plain.kind(), plain.to_string().as_str()), (ErrorKind::Denied, "no such key"));
        let strange = decode_error(Encoding::Json, 77, b"?");
        assert_eq!(strange.kind(), ErrorKind::Internal);
        assert!(strange.to_string().contains("77"));
    }
}
