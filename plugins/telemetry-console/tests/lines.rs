//! What lines look like, to people and to machines.
#![cfg(test)]

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use host_core::{
    pubsub::InstanceFacts,
    telemetry::{Level, Record, Telemetry},
};
use serde_json::{Value, json};
use telemetry_console::{Console, Look};

const PLAIN: Look = Look::Pretty { colour: false };
const COLOURED: Look = Look::Pretty { colour: true };

#[derive(Debug, Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What the console writes for these records.
fn written(look: Look, records: impl IntoIterator<Item = Record>) -> String {
    let buffer = Buffer::default();
    let console = Console::new(buffer.clone(), look, 100).unwrap();
    for record in records {
        console.record(&Arc::new(record));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(console.flush(Duration::from_secs(10))).unwrap();
    String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
}

fn record(level: Level, message: &str, fields: Value) -> Record {
    let Value::Object(fields) = fields else { panic!("fields are an object") };
    Record {
        at: SystemTime::UNIX_EPOCH + Duration::from_micros(1_633_366_678_649_123),
        level,
        target: "host_service::mandelbox",
        message: message.to_owned(),
        fields,
        instance: None,
        environment: Arc::from("localdev"),
    }
}

#[test]
fn a_line_for_people_has_time_level_mandelbox_message_and_fields() {
    let records = [
        record(Level::Info, "host is active", json!({"capacity": 6})),
        record(
            Level::Info,
            "container started",
            json!({"mandelbox": "mandelbox-1", "port_32262": 1025, "image": "a/b:c"}),
        ),
        record(
            Level::Error,
            "spin-up failed",
            json!({"mandelbox": "m", "error": "no such image: \"x\"", "empty": "", "list": ["a", 1]}),
        ),
        record(Level::Debug, "polled", json!({"mandelbox": 7})),
    ];
    assert_eq!(
        written(PLAIN, records),
        "16:57:58.649  INFO host is active capacity=6\n\
         16:57:58.649  INFO mandelbox-1 container started image=a/b:c port_32262=1025\n\
         16:57:58.649 ERROR m spin-up failed empty=\"\" error=\"no such image: \\\"x\\\"\" list=[\"a\",1]\n\
         16:57:58.649 DEBUG polled mandelbox=7 (host_service::mandelbox)\n"
    );
}

#[test]
fn colours_add_nothing_but_colours() {
    let coloured = written(COLOURED, [record(Level::Warn, "slow", json!({"mandelbox": "m-1", "ms": 12}))]);
    let plain = "16:57:58.649  WARN m-1 slow ms=12\n";
    assert!(coloured.contains("\x1b[1m\x1b[33m WARN\x1b[0m"), "{coloured:?}");
    assert_eq!(anstream::adapter::strip_str(&coloured).to_string(), plain);
}

#[test]
fn mandelboxes_side_by_side_differ_in_colour() {
    let colour = |id: &str| {
        let line = written(COLOURED, [record(Level::Info, "x", json!({"mandelbox": id}))]);
        let (before, _) = line.split_once(id).unwrap();
        before.rsplit_once('\x1b').unwrap().1.to_owned()
    };
    assert_eq!(colour("m-1"), colour("m-1"));
    let colours: std::collections::BTreeSet<_> = (0..20).map(|n| colour(&format!("m-{n}"))).collect();
    assert!(colours.len() > 3, "{colours:?}");
}

#[test]
fn a_line_for_machines_has_every_key() {
    let facts = InstanceFacts {
        name: "host-1".parse().unwrap(),
        cloud_id: "i-1".to_owned(),
        image_id: "ami-1".to_owned(),
        region: "us-east-1".to_owned(),
        instance_type: "g4dn.xlarge".to_owned(),
        ip: "192.0.2.1".to_owned(),
        commit: "0123456".to_owned(),
    };
    let fields = json!({"mandelbox": "m-1", "ports": {"32262": 1025}});
    let record = Record { instance: Some(Arc::new(facts)), ..record(Level::Warn, "slow", fields.clone()) };
    let line: Value = serde_json::from_str(&written(Look::Json, [record])).unwrap();
    assert_eq!(
        line,
        json!({
            "ts": "2021-10-04T16:57:58.649123Z",
            "level": "warn",
            "target": "host_service::mandelbox",
            "message": "slow",
            "fields": fields,
            "instance": "host-1",
            "environment": "localdev",
        })
    );
}
