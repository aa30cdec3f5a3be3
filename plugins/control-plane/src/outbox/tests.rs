use std::{collections::VecDeque, sync::Mutex, time::Duration};

use async_trait::async_trait;
use host_core::{Retry, pubsub::MandelboxStatus};
use tokio::time::timeout;

use super::*;

const FILE: &str = "test.queue";

/// A database that does as it is told, and tells what it was told.
#[derive(Default)]
struct Script {
    /// By mandelbox; everything else is accepted.
    refuses: Mutex<Vec<(&'static str, ErrorKind)>>,
    refuses_beats: Mutex<VecDeque<ErrorKind>>,
    told: Mutex<Vec<String>>,
    tries: Mutex<Vec<Instant>>,
}

#[async_trait]
impl Delivery for Script {
    async fn deliver(&self, entry: &Entry) -> Result<()> {
        self.tries.lock().unwrap().push(Instant::now());
        let refused =
            self.refuses.lock().unwrap().iter().find(|(id, _)| *id == entry.mandelbox.as_str()).copied();
        match refused {
            Some((_, kind)) => Err(PluginError::new(kind, "so it is")),
            None => {
                self.told.lock().unwrap().push(entry.mandelbox.to_string());
                Ok(())
            }
        }
    }

    async fn heartbeat(&self, _: &InstanceName, beat: &Heartbeat) -> Result<()> {
        // Gone before it is written, when it is dropped now.
        tokio::task::yield_now().await;
        match self.refuses_beats.lock().unwrap().pop_front() {
            Some(kind) => Err(PluginError::new(kind, "so it is")),
            None => {
                self.told.lock().unwrap().push(format!("beat {}", beat.at_ms));
                Ok(())
            }
        }
    }
}

impl Script {
    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }
}

async fn outbox(scratch: &tempfile::TempDir) -> Outbox {
    let context = Context { state_dir: scratch.path().to_owned(), local: true, role: Role::Service };
    Outbox::open(&context, FILE).await.unwrap()
}

fn host() -> InstanceName {
    "host".parse().unwrap()
}

async fn queue(outbox: &Outbox, mandelboxes: &[&str]) {
    for mandelbox in mandelboxes {
        let write = Write::Status(MandelboxStatus::Dying);
        let entry =
            Entry { instance: host(), mandelbox: mandelbox.parse().unwrap(), created_ms: Some(1), write };
        outbox.queue.push(entry).await.unwrap();
    }
}

/// Delivers for so long.
async fn run(outbox: &Outbox, script: &Script, limit: Duration) {
    let _ = timeout(limit, outbox.keep_delivering(script, &host())).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_waits_alone_and_is_given_up_in_the_end() {
    let scratch = tempfile::tempdir().unwrap();
    let outbox = outbox(&scratch).await;
    let script = Script { refuses: Mutex::new(vec![("b", ErrorKind::Denied)]), ..Script::default() };
    queue(&outbox, &["a", "b", "c", "b", "d"]).await;
    run(&outbox, &script, Duration::from_millis(1)).await;
    assert_eq!((script.told().join(" "), outbox.undelivered()), ("a c d".to_owned(), 2));
    // Nor does what is new wait for it, unless it is about the same mandelbox.
    for id in ["e", "b"] {
        outbox.write(&script, &host(), &id.parse().unwrap(), Write::Remove).await.unwrap();
    }
    assert_eq!((script.told().join(" "), outbox.undelivered()), ("a c d e".to_owned(), 3));
    // Somebody may put it right.
    run(&outbox, &script, REFUSED / 2).await;
    assert_eq!(outbox.undelivered(), 3);
    run(&outbox, &script, REFUSED * 4).await;
    assert_eq!((script.told().join(" "), outbox.undelivered()), ("a c d e".to_owned(), 0));
}

#[tokio::test(start_paused = true)]
async fn where_nobody_is_there_not_everything_is_tried() {
    let scratch = tempfile::tempdir().unwrap();
    let outbox = outbox(&scratch).await;
    let all = ["a", "b", "c", "d", "e", "f"];
    let absent = all.map(|id| (id, ErrorKind::Unavailable)).to_vec();
    let script = Script { refuses: Mutex::new(absent), ..Script::default() };
    queue(&outbox, &all).await;
    run(&outbox, &script, Duration::from_millis(1)).await;
    assert_eq!(script.tries.lock().unwrap().len(), 3);
    // Two of whom the database cannot bear hold up nobody.
    script.refuses.lock().unwrap().truncate(2);
    run(&outbox, &script, Duration::from_secs(1)).await;
    assert_eq!((script.told().join(" "), outbox.undelivered()), ("c d e f".to_owned(), 2));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_go_through_is_tried_again_ever_more_rarely_and_kept() {
    let scratch = tempfile::tempdir().unwrap();
    let outbox = outbox(&scratch).await;
    let script = Script { refuses: Mutex::new(vec![("a", ErrorKind::Timeout)]), ..Script::default() };
    queue(&outbox, &["a", "a"]).await;
    run(&outbox, &script, Duration::from_secs(600)).await;
    let tries = script.tries.lock().unwrap().clone();
    assert!((100..150).contains(&tries.len()), "{} tries in ten minutes", tries.len());
    assert!(tries[1] - tries[0] < Duration::from_millis(200), "{tries:?}");
    assert_eq!((script.told(), outbox.undelivered()), (vec![], 2));
    script.refuses.lock().unwrap().clear();
    run(&outbox, &script, Duration::from_secs(10)).await;
    assert_eq!((script.told().join(" "), outbox.undelivered()), ("a a".to_owned(), 0));
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_is_refused_starves_nothing_and_one_that_is_late_is_not_lost() {
    let scratch = tempfile::tempdir().unwrap();
    let outbox = outbox(&scratch).await;
    let (denied, away) = (ErrorKind::Denied, ErrorKind::Unavailable);
    let script = Script { refuses_beats: Mutex::new([away, away, denied].into()), ..Script::default() };
    let beat = |at_ms| Heartbeat { at_ms, ..Heartbeat::default() };
    outbox.heartbeat(&script, &host(), &beat(1)).await.unwrap_err();
    queue(&outbox, &["a"]).await;
    run(&outbox, &script, Duration::from_secs(5)).await;
    assert_eq!(script.told(), ["a"], "once away, once refused, and the queue delivered at once");

    script.refuses_beats.lock().unwrap().push_back(away);
    outbox.heartbeat(&script, &host(), &beat(2)).await.unwrap_err();
    // Dropped in the middle of it.
    run(&outbox, &script, Duration::ZERO).await;
    assert_eq!(script.told(), ["a"]);
    run(&outbox, &script, Duration::from_secs(5)).await;
    assert_eq!(script.told(), ["a", "beat 2"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_accepted_is_seen_as_done() {
    let scratch = tempfile::tempdir().unwrap();
    let outbox = outbox(&scratch).await;
    let raw = |id: &str, created_ms| Raw {
        id: id.into(),
        user: "u".into(),
        session: "s".into(),
        app: None,
        status: "RUNNING".into(),
        created_ms,
    };
    let script = Script {
        refuses: Mutex::new(["a", "b", "c"].map(|id| (id, ErrorKind::Timeout)).into()),
        ..Script::default()
    };
    let watching = outbox.seen.watching(&host());
    watching.saw(&[raw("a", 1), raw("b", 1), raw("c", 1)]);
    for (id, write) in [
        ("a", Write::Status(MandelboxStatus::Dying)),
        ("a", Write::Status(MandelboxStatus::Running)),
        ("b", Write::Remove),
        ("c", Write::Remove),
    ] {
        outbox.write(&script, &host(), &id.parse().unwrap(), write).await.unwrap();
    }
    // The last one's id was given away anew.
    let mut rows = vec![raw("a", 1), raw("b", 1), raw("c", 2)];
    outbox.foresee(&"other".parse().unwrap(), &mut rows);
    assert_eq!(rows.len(), 3);
    outbox.foresee(&host(), &mut rows);
    let seen: Vec<_> = rows.iter().map(|row| (row.id.as_str(), row.status.as_str())).collect();
    assert_eq!(seen, [("a", "DYING"), ("c", "RUNNING")]);
}

#[test]
fn what_is_stuck_is_told_once_for_each_reason() {
    let stuck = |id: &str, why: &str| {
        let (mandelbox, write) = (id.parse().unwrap(), Write::Remove);
        let entry = Entry { instance: host(), mandelbox, created_ms: None, write };
        vec![Stuck { entry, error: PluginError::new(ErrorKind::Timeout, why) }]
    };
    let mut tries = Tries::new();
    let mut is_told = |stuck: Vec<Stuck>| tries.news(&stuck).is_some();
    assert_eq!([is_told(stuck("a", "late")), is_told(stuck("a", "late"))], [true, false]);
    assert_eq!([is_told(stuck("a", "gone")), is_told(stuck("b", "gone"))], [true, true]);
    assert_eq!([is_told(Vec::new()), is_told(stuck("b", "gone"))], [false, true]);
}

/// One whose every refusal may pass.
struct Passing;

#[async_trait]
impl Delivery for Passing {
    async fn deliver(&self, _: &Entry) -> Result<()> {
        Err(PluginError::new(ErrorKind::Invalid, "for the moment").with_retry(Retry::Later))
    }

    async fn heartbeat(&self, _: &InstanceName, _: &Heartbeat) -> Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn whatever_may_pass_is_queued() {
    let scratch = tempfile::tempdir().unwrap();
    let outbox = outbox(&scratch).await;
    outbox.write(&Passing, &host(), &"a".parse().unwrap(), Write::Remove).await.unwrap();
    assert_eq!(outbox.undelivered(), 1);
}
