//! One record as one line. The names of the fields are those that the fleet's dashboards know: its first host service
//! had them.

use host_core::telemetry::{Level, MANDELBOX, Record};
use serde::Serialize;
use serde_json::{Map, Value};
use telemetry_http::text::{harmless, harmless_json, rfc3339};

/// The listener drops longer ones.
const LONGEST_LINE_BYTES: usize = 500_000;
/// What is left of the message of a record that is too long.
const LONGEST_MESSAGE_BYTES: usize = 32 << 10;

#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "@timestamp")]
    timestamp: String,
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
    component: &'static str,
    sub_component: &'static str,
    environment: &'a str,
    level: Level,
    target: &'a str,
    #[serde(flatten)]
    instance: Option<Instance<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mandelbox: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fields: Option<Fields<'a>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

#[derive(Serialize)]
struct Instance<'a> {
    aws_instance_id: &'a str,
    aws_ami_id: &'a str,
    aws_instance_type: &'a str,
    region: &'a str,
    instance_name: &'a str,
    commit: &'a str,
}

/// The other fields, together: their values are of any type, which an index does not like at its top.
struct Fields<'a>(&'a Map<String, Value>);

impl Serialize for Fields<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().filter(|(name, value)| *name != MANDELBOX || !value.is_string()))
    }
}

/// Appends the record and a line end.
pub(crate) fn push(text: &mut Vec<u8>, record: &Record) {
    let mut line = Line {
        timestamp: rfc3339(record.at),
        kind: kind(record.level),
        message: &record.message,
        component: "backend",
        sub_component: "host-service",
        environment: &record.environment,
        level: record.level,
        target: record.target,
        instance: record.instance.as_ref().map(|facts| Instance {
            aws_instance_id: &facts.cloud_id,
            aws_ami_id: &facts.image_id,
            aws_instance_type: &facts.instance_type,
            region: &facts.region,
            instance_name: facts.name.as_str(),
            commit: &facts.commit,
        }),
        mandelbox: record.mandelbox(),
        fields: (!record.fields.is_empty()).then_some(Fields(&record.fields)),
        truncated: false,
    };
    // Strings and JSON values into memory: nothing here can fail.
    let mut json = serde_json::to_string(&line).unwrap_or_default();
    if json.len() * 2 > LONGEST_LINE_BYTES && harmless_json(&json).len() >= LONGEST_LINE_BYTES {
        let message = harmless(&record.message, LONGEST_MESSAGE_BYTES);
        (line.message, line.fields, line.truncated) = (&message, None, true);
        json = serde_json::to_string(&line).unwrap_or_default();
    }
    text.extend_from_slice(harmless_json(&json).as_bytes());
    text.push(b'\n');
}

/// The three that there were.
fn kind(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info | Level::Debug | Level::Trace => "info",
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::SystemTime};

    use host_core::pubsub::InstanceFacts;
    use serde_json::json;

    use super::*;

    fn record(message: &str, fields: &Value) -> Record {
        Record {
            at: SystemTime::UNIX_EPOCH,
            level: Level::Warn,
            target: "test",
            message: message.to_owned(),
            fields: fields.as_object().unwrap().clone(),
            instance: Some(Arc::new(InstanceFacts {
                name: "host-1".parse().unwrap(),
                cloud_id: "i-1".to_owned(),
                image_id: "ami-1".to_owned(),
                region: "us-east-1".to_owned(),
                instance_type: "g4dn.xlarge".to_owned(),
                ip: "192.0.2.1".to_owned(),
                commit: "0123456".to_owned(),
            })),
            environment: Arc::from("prod"),
        }
    }

    fn line(record: &Record) -> Value {
        let mut text = Vec::new();
        push(&mut text, record);
        assert!(text.len() < LONGEST_LINE_BYTES, "{}", text.len());
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn a_line_has_the_names_that_dashboards_know() {
        let line = line(&record("spin-up failed", &json!({"mandelbox": "m-1", "port": 7})));
        let expected = json!({
            "@timestamp": "1970-01-01T00:00:00.000000Z",
            "type": "warning", "message": "spin-up failed", "component": "backend", "sub_component": "host-service",
            "environment": "prod", "level": "warn", "target": "test",
            "aws_instance_id": "i-1", "aws_ami_id": "ami-1", "aws_instance_type": "g4dn.xlarge", "region": "us-east-1",
            "instance_name": "host-1", "commit": "0123456", "mandelbox": "m-1", "fields": {"port": 7},
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_line_that_would_be_refused_is_cut() {
        let huge = "é\u{202e}".repeat(300_000);
        for record in [record(&huge, &json!({})), record("short", &json!({"huge": huge}))] {
            let line = line(&record);
            assert_eq!((&line["truncated"], &line["aws_instance_id"]), (&json!(true), &json!("i-1")));
        }
    }
}
