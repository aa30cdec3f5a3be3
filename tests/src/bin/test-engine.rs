//! Holds one of the harness's worlds until its standard input ends: `test-engine shared`,
//! `test-engine scratch [DOCKERD_ARG…]`, or `test-engine oci`, which is a host with a service and a mandelbox. For trying
//! things by hand, and for tests of the harness itself.
//!
//! The first line that it prints is the engine's endpoint or the host's directory, the second how to run a command in
//! there.

use std::env;
use std::io::{self, Write};

use anyhow::{Result, bail};
use host_tests::{engine::Engine, oci::OciHost, service::Service};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["shared"] => hold_engine(&Engine::shared().await?),
        ["scratch", arguments @ ..] => hold_engine(&Engine::scratch_with(arguments).await?),
        ["oci"] => hold_host().await,
        _ => bail!("usage: test-engine shared | scratch [DOCKERD_ARG…] | oci"),
    }
}

fn hold_engine(engine: &Engine) -> Result<()> {
    hold(&engine.endpoint(), &format!("nsenter --net=/proc/{}/ns/net --", std::process::id()))
}

async fn hold_host() -> Result<()> {
    let host = OciHost::scratch().await?;
    let service = Service::on(&host).start().await?;
    service.spin_up("held").await?;
    let enter = format!("nsenter --target {} --mount --pid --net --", host.world().first());
    hold(&host.world().directory().display().to_string(), &enter)
}

fn hold(name: &str, enter: &str) -> Result<()> {
    let mut output = io::stdout();
    writeln!(output, "{name}\n{enter}")?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}
