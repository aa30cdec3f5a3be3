//! The bulk listener, as logz.io documents it: lines of JSON, perhaps compressed, the token in the query.

use bytes::Bytes;
use http::request::Parts;
use serde_json::{Value, json};

use crate::{Arrived, Reply, TOKEN, plain};

/// What is taken at once, before compression.
pub const LARGEST_BODY_BYTES: usize = 10_485_760;
/// Longer lines are not taken.
pub const LONGEST_LINE_BYTES: usize = 500_000;

pub(crate) fn take(parts: &Parts, body: &Bytes, arrived: &mut Arrived) -> Reply {
    let query = parts.uri.query().unwrap_or_default();
    let token = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "token");
    if token.is_none_or(|(_, token)| token != TOKEN) {
        return Reply::new(401, "");
    }
    let Ok(text) = plain(&parts.headers, body) else { return Reply::new(400, "no such encoding") };
    if text.len() > LARGEST_BODY_BYTES {
        return Reply::new(413, "");
    }
    let (mut good, mut malformed, mut oversized, mut empty) = (0, 0, 0, 0);
    for line in text.strip_suffix(b"\n").unwrap_or(&text).split(|byte| *byte == b'\n') {
        match serde_json::from_slice::<Value>(line) {
            _ if line.is_empty() => empty += 1,
            _ if line.len() > LONGEST_LINE_BYTES => oversized += 1,
            Ok(Value::Object(_)) => {
                good += 1;
                arrived.lines.push(String::from_utf8_lossy(line).into_owned());
            }
            _ => malformed += 1,
        }
    }
    if malformed + oversized + empty == 0 {
        return Reply::new(200, "");
    }
    let account = json!({
        "malformedLines": malformed, "successfulLines": good, "oversizedLines": oversized, "emptyLogLines": empty
    });
    Reply::new(400, account.to_string())
}
