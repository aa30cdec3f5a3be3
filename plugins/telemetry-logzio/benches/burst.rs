//! What records cost with two plugins attached, and whether a burst is lost: 50,000 records a second for ten seconds, to a
//! listener that takes its time for each answer. `cargo bench -p telemetry-logzio`.
#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program that prints, and ends at what goes wrong"
)]

use std::{
    hint::black_box,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use host_core::telemetry::{Level, Record, Telemetry};
use serde_json::json;
use telemetry_logzio::{Config, Logzio};
use telemetry_sentry::Sentry;
use telemetry_stand_in::{Mood, Options, Server, TOKEN};

const A_SECOND: u32 = 50_000;
const SECONDS: u32 = 10;
/// As often as a timer of a busy machine can be relied on.
const TICKS: u32 = 100;
const SLOW: Duration = Duration::from_millis(300);

fn main() {
    let server = Server::start(Options::default()).unwrap();
    server.set(Mood::Slow(SLOW));
    let spool = tempfile::tempdir().unwrap();
    let logzio = Logzio::new(&Config {
        url: server.url().parse().unwrap(),
        token: Some(TOKEN.into()),
        spool: spool.path().to_owned(),
        ..Config::default()
    });
    let sentry =
        Sentry::new(&telemetry_sentry::Config { dsn: Some(server.dsn().into()), ..Default::default() });
    let plugins: [Arc<dyn Telemetry>; 2] = [Arc::new(logzio.unwrap()), Arc::new(sentry.unwrap())];

    let begun = Instant::now();
    let mut took = Vec::with_capacity((A_SECOND * SECONDS) as usize);
    for tick in 0..TICKS * SECONDS {
        for n in 0..A_SECOND / TICKS {
            let record = record(tick * (A_SECOND / TICKS) + n);
            let called = Instant::now();
            plugins.iter().for_each(|plugin| plugin.record(black_box(&record)));
            took.push(called.elapsed().as_nanos());
        }
        let next = begun + Duration::from_secs(1) / TICKS * (tick + 1);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let lasted = begun.elapsed();
    took.sort_unstable();
    let at = |permille: usize| took[took.len() * permille / 1000];
    println!("record() to both plugins, ns: p50 {}, p99 {}, p99.9 {}", at(500), at(990), at(999));
    println!("{} records in {lasted:.2?}, the listener taking {SLOW:?} for each batch", took.len());

    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let flushed = Instant::now();
    runtime.block_on(plugins[0].flush(Duration::from_secs(120))).unwrap();
    let arrived = server.arrived(|arrived| arrived.lines.len());
    println!(
        "delivered {:.2?} later: {arrived}, dropped {} and {}",
        flushed.elapsed(),
        plugins[0].dropped(),
        plugins[1].dropped()
    );
}

fn record(n: u32) -> Arc<Record> {
    let fields = json!({"mandelbox": "182cas8923jnckku023ind3", "port_32262": 1025, "image": "browsers/chrome", "n": n});
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
