//! Holds one of the harness's engines until its standard input ends: `test-engine shared` or
//! `test-engine scratch [DOCKERD_ARG…]`. For trying things by hand, and for tests of the harness itself.
//!
//! The first line that it prints is the engine's endpoint, the second how to run a command in the engine's network.

use std::env;
use std::io::{self, Write};

use anyhow::{Result, bail};
use host_tests::engine::Engine;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let engine = match arguments.as_slice() {
        ["shared"] => Engine::shared().await?,
        ["scratch", arguments @ ..] => Engine::scratch_with(arguments).await?,
        _ => bail!("usage: test-engine shared | scratch [DOCKERD_ARG…]"),
    };
    let mut output = io::stdout();
    writeln!(output, "{}", engine.endpoint())?;
    writeln!(output, "nsenter --net=/proc/{}/ns/net --", std::process::id())?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}
