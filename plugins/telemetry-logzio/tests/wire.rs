//! What is on the wire, and what becomes of records when the listener does not do as it should.
#![cfg(test)]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use host_core::{
    ErrorKind,
    telemetry::{Level, Record, Telemetry},
};
use serde_json::json;
use telemetry_logzio::{Config, Logzio};
use telemetry_stand_in::{Certificate, Mood, Options, Server, TOKEN};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

fn record(message: &str) -> Arc<Record> {
    Arc::new(Record {
        at: SystemTime::now(),
        level: Level::Info,
        target: "wire",
        message: message.to_owned(),
        fields: json!({"mandelbox": "m-1"}).as_object().unwrap().clone(),
        instance: None,
        environment: Arc::from("prod"),
    })
}

fn server() -> Server {
    Server::start(Options::default()).unwrap()
}

fn config(server: &Server, spool: &Path) -> Config {
    Config {
        url: server.url().parse().unwrap(),
        token: Some(TOKEN.into()),
        spool: spool.to_owned(),
        linger: Duration::from_millis(20),
        ..Config::default()
    }
}

fn world() -> (Server, TempDir) {
    (server(), tempfile::tempdir().unwrap())
}

fn messages(server: &Server) -> Vec<String> {
    server.lines().iter().map(|line| line["message"].as_str().unwrap().to_owned()).collect()
}

fn numbered(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|n| format!("record-{n}")).collect()
}

fn send(logzio: &Logzio, messages: &[String]) {
    messages.iter().for_each(|message| logzio.record(&record(message)));
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "still no {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_batch_is_gzipped_lines_under_the_token() {
    let (server, spool) = world();
    let logzio = Logzio::new(&config(&server, spool.path())).unwrap();
    send(&logzio, &numbered(0, 3));
    logzio.flush(PATIENCE).await.unwrap();
    server.arrived(|arrived| {
        let request = &arrived.requests[0];
        assert_eq!(request.target, format!("/?token={TOKEN}"));
        assert_eq!(request.headers["content-encoding"], "gzip");
        assert_eq!(request.body[..2], [0x1f, 0x8b]);
        assert_eq!(arrived.requests.iter().map(|request| request.status).max(), Some(200));
    });
    assert_eq!(messages(&server), numbered(0, 3));
    assert_eq!(server.lines()[0]["mandelbox"], "m-1");
}

#[tokio::test]
async fn a_batch_that_is_taken_in_part_is_never_sent_again_and_the_rest_is_counted() {
    let (server, spool) = world();
    let logzio = Logzio::new(&config(&server, spool.path())).unwrap();
    server.set(Mood::Answers {
        status: 400,
        headers: Vec::new(),
        body: r#"{"malformedLines":1,"successfulLines":10,"oversizedLines":2,"emptyLogLines":4}"#,
    });
    logzio.record(&record("taken in part"));
    logzio.flush(PATIENCE).await.unwrap();
    assert_eq!(logzio.dropped() % 3, 0);
    assert!(logzio.dropped() >= 3);
    server.set(Mood::Takes);
    logzio.record(&record("afterwards"));
    logzio.flush(PATIENCE).await.unwrap();
    assert!(!messages(&server).contains(&"taken in part".to_owned()));
    assert!(messages(&server).contains(&"afterwards".to_owned()));
}

#[tokio::test]
async fn a_refused_token_is_not_tried_again_and_the_next_start_delivers() {
    let (server, spool) = world();
    let wrong = Config { token: Some("another".into()), ..config(&server, spool.path()) };
    let logzio = Logzio::new(&wrong).unwrap();
    send(&logzio, &numbered(0, 5));
    until("refusal", || server.requests() > 0).await;
    send(&logzio, &numbered(5, 10));
    // It gives up at once, not at the deadline: nothing that may be waited for can help.
    let begun = Instant::now();
    assert!(logzio.flush(PATIENCE).await.is_err());
    assert!(begun.elapsed() < PATIENCE / 2);
    assert_eq!(server.requests(), 1);
    drop(logzio);
    let logzio = Logzio::new(&config(&server, spool.path())).unwrap();
    logzio.flush(PATIENCE).await.unwrap();
    assert_eq!(messages(&server), numbered(0, 10));
}

#[tokio::test]
async fn what_is_too_much_at_once_is_split_and_what_never_fits_is_counted() {
    let (server, spool) = world();
    server.set(Mood::Stalls);
    let logzio = Logzio::new(&config(&server, spool.path())).unwrap();
    let noise = |n: usize| -> String {
        (0..200_u64)
            .map(|m| format!("{:x}", (m + 1000 * n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)))
            .collect()
    };
    for n in 0..200 {
        logzio.record(&record(&format!("record-{n} {}", noise(n))));
    }
    logzio.record(&record(&(0..50).map(noise).collect::<String>()));
    server.set(Mood::Small(20_000));
    logzio.record(&record("the last"));
    logzio.flush(PATIENCE).await.unwrap();
    let arrived: Vec<_> = messages(&server).into_iter().filter(|m| m.starts_with("record-")).collect();
    assert_eq!(arrived.len(), 200);
    let numbers = arrived.iter().map(|m| m.split(' ').next().unwrap().to_owned());
    assert_eq!(numbers.collect::<Vec<_>>(), numbered(0, 200));
    assert!(messages(&server).contains(&"the last".to_owned()));
    assert_eq!(logzio.dropped(), 1);
}

#[tokio::test]
async fn what_fails_is_sent_again_once_it_can_be() {
    for mood in [Mood::answers(503), Mood::answers(429), Mood::answers(302), Mood::answers(400)] {
        let (server, spool) = world();
        let logzio = Logzio::new(&config(&server, spool.path())).unwrap();
        server.set(mood.clone());
        send(&logzio, &numbered(0, 3));
        until("request", || server.requests() > 0).await;
        server.set(Mood::Takes);
        logzio.flush(PATIENCE).await.unwrap();
        assert_eq!((messages(&server), logzio.dropped()), (numbered(0, 3), 0), "{mood:?}");
    }
}

#[tokio::test]
async fn what_a_listener_that_hangs_did_not_take_is_delivered_after_the_next_start() {
    let (server, spool) = world();
    server.set(Mood::Stalls);
    let logzio = Logzio::new(&config(&server, spool.path())).unwrap();
    send(&logzio, &numbered(0, 1000));
    let timeout = logzio.flush(Duration::from_millis(200)).await.unwrap_err();
    assert_eq!(timeout.kind(), ErrorKind::Timeout);
    let begun = Instant::now();
    drop(logzio);
    assert!(begun.elapsed() < Duration::from_secs(5), "the end took {:?}", begun.elapsed());
    server.set(Mood::Takes);
    let logzio = Logzio::new(&config(&server, spool.path())).unwrap();
    send(&logzio, &numbered(1000, 1010));
    logzio.flush(PATIENCE).await.unwrap();
    assert_eq!(messages(&server), numbered(0, 1010));
}

#[tokio::test]
async fn a_listener_is_believed_by_its_certificate_alone() {
    let certificate = Certificate::new().unwrap();
    let spool = tempfile::tempdir().unwrap();
    let ca_file = spool.path().join("ca.pem");
    fs::write(&ca_file, certificate.pem()).unwrap();
    let stranger = spool.path().join("stranger.pem");
    fs::write(&stranger, Certificate::new().unwrap().pem()).unwrap();
    let server = Server::start(Options { certificate: Some(certificate), ..Options::default() }).unwrap();
    let config = config(&server, &spool.path().join("spool"));
    let distrustful = Logzio::new(&Config { ca_file: Some(stranger), ..config.clone() }).unwrap();
    distrustful.record(&record("record-0"));
    assert!(distrustful.flush(Duration::from_secs(1)).await.is_err());
    drop(distrustful);
    assert_eq!(server.requests(), 0);
    let logzio = Logzio::new(&Config { ca_file: Some(ca_file), ..config }).unwrap();
    logzio.flush(PATIENCE).await.unwrap();
    assert_eq!(messages(&server), numbered(0, 1));
}

#[tokio::test]
async fn without_a_token_or_with_a_spool_in_use_there_is_an_error_that_says_what_to_do() {
    let (server, spool) = world();
    let none = Logzio::new(&Config { token: None, ..config(&server, spool.path()) }).unwrap_err();
    assert!(none.to_string().contains("telemetry.logzio.token"), "{none}");
    let _first = Logzio::new(&config(&server, spool.path())).unwrap();
    let used = Logzio::new(&config(&server, spool.path())).unwrap_err();
    assert!(used.to_string().contains("telemetry.logzio.spool"), "{used}");
}

#[tokio::test]
async fn the_token_is_in_no_file_and_no_error() {
    let (server, spool) = world();
    server.set(Mood::Stalls);
    let logzio = Logzio::new(&config(&server, spool.path())).unwrap();
    logzio.record(&record("record-0"));
    let error = logzio.flush(Duration::from_millis(100)).await.unwrap_err();
    assert!(!format!("{error:?} {logzio:?}").contains(TOKEN));
    for file in fs::read_dir(spool.path()).unwrap() {
        let text = fs::read(file.unwrap().path()).unwrap();
        assert!(!text.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes()));
    }
}

/// What the spool in `dir` has accepted.
fn accepted(dir: &Path) -> Vec<String> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "ndjson"));
    files.sort();
    let text: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let message = |line: &str| {
        serde_json::from_str::<serde_json::Value>(line).unwrap()["message"].as_str().unwrap().to_owned()
    };
    whole.lines().map(message).filter(|message| message.starts_with("record-")).collect()
}

const CHILD_SPOOL: &str = "LOGZIO_CHILD_SPOOL";
const CHILD_URL: &str = "LOGZIO_CHILD_URL";

/// The process that the next test kills.
#[test]
#[ignore = "part of the next test"]
fn a_burst_without_end() {
    let Ok(spool) = std::env::var(CHILD_SPOOL) else { return };
    let config = Config {
        url: std::env::var(CHILD_URL).unwrap().parse().unwrap(),
        token: Some(TOKEN.into()),
        spool: spool.into(),
        ..Config::default()
    };
    let logzio = Logzio::new(&config).unwrap();
    for n in 0_u64.. {
        logzio.record(&record(&format!("record-{n}")));
        if n % 64 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[tokio::test]
async fn every_record_that_the_spool_accepted_before_kill_9_arrives_in_order() {
    let (server, spool) = world();
    server.set(Mood::Stalls);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_burst_without_end", "--ignored", "--nocapture"])
        .env(CHILD_SPOOL, spool.path())
        .env(CHILD_URL, server.url())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let burst = || {
        fs::metadata(spool.path().join(format!("{:020}.ndjson", 0))).is_ok_and(|file| file.len() > 200_000)
    };
    until("burst", burst).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let accepted = accepted(spool.path());
    assert!(accepted.len() > 500, "{}", accepted.len());
    server.set(Mood::Takes);
    let logzio = Logzio::new(&config(&server, spool.path())).unwrap();
    logzio.flush(PATIENCE).await.unwrap();
    let arrived: Vec<_> =
        messages(&server).into_iter().filter(|message| message.starts_with("record-")).collect();
    // What hung in flight when the process died may arrive, too.
    let again = arrived.len() - accepted.len();
    assert!(arrived[again..] == accepted, "{} arrived, {} were accepted", arrived.len(), accepted.len());
}
