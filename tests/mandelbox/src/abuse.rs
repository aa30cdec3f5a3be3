//! What a container must survive, or must not.

use std::io::{self, PipeReader, Read};
use std::process::{Child, Command, ExitCode};

use crate::json::Json;

/// The argument that makes this program one of [`fork`]'s children.
pub(crate) const IDLE: &str = "--idle";

/// Takes and touches memory until the kernel ends the process.
pub(crate) fn eat_memory() -> ! {
    let mut eaten = Vec::new();
    loop {
        eaten.push(vec![1_u8; 16 << 20]);
    }
}

/// Starts children that all live at once, and says how many did.
pub(crate) fn fork(wanted: u32) -> io::Result<Json> {
    // They read this pipe, so they end when its other end is dropped, whatever becomes of this process.
    let (input, alive) = io::pipe()?;
    let mut children = Vec::new();
    let mut error = None;
    for _ in 0..wanted {
        match child(&input) {
            Ok(child) => children.push(child),
            Err(refused) => {
                error = Some(refused.to_string());
                break;
            }
        }
    }
    drop(alive);
    let started = children.len();
    for mut child in children {
        child.wait()?;
    }
    Ok(Json::object([
        ("wanted", Json::from(wanted)),
        ("started", Json::from(i64::try_from(started).ok())),
        ("error", Json::from(error)),
    ]))
}

fn child(input: &PipeReader) -> io::Result<Child> {
    Command::new("/proc/self/exe").arg(IDLE).stdin(input.try_clone()?).spawn()
}

/// The life of one of [`fork`]'s children.
pub(crate) fn idle() -> ExitCode {
    let _ended_either_way = io::stdin().read(&mut [0]);
    ExitCode::SUCCESS
}
