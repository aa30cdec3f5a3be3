//! A supervisor alone: what the host service is when it is executed as one. Trials of this crate use it.

use std::process::ExitCode;

fn main() -> ExitCode {
    runtime_oci::dispatch(std::env::args_os()).unwrap_or(ExitCode::from(64))
}
