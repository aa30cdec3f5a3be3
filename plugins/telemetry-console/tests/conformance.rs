//! Runs what every `Telemetry` must do, in every look.
#![cfg(test)]

use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex},
};

use async_trait::async_trait;
use conformance::telemetry::{Bench, Destination, behaviours};
use host_core::{PluginError, telemetry::Telemetry};
use telemetry_console::{Console, Look};

/// A terminal, or a pipe's other end, that does what it is told.
#[derive(Debug, Clone, Default)]
struct Screen(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    mood: Mood,
    text: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Mood {
    #[default]
    Takes,
    Stalls,
    Refuses,
}

impl Screen {
    fn set(&self, mood: Mood) {
        self.0.state.lock().unwrap().mood = mood;
        self.0.changed.notify_all();
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let state = self.0.state.lock().unwrap();
        let mut state = self.0.changed.wait_while(state, |state| state.mood == Mood::Stalls).unwrap();
        if state.mood == Mood::Refuses {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        state.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Destination for Screen {
    fn arrived(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.state.lock().unwrap().text.clone()).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines().map(str::to_owned).collect()
    }

    fn stall(&self) {
        self.set(Mood::Stalls);
    }

    fn refuse(&self) {
        self.set(Mood::Refuses);
    }

    fn resume(&self) {
        self.set(Mood::Takes);
    }
}

struct Screens(Look);

#[async_trait]
impl Bench for Screens {
    async fn open(&self) -> Result<(Arc<dyn Telemetry>, Arc<dyn Destination>), PluginError> {
        let screen = Screen::default();
        let console = Console::new(screen.clone(), self.0, 8192).unwrap();
        Ok((Arc::new(console), Arc::new(screen)))
    }
}

async fn run(name: &str, look: Look) {
    let report = conformance::report::run(name, &Screens(look) as &dyn Bench, &behaviours()).await;
    println!("{report}");
    assert!(report.holds(), "{report}");
}

#[tokio::test]
async fn json_lines_do_what_every_telemetry_must_do() {
    run("telemetry-console json", Look::Json).await;
}

#[tokio::test]
async fn pretty_lines_do_so_too() {
    run("telemetry-console pretty", Look::Pretty { colour: false }).await;
}
