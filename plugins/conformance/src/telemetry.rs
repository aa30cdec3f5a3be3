//! What every `Telemetry` must do.
//!
//! What has left the process is seen at the destination, which a plugin's tests provide: a pipe's reader, an HTTP
//! server. It must be able to stall and to refuse, for that is when a telemetry must not harm the service.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use host_core::{
    ErrorKind, PluginError,
    pubsub::InstanceFacts,
    telemetry::{Level, Record, Telemetry},
};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::{
    behaviours, ensure,
    report::{Behaviour, Unmet, Verdict},
};

const DEADLINE: Duration = Duration::from_secs(60);

/// Long enough for any destination on this machine that works.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes plugins, each with a destination of its own.
#[async_trait]
pub trait Bench: Send + Sync {
    /// A plugin that has taken nothing yet, and where its records arrive.
    async fn open(&self) -> Result<(Arc<dyn Telemetry>, Arc<dyn Destination>), PluginError>;

    /// The least serious records that are to arrive.
    fn level(&self) -> Level {
        Level::Info
    }
}

/// Where records arrive.
pub trait Destination: Send + Sync {
    /// Every record that has arrived, as the text that arrived, in order. Records of the plugin's own included.
    fn arrived(&self) -> Vec<String>;

    /// From now on takes nothing, without a word.
    fn stall(&self);

    /// From now on refuses whatever comes.
    fn refuse(&self);

    /// Takes records again, also those that were stalled.
    fn resume(&self);
}

/// All of them.
pub fn behaviours() -> Vec<Behaviour<dyn Bench>> {
    behaviours![dyn Bench, DEADLINE;
        a_flushed_record_has_arrived_whole,
        a_record_from_before_the_host_knows_itself_arrives,
        records_arrive_in_order,
        records_of_many_threads_all_arrive,
        hostile_text_stays_within_its_record,
        flushing_nothing_is_prompt,
        concurrent_flushes_all_return,
        a_stalled_destination_never_holds_up_the_caller,
        every_record_arrives_or_is_counted,
        a_flush_ends_at_its_deadline,
        a_refusing_destination_harms_nothing,
        an_end_under_stall_is_prompt,
    ]
}

async fn a_flushed_record_has_arrived_whole(bench: &dyn Bench) -> Verdict {
    let (telemetry, destination) = bench.open().await?;
    ensure!(telemetry.dropped() == 0, "{} were dropped before the first", telemetry.dropped());
    let mut record = record(bench, "spin-up failed");
    let fields =
        [("mandelbox", json!("mandelbox-7")), ("attempt", json!(31_337)), ("error", json!("no such image"))];
    record.fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    record.level = Level::Error;
    telemetry.record(&Arc::new(record));
    telemetry.flush(PATIENCE).await?;
    let text = one(&*destination)?;
    for part in ["spin-up failed", "mandelbox", "mandelbox-7", "attempt", "31337", "no such image"] {
        ensure!(text.contains(part), "{part:?} is not in {text:?}");
    }
    Ok(())
}

async fn a_record_from_before_the_host_knows_itself_arrives(bench: &dyn Bench) -> Verdict {
    let (telemetry, destination) = bench.open().await?;
    let early = Record {
        instance: None,
        at: SystemTime::UNIX_EPOCH - Duration::from_secs(1),
        ..record(bench, "starting")
    };
    telemetry.record(&Arc::new(early));
    telemetry.flush(PATIENCE).await?;
    let text = one(&*destination)?;
    ensure!(text.contains("starting"), "{text:?} arrived");
    Ok(())
}

async fn records_arrive_in_order(bench: &dyn Bench) -> Verdict {
    let (telemetry, destination) = bench.open().await?;
    let sent: Vec<_> = (0..500).map(|n| format!("number-{n}.")).collect();
    for message in &sent {
        telemetry.record(&Arc::new(record(bench, message)));
    }
    telemetry.flush(PATIENCE).await?;
    let arrived = destination.arrived();
    ensure!(arrived.len() == sent.len(), "{} of {} arrived", arrived.len(), sent.len());
    let in_place = |(text, message): (&String, &String)| text.contains(message.as_str());
    ensure!(arrived.iter().zip(&sent).all(in_place), "the order is {arrived:?}");
    Ok(())
}

async fn records_of_many_threads_all_arrive(bench: &dyn Bench) -> Verdict {
    const THREADS: usize = 8;
    const EACH: usize = 100;
    let (telemetry, destination) = bench.open().await?;
    // Plain threads: a record may come from anywhere, also from outside the async runtime.
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                (0..EACH).for_each(|_| telemetry.record(&Arc::new(record(bench, "from a thread"))))
            });
        }
    });
    telemetry.flush(PATIENCE).await?;
    let arrived = destination.arrived().len();
    ensure!(arrived == THREADS * EACH, "{arrived} of {} arrived", THREADS * EACH);
    Ok(())
}

async fn hostile_text_stays_within_its_record(bench: &dyn Bench) -> Verdict {
    let (telemetry, destination) = bench.open().await?;
    let hostile = "a\nb\r\n{\"level\":\"error\"}\n\x1b[2J\u{9b}31m\0\u{2028}\u{202e}\"\\";
    let mut record = record(bench, hostile);
    record.fields.insert(hostile.to_owned(), json!(hostile));
    record.fields.insert("nested".to_owned(), json!({ hostile: [hostile] }));
    telemetry.record(&Arc::new(record));
    telemetry.flush(PATIENCE).await?;
    let text = one(&*destination)?;
    let raw = text.trim_end_matches('\n').chars().find(|c| c.is_control());
    ensure!(raw.is_none(), "{raw:?} arrived as it was in {text:?}");
    Ok(())
}

async fn flushing_nothing_is_prompt(bench: &dyn Bench) -> Verdict {
    let (telemetry, _destination) = bench.open().await?;
    let begun = Instant::now();
    telemetry.flush(PATIENCE).await?;
    ensure!(begun.elapsed() < PATIENCE / 2, "it took {:?}", begun.elapsed());
    Ok(())
}

async fn concurrent_flushes_all_return(bench: &dyn Bench) -> Verdict {
    let (telemetry, destination) = bench.open().await?;
    telemetry.record(&Arc::new(record(bench, "only one")));
    futures::future::try_join_all((0..20).map(|_| telemetry.flush(PATIENCE))).await?;
    one(&*destination)?;
    Ok(())
}

/// 100,000 records, of which each could block for ever.
async fn a_stalled_destination_never_holds_up_the_caller(bench: &dyn Bench) -> Verdict {
    let (telemetry, destination) = bench.open().await?;
    destination.stall();
    let flood = Arc::new(record(bench, "flood"));
    let sending = Arc::clone(&telemetry);
    let took = time(move || (0..100_000).for_each(|_| sending.record(&flood))).await;
    destination.resume();
    ensure!(took.is_some(), "it took over {PATIENCE:?}");
    Ok(())
}

async fn every_record_arrives_or_is_counted(bench: &dyn Bench) -> Verdict {
    const SENT: u64 = 20_000;
    let (telemetry, destination) = bench.open().await?;
    destination.stall();
    let flood = Arc::new(record(bench, "counted flood"));
    let sending = Arc::clone(&telemetry);
    let took = time(move || (0..SENT).for_each(|_| sending.record(&flood))).await;
    destination.resume();
    ensure!(took.is_some(), "sending took over {PATIENCE:?}");
    telemetry.flush(PATIENCE).await?;
    let arrived = count(&*destination, "counted flood");
    let dropped = telemetry.dropped();
    ensure!(arrived + dropped == SENT, "of {SENT}, {arrived} arrived and {dropped} were dropped");
    Ok(())
}

async fn a_flush_ends_at_its_deadline(bench: &dyn Bench) -> Verdict {
    let (telemetry, destination) = bench.open().await?;
    destination.stall();
    for _ in 0..20_000 {
        telemetry.record(&Arc::new(record(bench, "stalled")));
    }
    let deadline = Duration::from_millis(300);
    let begun = Instant::now();
    let answer = telemetry.flush(deadline).await;
    let took = begun.elapsed();
    destination.resume();
    let kind = answer.as_ref().err().map(PluginError::kind);
    ensure!(kind == Some(ErrorKind::Timeout), "the answer is {answer:?}");
    ensure!(took >= deadline && took < deadline + PATIENCE / 2, "it took {took:?}");
    telemetry.flush(PATIENCE).await?;
    Ok(())
}

async fn a_refusing_destination_harms_nothing(bench: &dyn Bench) -> Verdict {
    let (telemetry, destination) = bench.open().await?;
    destination.refuse();
    for _ in 0..1000 {
        telemetry.record(&Arc::new(record(bench, "refused")));
    }
    let begun = Instant::now();
    // Whether these are kept for later or given up is the plugin's policy.
    drop(telemetry.flush(Duration::from_secs(1)).await);
    ensure!(begun.elapsed() < PATIENCE / 2, "the flush took {:?}", begun.elapsed());
    destination.resume();
    telemetry.record(&Arc::new(record(bench, "afterwards")));
    telemetry.flush(PATIENCE).await?;
    let arrived = count(&*destination, "afterwards");
    ensure!(arrived == 1, "a record made afterwards arrived {arrived} times");
    Ok(())
}

async fn an_end_under_stall_is_prompt(bench: &dyn Bench) -> Verdict {
    let (telemetry, destination) = bench.open().await?;
    destination.stall();
    telemetry.record(&Arc::new(record(bench, "never to arrive")));
    let took = time(move || drop(telemetry)).await;
    destination.resume();
    ensure!(took.is_some_and(|took| took < PATIENCE / 2), "it took {took:?}");
    Ok(())
}

/// How long this takes, on a thread of its own, for it may block; `None` when it isn't done in time.
async fn time(work: impl FnOnce() + Send + 'static) -> Option<Duration> {
    let (done, is_done) = oneshot::channel();
    let begun = Instant::now();
    thread::spawn(move || {
        work();
        // Whoever waits may have given up.
        done.send(begun.elapsed()).ok();
    });
    tokio::time::timeout(PATIENCE, is_done).await.ok()?.ok()
}

fn one(destination: &dyn Destination) -> Result<String, Unmet> {
    let mut arrived = destination.arrived();
    match arrived.pop() {
        Some(text) if arrived.is_empty() => Ok(text),
        last => Err(Unmet::Broken(format!("one record was sent; {arrived:?} and {last:?} arrived"))),
    }
}

fn count(destination: &dyn Destination, message: &str) -> u64 {
    let arrived = destination.arrived();
    let count = arrived.iter().filter(|text| text.contains(message)).count();
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn record(bench: &dyn Bench, message: &str) -> Record {
    Record {
        at: SystemTime::now(),
        level: bench.level(),
        target: "conformance",
        message: message.to_owned(),
        fields: Map::from_iter([("answer".to_owned(), Value::from(42))]),
        instance: instance(),
        environment: Arc::from("localdev"),
    }
}

fn instance() -> Option<Arc<InstanceFacts>> {
    Some(Arc::new(InstanceFacts {
        name: "host-1".parse().ok()?,
        cloud_id: "i-1".to_owned(),
        image_id: "ami-1".to_owned(),
        region: "us-east-1".to_owned(),
        instance_type: "g4dn.xlarge".to_owned(),
        ip: "192.0.2.1".to_owned(),
        commit: "0123456".to_owned(),
    }))
}
