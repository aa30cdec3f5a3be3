//! Listens until Ctrl-C, prints what arrives, and says how to send it something.
#![allow(clippy::print_stdout, reason = "it is there to be looked at")]

use anyhow::{Context, Result};
use telemetry_stand_in::{Options, Server, TOKEN};

fn main() -> Result<()> {
    let listen = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8071".to_owned());
    let listen = listen.parse().context("an address and a port, for example 127.0.0.1:8071")?;
    let server = Server::start(Options { listen: Some(listen), print: true, ..Options::default() })?;
    println!("--set 'telemetry.plugins=[\"console\",\"sentry\",\"logzio\"]' \\");
    println!("--set telemetry.logzio.url={} --set telemetry.logzio.token={TOKEN} \\", server.url());
    println!("--set telemetry.logzio.spool=$(mktemp -d) --set telemetry.sentry.dsn={}", server.dsn());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(tokio::signal::ctrl_c())?)
}
