//! The end of the machine.

use std::{process::Stdio, time::Duration};

use anyhow::Context as _;
use tokio::{process::Command, time::timeout};

/// The command only asks.
const LIMIT: Duration = Duration::from_secs(30);

/// Asks the system to end; it then ends this process too, if that has not ended by itself.
pub(super) async fn switch_off(command: &[String]) -> anyhow::Result<()> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let status = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).status();
    let status = timeout(LIMIT, status)
        .await
        .with_context(|| format!("drain.power_off took longer than {LIMIT:?}"))?;
    let status = status.with_context(|| format!("drain.power_off: {program} cannot be run"))?;
    anyhow::ensure!(status.success(), "drain.power_off failed: {status}");
    Ok(())
}
