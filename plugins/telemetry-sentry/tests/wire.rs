//! What is on the wire, and what becomes of errors when Sentry does not do as it should.
#![cfg(test)]

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use host_core::{
    ErrorKind,
    pubsub::InstanceFacts,
    telemetry::{Level, Record, Telemetry},
};
use serde_json::{Value, json};
use telemetry_sentry::{Config, Sentry};
use telemetry_stand_in::{Certificate, KEY, Mood, Options, Server};

const PATIENCE: Duration = Duration::from_secs(30);

fn record(level: Level, message: &str, fields: &Value) -> Arc<Record> {
    Arc::new(Record {
        at: SystemTime::now(),
        level,
        target: "host_service::spin_up",
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
    })
}

fn error(message: &str) -> Arc<Record> {
    record(Level::Error, message, &json!({}))
}

fn sentry(server: &Server) -> Sentry {
    Sentry::new(&Config { dsn: Some(server.dsn().into()), ..Config::default() }).unwrap()
}

fn server() -> Server {
    Server::start(Options::default()).unwrap()
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "still no {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_error_arrives_with_its_causes_its_host_and_what_led_to_it_and_nothing_else_arrives() {
    let server = server();
    let sentry = sentry(&server);
    for n in 0..60 {
        sentry.record(&record(Level::Info, &format!("step {n}"), &json!({"n": n})));
    }
    sentry.record(&record(Level::Warn, "slow", &json!({})));
    let fields = json!({"mandelbox": "m-1", "stage": "start", "error": "starting failed: the engine refused: no such device"});
    sentry.record(&record(Level::Error, "spin-up failed", &fields));
    sentry.flush(PATIENCE).await.unwrap();
    let request = server.arrived(|arrived| arrived.requests[0].clone());
    assert_eq!(request.target, "/api/42/envelope/");
    let auth = request.headers["x-sentry-auth"].to_str().unwrap();
    assert!(auth.starts_with("Sentry sentry_key=") && auth.contains("sentry_version=7"), "{auth}");
    let [event] = &server.events()[..] else { panic!("{:?}", server.events()) };
    let causes: Vec<_> = event["exception"]["values"].as_array().unwrap().iter().collect();
    let seen: Vec<_> = causes
        .iter()
        .map(|cause| (cause["type"].as_str().unwrap(), cause["value"].as_str().unwrap()))
        .collect();
    let expected = [
        ("caused by", "no such device"),
        ("caused by", "the engine refused"),
        ("spin-up failed", "starting failed"),
    ];
    assert_eq!(seen, expected);
    assert_eq!(event["fingerprint"], json!(["host_service::spin_up", "spin-up failed", "start"]));
    assert_eq!(
        event["tags"],
        json!({
            "instance_id": "i-1", "image_id": "ami-1", "region": "us-east-1", "instance_type": "g4dn.xlarge",
            "commit": "0123456", "mandelbox": "m-1",
        })
    );
    assert_eq!((&event["environment"], &event["server_name"]), (&json!("prod"), &json!("host-1")));
    assert_eq!(event["release"], "host-service@0123456");
    let crumbs = event["breadcrumbs"]["values"].as_array().unwrap();
    assert_eq!(crumbs.len(), 50);
    assert_eq!((&crumbs[48]["message"], &crumbs[49]["message"]), (&json!("step 59"), &json!("slow")));
    assert_eq!(crumbs[48]["data"]["n"], 59);
}

#[tokio::test]
async fn two_occurrences_are_one_group_and_two_faults_are_two() {
    let server = server();
    let sentry = sentry(&server);
    for (stage, text) in
        [("start", "port 1 is taken"), ("start", "port 2 is taken"), ("image", "no such image")]
    {
        sentry.record(&record(Level::Error, "spin-up failed", &json!({"stage": stage, "error": text})));
    }
    sentry.flush(PATIENCE).await.unwrap();
    let groups: Vec<_> = server.events().iter().map(|event| event["fingerprint"].clone()).collect();
    assert_eq!(groups[0], groups[1]);
    assert_ne!(groups[1], groups[2]);
}

#[tokio::test]
async fn a_limit_is_kept_and_the_error_is_sent_after_it() {
    let server = server();
    let sentry = sentry(&server);
    let limit = ("x-sentry-rate-limits", "1:error:organization".to_owned());
    server.set(Mood::Answers { status: 429, headers: vec![limit], body: "" });
    sentry.record(&error("limited"));
    until("request", || server.requests() > 0).await;
    server.set(Mood::Takes);
    until("event", || !server.events().is_empty()).await;
    assert_eq!((server.requests(), sentry.dropped()), (2, 0));
}

#[tokio::test]
async fn an_error_that_is_never_taken_holds_up_no_other() {
    let server = server();
    let sentry = sentry(&server);
    server.set(Mood::answers(400));
    sentry.record(&error("never taken"));
    sentry.flush(PATIENCE).await.unwrap();
    server.set(Mood::Takes);
    sentry.record(&error("taken"));
    sentry.flush(PATIENCE).await.unwrap();
    assert_eq!((server.events().len(), sentry.dropped()), (1, 1));
}

#[tokio::test]
async fn huge_texts_are_cut_rather_than_refused() {
    let server = server();
    let sentry = sentry(&server);
    let huge = json!({"error": "é".repeat(2 << 20), "deep": [[[[[[[[[["x"]]]]]]]]]]});
    (0..60).for_each(|_| sentry.record(&record(Level::Info, &"x".repeat(1 << 16), &huge)));
    sentry.record(&record(Level::Error, &"y".repeat(2 << 20), &huge));
    sentry.flush(PATIENCE).await.unwrap();
    assert_eq!((server.events().len(), sentry.dropped()), (1, 0));
}

#[tokio::test]
async fn a_server_that_accepts_and_never_answers_holds_up_neither_a_flush_nor_the_end() {
    let server = server();
    let sentry = sentry(&server);
    server.set(Mood::Stalls);
    sentry.record(&error("never answered"));
    let begun = Instant::now();
    let late = sentry.flush(Duration::from_millis(200)).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Timeout);
    drop(sentry);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_server_is_believed_by_its_certificate_alone() {
    let certificate = Certificate::new().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let (ca_file, stranger) = (scratch.path().join("ca.pem"), scratch.path().join("stranger.pem"));
    fs::write(&ca_file, certificate.pem()).unwrap();
    fs::write(&stranger, Certificate::new().unwrap().pem()).unwrap();
    let server = Server::start(Options { certificate: Some(certificate), ..Options::default() }).unwrap();
    let config =
        |ca_file| Config { dsn: Some(server.dsn().into()), ca_file: Some(ca_file), ..Config::default() };
    let distrustful = Sentry::new(&config(stranger)).unwrap();
    distrustful.record(&error("not sent"));
    assert!(distrustful.flush(Duration::from_secs(1)).await.is_err());
    assert_eq!(server.requests(), 0);
    let sentry = Sentry::new(&config(ca_file)).unwrap();
    sentry.record(&error("sent"));
    sentry.flush(PATIENCE).await.unwrap();
    assert_eq!(server.events().len(), 1);
}

#[tokio::test]
async fn what_is_no_dsn_is_refused_without_being_quoted() {
    for wrong in ["", "nonsense", "https://host/1", "ftp://key@host/1"] {
        let error = Sentry::new(&Config { dsn: Some(wrong.into()), ..Config::default() }).unwrap_err();
        assert!(error.to_string().contains("telemetry.sentry.dsn"), "{error}");
    }
    let server = server();
    let sentry = sentry(&server);
    let config = Config { dsn: Some(server.dsn().into()), ..Config::default() };
    assert!(!format!("{config:?} {sentry:?}").contains(KEY));
}
