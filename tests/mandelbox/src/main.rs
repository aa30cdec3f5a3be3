//! The test mandelbox: a small static program that follows the in-container contract.
//!
//! It waits for `.ready` in `/fractal/resourceMappings`, reads the files beside it, serves what it was given on
//! its three ports, and creates `done_sleeping_until_X_clients`. Tests and newcomers see the whole loop with it;
//! [`behaviour`] lists the ways in which it can be told to behave badly.
//!
//! | environment variable | meaning | default |
//! |---|---|---|
//! | `MANDELBOX_MAPPINGS` | directory of its files | `/fractal/resourceMappings` |
//! | `MANDELBOX_PORTS` | its two tcp ports and its udp port, in the order 32262/tcp, 32263/udp, 32273/tcp; 0 for any | `32262,32263,32273` |
//! | `MANDELBOX_BEHAVIOUR` | more words for [`behaviour`], after the arguments | none |
//! | `MANDELBOX_ID_VARIABLE` | name of the variable with its id | `FRACTAL_MANDELBOX_ID` |
//! | `MANDELBOX_KEY_VARIABLE` | name of the variable with the AES key | `FRACTAL_AES_KEY` |
//!
//! Threads: `main` waits for the verdict that ends the process, `signals` and `life` and one thread for each
//! listener and connection may give it. Nothing is joined: the first verdict wins and the process ends with it.
//! It exits 0 on SIGTERM, on SIGINT and when no client came in time, 64 on words it does not know, 1 when it
//! cannot follow the contract.

mod abuse;
mod behaviour;
mod facts;
mod http;
mod json;
mod kernel;
mod life;
mod log;
mod mappings;
mod page;
mod routes;

use std::env;
use std::io;
use std::process::ExitCode;
use std::sync::mpsc::{self, Sender};
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::behaviour::Behaviour;
use crate::log::log;

/// What `main` returns; whoever sends one ends the process.
type Verdict = u8;

const USAGE: Verdict = 64;
const FAILURE: Verdict = 1;

fn main() -> ExitCode {
    let mut words: Vec<String> = env::args().skip(1).collect();
    if words == [abuse::IDLE] {
        return abuse::idle();
    }
    words.extend(env::var("MANDELBOX_BEHAVIOUR").unwrap_or_default().split_whitespace().map(str::to_owned));
    let behaviour = match Behaviour::parse(&words) {
        Ok(behaviour) => behaviour,
        Err(error) => {
            log(error);
            return ExitCode::from(USAGE);
        }
    };
    match behaviour.exit_at_once {
        Some(code) => ExitCode::from(code),
        None => ExitCode::from(run(behaviour)),
    }
}

/// Lives until somebody gives a verdict.
fn run(behaviour: Behaviour) -> Verdict {
    let (verdicts, verdict) = mpsc::channel();
    if let Err(error) = watch_signals(behaviour.heeds_sigterm, verdicts.clone()) {
        log(format_args!("cannot watch signals: {error}"));
        return FAILURE;
    }
    thread::spawn(move || {
        if let Err(error) = life::live(&behaviour, &verdicts) {
            log(error);
            life::end(&verdicts, FAILURE);
        }
    });
    verdict.recv().unwrap_or(FAILURE)
}

/// Installs the handlers before it returns, so that no signal is lost, and answers them on a thread.
fn watch_signals(heeds_sigterm: bool, verdicts: Sender<Verdict>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::spawn(move || {
        for signal in signals.forever() {
            if heeds_sigterm || signal == SIGINT {
                log(format_args!("signal {signal}: goodbye"));
                life::end(&verdicts, 0);
            } else {
                log("SIGTERM: I would rather stay");
            }
        }
    });
    Ok(())
}
