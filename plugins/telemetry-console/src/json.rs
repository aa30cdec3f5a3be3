//! One JSON object a line.

use host_core::telemetry::{Level, Record};
use serde::Serialize;

use crate::{clock, escape::Harmless};

#[derive(Serialize)]
struct Line<'a> {
    /// RFC 3339, UTC, to the microsecond.
    ts: String,
    level: Level,
    target: &'a str,
    message: &'a str,
    fields: &'a serde_json::Map<String, serde_json::Value>,
    /// The instance's name, once it is known.
    instance: Option<&'a str>,
    environment: &'a str,
}

/// Appends the record and a line end.
pub(crate) fn push(text: &mut Vec<u8>, record: &Record) {
    let line = Line {
        ts: clock::rfc3339(record.at),
        level: record.level,
        target: record.target,
        message: &record.message,
        fields: &record.fields,
        instance: record.instance.as_ref().map(|facts| facts.name.as_str()),
        environment: &record.environment,
    };
    let mut json = serde_json::Serializer::with_formatter(&mut *text, Harmless);
    // Strings and JSON values into memory: nothing here can fail.
    line.serialize(&mut json).ok();
    text.push(b'\n');
}
