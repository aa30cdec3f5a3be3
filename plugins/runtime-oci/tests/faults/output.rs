//! What containers write, and who reads it when.

use std::{collections::BTreeSet, fs};

use host_core::runtime::Runtime;

use crate::{
    told::{bytes, follow, log, tail, text, until},
    world::{World, bind, elsewhere, exit, named, start},
};

const LOG_BYTES: u64 = 4096;

/// The numbers of the lines of a log.
fn numbers(log: &str) -> Vec<u32> {
    log.lines().map(|line| line.parse().unwrap_or_else(|_| panic!("{line:?} is no number"))).collect()
}

#[test]
fn the_newest_of_much_output_is_kept() {
    for terminal in [false, true] {
        elsewhere(async || {
            let mut world = World::new();
            world.config.log_bytes = LOG_BYTES;
            let runtime = world.with_images().await;
            let mut spec = world.shell("loud", "seq 1 20000");
            spec.terminal = terminal;
            start(&runtime, &spec).await;
            exit(&runtime, "loud").await;
            let sizes = ["log", "log.1"].map(|file| fs::metadata(world.log(file)).unwrap().len());
            assert!(sizes.iter().all(|size| *size <= 64 << 10), "{sizes:?}");
            let whole = log(&runtime, "loud").await;
            // The oldest line may be cut.
            let kept = numbers(whole.split_once('\n').unwrap().1);
            assert_eq!(kept.last(), Some(&20_000));
            assert!(kept.is_sorted_by(|one, next| *next == one + 1), "there is a hole in {kept:?}");
            for lines in [1, 10, 500] {
                let last = numbers(&tail(&runtime, "loud", lines).await);
                let lines = usize::try_from(lines).unwrap().min(kept.len());
                assert_eq!(last[last.len() - lines..], kept[kept.len() - lines..]);
            }
            runtime.remove(&named("loud")).await.unwrap();
            runtime.close().await.unwrap();
        });
    }
}

#[tokio::test]
async fn who_follows_misses_nothing_when_the_log_begins_anew() {
    let mut world = World::new();
    world.config.log_bytes = LOG_BYTES;
    let runtime = world.with_images().await;
    let words = world.path("words");
    fs::create_dir(&words).unwrap();
    // Each part is less than a file holds; the next is written when this one has been read.
    let mut spec = world.shell(
        "paced",
        "for part in $(seq 1 20); do seq ${part}0000 ${part}0400; while [ ! -e /words/$part ]; do sleep 0.02; done; done",
    );
    spec.mounts.push(bind(&words, "/words"));
    start(&runtime, &spec).await;
    let mut followed = follow(&runtime, "paced").await;
    let mut all = String::new();
    for part in 1..=20 {
        all += &until(&mut followed, &format!("{part}0400\n")).await;
        fs::write(words.join(part.to_string()), "").unwrap();
    }
    all += &text(followed).await;
    let expected: Vec<u32> = (1..=20).flat_map(|part| part * 10_000..=part * 10_000 + 400).collect();
    assert_eq!(numbers(&all), expected);
    assert!(world.log("log.1").exists());
    runtime.remove(&named("paced")).await.unwrap();
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn every_reader_that_comes_while_it_writes_sees_no_hole() {
    let mut world = World::new();
    world.config.log_bytes = 256 << 10;
    let runtime = world.with_images().await;
    // Slower than it is read.
    let words = "for part in $(seq 10 60); do seq ${part}0000 ${part}9999; sleep 0.05; done";
    start(&runtime, &world.shell("writing", words)).await;
    let mut lengths = BTreeSet::new();
    loop {
        let ended = !matches!(
            runtime.inspect(&named("writing")).await.unwrap().unwrap().state,
            host_core::runtime::ContainerState::Running
        );
        let seen = log(&runtime, "writing").await;
        let (whole, _) = seen.rsplit_once('\n').unwrap_or_default();
        let lines = numbers(whole.split_once('\n').unwrap_or_default().1);
        assert!(lines.is_sorted_by(|one, next| *next == one + 1), "there is a hole in the log");
        lengths.insert(lines.len());
        if ended {
            break;
        }
    }
    println!("{} different readings", lengths.len());
    runtime.remove(&named("writing")).await.unwrap();
    runtime.close().await.unwrap();
}

#[tokio::test]
async fn bytes_that_are_no_text_arrive_as_they_are() {
    let world = World::new();
    let runtime = world.with_images().await;
    let mut spec = world.shell("binary", "cat /given/bytes");
    let given: Vec<u8> =
        (0..200_000_u32).map(|place| (place.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    fs::create_dir(world.path("given")).unwrap();
    fs::write(world.path("given/bytes"), &given).unwrap();
    spec.mounts.push(bind(&world.path("given"), "/given"));
    start(&runtime, &spec).await;
    let followed = bytes(follow(&runtime, "binary").await).await;
    assert!(followed == given, "{} of {} bytes arrived", followed.len(), given.len());
    runtime.remove(&named("binary")).await.unwrap();
    runtime.close().await.unwrap();
}

#[test]
fn who_closes_its_output_runs_on_and_may_open_it_again() {
    for (terminal, again) in [(false, ""), (true, "echo back >/dev/console; ")] {
        elsewhere(async || {
            let world = World::new();
            let runtime = world.with_images().await;
            let words = "echo bye; exec <&- >&- 2>&-; while [ ! -e /words/go ]; do sleep 0.05; done; ";
            let mut spec = world.shell("silent", &format!("{words}{again}exit 4"));
            spec.terminal = terminal;
            fs::create_dir(world.path("words")).unwrap();
            spec.mounts.push(bind(&world.path("words"), "/words"));
            start(&runtime, &spec).await;
            let mut followed = follow(&runtime, "silent").await;
            until(&mut followed, "bye").await;
            let busy = || cpu_ticks(&world);
            let before = busy();
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            let took = busy() - before;
            assert!(took < 20, "its supervisor is busy: {took} of 50 ticks");
            fs::write(world.path("words/go"), "").unwrap();
            assert_eq!(exit(&runtime, "silent").await.code, Some(4));
            assert_eq!(text(followed).await.trim(), if terminal { "back" } else { "" });
            runtime.remove(&named("silent")).await.unwrap();
            runtime.close().await.unwrap();
        });
    }
}

/// How long the supervisor has run, in hundredths of a second.
fn cpu_ticks(world: &World) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", world.supervisor())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn a_grandchild_that_holds_the_output_does_not_hold_up_the_end() {
    for terminal in [false, true] {
        elsewhere(async || {
            let world = World::new();
            let runtime = world.with_images().await;
            let mut spec = world.shell("daemon", "(setsid sleep 1000 &) ; echo gone; exit 5");
            spec.terminal = terminal;
            start(&runtime, &spec).await;
            assert_eq!(text(follow(&runtime, "daemon").await).await.trim(), "gone");
            assert_eq!(exit(&runtime, "daemon").await.code, Some(5));
            runtime.remove(&named("daemon")).await.unwrap();
            world.is_clean().await;
            runtime.close().await.unwrap();
        });
    }
}
