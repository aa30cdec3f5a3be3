//! What a record costs its caller, and how fast lines are written: `cargo bench -p telemetry-console`.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and may panic")]

use std::{
    hint::black_box,
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use host_core::telemetry::{Level, Record, Telemetry};
use serde_json::json;
use telemetry_console::{Console, Look};

const CALLS: usize = 100_000;

fn main() {
    println!("record() on the caller's side, ns     p50     p99   p99.9  dropped");
    calls("one now and then", 8192, io::sink(), CALLS / 50, || {
        thread::sleep(Duration::from_micros(200));
    });
    calls("burst, queue has room", 1 << 20, io::sink(), CALLS, || {});
    calls("burst, queue full", 64, Blocked, CALLS, || {});
    throughput("json", Look::Json);
    throughput("pretty", Look::Pretty { colour: true });
}

/// A standard error that nobody reads.
struct Blocked;

impl io::Write for Blocked {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        loop {
            thread::park();
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn calls(name: &str, queue: usize, sink: impl io::Write + Send + 'static, calls: usize, before: impl Fn()) {
    let console = Console::new(sink, Look::Json, queue).unwrap();
    let record = record();
    let mut took = Vec::with_capacity(calls);
    for _ in 0..calls {
        before();
        let begun = Instant::now();
        console.record(black_box(&record));
        took.push(begun.elapsed().as_nanos());
    }
    took.sort_unstable();
    let at = |permille: usize| took[took.len() * permille / 1000];
    println!("{name:34} {:7} {:7} {:7} {:8}", at(500), at(990), at(999), console.dropped());
}

fn throughput(name: &str, look: Look) {
    let file = std::fs::File::create("/dev/null").unwrap();
    let console = Console::new(file, look, CALLS).unwrap();
    let record = record();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let begun = Instant::now();
    for _ in 0..CALLS {
        console.record(&record);
    }
    runtime.block_on(console.flush(Duration::from_secs(60))).unwrap();
    let a_second = u128::try_from(CALLS).unwrap() * 1000 / begun.elapsed().as_millis().max(1);
    println!("{name} lines a second: {a_second}, dropped {}", console.dropped());
}

fn record() -> Arc<Record> {
    let fields = json!({"mandelbox": "182cas8923jnckku023ind3", "port_32262": 1025, "image": "browsers/chrome", "took_ms": 132});
    Arc::new(Record {
        at: SystemTime::now(),
        level: Level::Info,
        target: "host_service::mandelbox",
        message: "container started".to_owned(),
        fields: fields.as_object().unwrap().clone(),
        instance: None,
        environment: Arc::from("localdev"),
    })
}
