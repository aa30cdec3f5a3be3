//! The program run directly, as a process, against the contract and its own misbehaviours.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const KEY: &str = "00112233445566778899aabbccddeeff";
const ANNOUNCEMENT: &str = "done_sleeping_until_X_clients";
const DEADLINE: Duration = Duration::from_secs(10);

/// A running program with its directory; dropping it kills it.
struct Mandelbox {
    process: Child,
    log: BufReader<ChildStderr>,
    directory: TempDir,
}

impl Mandelbox {
    fn start(words: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), words)
    }

    fn start_in(directory: TempDir, words: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_test-mandelbox"))
            .args(words)
            .env_clear()
            .env("MANDELBOX_MAPPINGS", directory.path())
            .env("MANDELBOX_PORTS", "0,0,0")
            .env("FRACTAL_MANDELBOX_ID", "box-1")
            .env("FRACTAL_AES_KEY", KEY)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        Self { process, log, directory }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// Does the host's part: the files, then `.ready`.
    fn make_ready(&self) {
        give_files(self.directory.path(), "-1");
        fs::write(self.path(".ready"), "").unwrap();
    }

    /// The first line from here on that contains `text`; the test runner's time-out is the deadline.
    fn line_with(&mut self, text: &str) -> String {
        let mut lines = self.log.by_ref().lines().map(Result::unwrap);
        lines
            .find(|line| line.contains(text))
            .unwrap_or_else(|| panic!("it ended without a line with '{text}'"))
    }

    /// Where it listens, in the order in which it says so: 32263/udp, 32262/tcp, 32273/tcp.
    fn addresses(&mut self) -> [SocketAddr; 3] {
        [(); 3].map(|()| {
            let line = self.line_with("listens for");
            let port = line.rsplit(':').next().unwrap().parse().unwrap();
            SocketAddr::from(([127, 0, 0, 1], port))
        })
    }

    fn is_announced(&self) -> bool {
        self.path(ANNOUNCEMENT).exists()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }
}

impl Drop for Mandelbox {
    fn drop(&mut self) {
        let _already_dead = self.process.kill();
        let _already_reaped = self.process.wait();
    }
}

fn give_files(directory: &Path, timeout: &str) {
    let files = [
        ("hostPort_for_my_32262_tcp", "4001\n"),
        ("tty", "12\n"),
        ("gpu_index", "0"),
        ("timeout", timeout),
        ("config.json", r#"{"dark_mode":true,"note":"<b>"}"#),
    ];
    for (name, content) in files {
        fs::write(directory.join(name), content).unwrap();
    }
}

/// Sends one request and returns the whole answer.
fn request(address: SocketAddr, line: &str) -> String {
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "{line} HTTP/1.1\r\nHost: box\r\nContent-Length: 4\r\n\r\nbody").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[test]
fn serves_what_it_was_given_on_all_three_ports() {
    let mut mandelbox = Mandelbox::start(&[]);
    mandelbox.line_with("waits for .ready");
    assert!(!mandelbox.is_announced());
    mandelbox.make_ready();
    let [udp, tcp, tcp_too] = mandelbox.addresses();
    mandelbox.line_with("takes its client");
    assert!(mandelbox.is_announced());

    for address in [tcp, tcp_too] {
        let facts: Value = serde_json::from_str(body(&request(address, "GET /facts.json"))).unwrap();
        assert_eq!(facts["id"], "box-1");
        assert_eq!(facts["tty"], 12);
        assert_eq!(facts["gpu_index"], 0);
        assert_eq!(facts["timeout_seconds"], -1);
        assert_eq!(facts["host_ports"]["32262/tcp"], 4001);
        assert_eq!(facts["config_json"], r#"{"dark_mode":true,"note":"<b>"}"#);
        assert_eq!(facts["aes_key"], KEY);
        assert_eq!(facts["aes_key_is_32_hex_digits"], true);
        assert!(facts["env_names"].as_array().unwrap().contains(&"FRACTAL_AES_KEY".into()));
        assert_eq!(facts["cap_eff"].as_str().unwrap().len(), 16);
    }

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.send_to(b"who?", udp).unwrap();
    let mut answer = [0; 16];
    let length = socket.recv(&mut answer).unwrap();
    assert_eq!(&answer[..length], b"box-1");
}

#[test]
fn the_page_escapes_what_it_shows_and_hides_the_key() {
    let mut mandelbox = Mandelbox::start(&[]);
    mandelbox.make_ready();
    let [_, tcp, _] = mandelbox.addresses();
    let page = request(tcp, "GET /");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(page.contains("<code>box-1</code>"));
    assert!(page.contains("host port 4001"));
    assert!(page.contains("&lt;b&gt;"));
    assert!(!page.contains(KEY));
}

#[test]
fn wrong_requests_are_told_so_and_harm_nobody() {
    let mut mandelbox = Mandelbox::start(&[]);
    mandelbox.make_ready();
    let [_, tcp, _] = mandelbox.addresses();
    assert!(request(tcp, "GET /nothing").starts_with("HTTP/1.1 404 "));
    assert!(request(tcp, "DELETE /exit").starts_with("HTTP/1.1 405 "));
    assert_eq!(request(tcp, "nonsense"), request(tcp, "nonsense"));
    drop(TcpStream::connect(tcp).unwrap());
    assert!(request(tcp, "GET /").starts_with("HTTP/1.1 200 "));
}

#[test]
fn ready_before_the_start_is_seen() {
    let directory = tempfile::tempdir().unwrap();
    give_files(directory.path(), "-1");
    fs::write(directory.path().join(".ready"), "").unwrap();
    Mandelbox::start_in(directory, &[]).line_with("takes its client");
}

#[test]
fn ready_moved_into_place_is_seen() {
    let mut mandelbox = Mandelbox::start(&[]);
    mandelbox.line_with("waits for .ready");
    fs::write(mandelbox.path("unfinished"), "").unwrap();
    fs::rename(mandelbox.path("unfinished"), mandelbox.path(".ready")).unwrap();
    mandelbox.line_with("takes its client");
}

#[test]
fn without_its_directory_it_fails() {
    let directory = tempfile::tempdir().unwrap();
    fs::remove_dir(directory.path()).unwrap();
    assert_eq!(Mandelbox::start_in(directory, &[]).end().code(), Some(1));
}

#[test]
fn leaves_when_no_client_comes_in_time() {
    let mut mandelbox = Mandelbox::start(&[]);
    give_files(mandelbox.directory.path(), "0");
    fs::write(mandelbox.path(".ready"), "").unwrap();
    mandelbox.line_with("no client in 0 s");
    assert_eq!(mandelbox.end().code(), Some(0));
}

#[test]
fn stays_once_a_client_has_come() {
    let mut mandelbox = Mandelbox::start(&[]);
    give_files(mandelbox.directory.path(), "30");
    fs::write(mandelbox.path(".ready"), "").unwrap();
    let [_, tcp, _] = mandelbox.addresses();
    drop(TcpStream::connect(tcp).unwrap());
    mandelbox.line_with("its client has come");
    assert!(request(tcp, "GET /").starts_with("HTTP/1.1 200 "));
}

#[test]
fn exits_as_asked() {
    let mut mandelbox = Mandelbox::start(&[]);
    mandelbox.make_ready();
    let [_, tcp, _] = mandelbox.addresses();
    assert_eq!(body(&request(tcp, "POST /exit?code=7")), "goodbye\n");
    assert_eq!(mandelbox.end().code(), Some(7));
}

#[test]
fn sigterm_ends_it_well_at_any_time() {
    for ready in [false, true] {
        let mut mandelbox = Mandelbox::start(&[]);
        mandelbox.line_with("waits for .ready");
        if ready {
            mandelbox.make_ready();
            mandelbox.line_with("takes its client");
        }
        mandelbox.signal(Signal::TERM);
        assert_eq!(mandelbox.end().code(), Some(0));
    }
}

#[test]
fn fork_bomb_counts_its_children_and_ends_them() {
    let mut mandelbox = Mandelbox::start(&[]);
    mandelbox.make_ready();
    let [_, tcp, _] = mandelbox.addresses();
    let report: Value = serde_json::from_str(body(&request(tcp, "POST /fork-bomb?n=20"))).unwrap();
    assert_eq!(report["started"], 20);
    assert_eq!(report["error"], Value::Null);
}

#[test]
fn exit_at_once_exits_with_its_code() {
    assert_eq!(Mandelbox::start(&["exit-at-once"]).end().code(), Some(1));
    assert_eq!(Mandelbox::start(&["exit-at-once", "3"]).end().code(), Some(3));
}

#[test]
fn unknown_words_are_refused() {
    let mut mandelbox = Mandelbox::start(&["be-nice"]);
    mandelbox.line_with("be-nice");
    assert_eq!(mandelbox.end().code(), Some(64));
}

#[test]
fn never_ready_serves_but_does_not_announce() {
    let mut mandelbox = Mandelbox::start(&["never-ready"]);
    mandelbox.make_ready();
    let [_, tcp, _] = mandelbox.addresses();
    mandelbox.line_with("never ready");
    assert!(request(tcp, "GET /").starts_with("HTTP/1.1 200 "));
    assert!(!mandelbox.is_announced());
}

#[test]
fn slow_ready_announces_late() {
    let mut mandelbox = Mandelbox::start(&["slow-ready", "300"]);
    mandelbox.make_ready();
    let ready = Instant::now();
    mandelbox.line_with("takes its client");
    assert!(ready.elapsed() >= Duration::from_millis(290), "{:?}", ready.elapsed());
}

#[test]
fn ignore_sigterm_must_be_killed() {
    let mut mandelbox = Mandelbox::start(&["ignore-sigterm"]);
    mandelbox.line_with("waits for .ready");
    mandelbox.signal(Signal::TERM);
    mandelbox.line_with("would rather stay");
    mandelbox.make_ready();
    mandelbox.line_with("takes its client");
}

#[test]
fn symlink_attack_lays_its_links_and_goes_on() {
    let canary = tempfile::tempdir().unwrap();
    let target = canary.path().join("canary");
    let mut mandelbox = Mandelbox::start(&["symlink-attack", target.to_str().unwrap()]);
    mandelbox.line_with("put links");
    for name in ["config.json", ".ready"] {
        assert_eq!(fs::read_link(mandelbox.path(name)).unwrap(), target);
    }
    assert_eq!(fs::read_link(mandelbox.path("escape")).unwrap(), Path::new("../.."));

    // A host that knows its trade replaces the links, and the mandelbox goes on.
    for name in ["config.json", ".ready"] {
        fs::write(mandelbox.path("new"), "{}").unwrap();
        fs::rename(mandelbox.path("new"), mandelbox.path(name)).unwrap();
    }
    mandelbox.line_with("takes its client");
    assert!(!target.exists());
}

#[test]
fn symlink_attack_is_not_deceived_by_its_own_link() {
    let mut mandelbox = Mandelbox::start(&["symlink-attack", "./here"]);
    mandelbox.line_with("put links");
    fs::write(mandelbox.path("here"), "").unwrap();
    symlink("here", mandelbox.path("another")).unwrap();
    assert!(mandelbox.path(".ready").exists());
    assert!(!mandelbox.is_announced());
    mandelbox.signal(Signal::TERM);
    assert_eq!(mandelbox.end().code(), Some(0));
    assert!(!mandelbox.is_announced());
}
