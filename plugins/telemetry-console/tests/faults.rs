//! Standard error that is slow, closed, full or non-blocking.
#![cfg(test)]

use std::{
    io::{self, BufRead, BufReader, Write},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant, SystemTime},
};

use host_core::{
    ErrorKind,
    telemetry::{Level, Record, Telemetry},
};
use serde_json::{Map, Value};
use telemetry_console::{Console, Look};

const PATIENCE: Duration = Duration::from_secs(10);

fn record(message: &str) -> Arc<Record> {
    Arc::new(Record {
        at: SystemTime::now(),
        level: Level::Info,
        target: "test",
        message: message.to_owned(),
        fields: Map::new(),
        instance: None,
        environment: Arc::from("localdev"),
    })
}

fn messages(text: &str) -> Vec<String> {
    let message = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["message"].as_str().unwrap().to_owned()
    };
    text.lines().map(message).collect()
}

#[tokio::test]
async fn what_was_dropped_is_told_when_there_is_room_again() {
    let (reader, writer) = io::pipe().unwrap();
    let console = Console::new(writer, Look::Json, 10).unwrap();
    let (long, moment) = (record(&"x".repeat(1000)), Duration::from_millis(100));
    let mut sent = 0;
    let mut send = || {
        console.record(&long);
        sent += 1;
    };
    let error = loop {
        send();
        if let Err(error) = console.flush(moment).await {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::Timeout, "a full pipe stops the writer");
    while console.dropped() < 100 {
        send();
    }
    let dropped = console.dropped();

    let (told, telling) = mpsc::channel();
    let reading = std::thread::spawn(move || {
        let mut lines = 0;
        for line in BufReader::new(reader).lines() {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            match line["fields"]["records"].as_u64() {
                Some(count) => told.send(count).unwrap(),
                None => lines += 1,
            }
        }
        lines
    });
    console.flush(PATIENCE).await.unwrap();
    assert_eq!(telling.recv_timeout(PATIENCE).unwrap(), dropped);
    console.record(&record("afterwards"));
    drop(console);
    assert_eq!(reading.join().unwrap() + dropped, sent + 1);
    assert!(telling.try_recv().is_err(), "it was told twice");
}

#[tokio::test]
async fn a_closed_pipe_costs_records_and_nothing_else() {
    let (reader, writer) = io::pipe().unwrap();
    let console = Console::new(writer, Look::Json, 10_000).unwrap();
    drop(reader);
    for _ in 0..1000 {
        console.record(&record("into the void"));
    }
    console.flush(PATIENCE).await.unwrap();
    assert_eq!(console.dropped(), 1000);
}

#[tokio::test]
async fn an_end_does_not_wait_for_a_blocked_pipe() {
    let (reader, writer) = io::pipe().unwrap();
    let console = Console::new(writer, Look::Json, 10_000).unwrap();
    for _ in 0..1000 {
        console.record(&record(&"x".repeat(1000)));
    }
    let begun = Instant::now();
    drop(console);
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    drop(reader);
}

/// A non-blocking terminal: full every other time, and interrupted in between.
#[derive(Default)]
struct Reluctant {
    calls: usize,
    text: Arc<Mutex<Vec<u8>>>,
}

impl Write for Reluctant {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.calls += 1;
        match self.calls % 3 {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            1 => Err(io::ErrorKind::Interrupted.into()),
            _ => self.text.lock().unwrap().write(&bytes[..bytes.len().min(1000)]),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_non_blocking_terminal_loses_nothing() {
    let sink = Reluctant::default();
    let text = Arc::clone(&sink.text);
    let console = Console::new(sink, Look::Json, 100).unwrap();
    let sent: Vec<_> = (0..100).map(|n| format!("number {n}")).collect();
    for message in &sent {
        console.record(&record(message));
    }
    console.flush(PATIENCE).await.unwrap();
    assert_eq!(messages(&String::from_utf8(text.lock().unwrap().clone()).unwrap()), sent);
}

/// A disk that becomes full in the middle of a line, and has room again.
struct FullAfter {
    room: usize,
    text: Arc<Mutex<Vec<u8>>>,
    refused: bool,
}

impl Write for FullAfter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.room == 0 && !self.refused {
            self.refused = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        let taken = if self.refused { bytes.len() } else { bytes.len().min(self.room) };
        self.room = self.room.saturating_sub(taken);
        self.text.lock().unwrap().extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_torn_line_does_not_spoil_the_next_one() {
    let text = Arc::default();
    let sink = FullAfter { room: 30, text: Arc::clone(&text), refused: false };
    let console = Console::new(sink, Look::Pretty { colour: false }, 10).unwrap();
    console.record(&record("a line that is longer than the room there is"));
    console.flush(PATIENCE).await.unwrap();
    console.record(&record("next"));
    console.flush(PATIENCE).await.unwrap();
    let text = String::from_utf8(text.lock().unwrap().clone()).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[1].ends_with("WARN records were dropped records=1 since_start=1"), "{text}");
    assert!(lines[2].ends_with("INFO next"), "{text}");
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(console.dropped(), 1);
}
