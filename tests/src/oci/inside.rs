//! Tests that are on such a host themselves.

use std::{
    env, io,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::OciHost;
use crate::wait::until;

/// Says to a test that it is inside, and which control group it has there.
const INSIDE: &str = "HOST_TESTS_INSIDE";
/// Longer than a test runner's patience: it is the one that knows how long a test may take.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Runs `test` on a host of its own, for tests which hold in their own process what would outlive them: a runtime, for
/// example. `name` is the test's whole name: another process runs just that test of this program, and in there `test` is
/// called with the control group that goes with the host. Its temporary directory goes with the host, too. In the end the
/// host has to be as it was.
///
/// # Errors
/// There is no host, something is left on it, or the test failed in there; then its output has been shown.
///
/// # Panics
/// As `test`, inside.
pub async fn on_own_host(name: &str, test: impl AsyncFnOnce(&Path)) -> Result<()> {
    if let Some(group) = env::var_os(INSIDE) {
        test(Path::new(&group)).await;
        return Ok(());
    }
    let host = OciHost::scratch().await?;
    let mut command = host.entrance.command(env::current_exe()?);
    command.args(["--exact", name, "--nocapture"]);
    command.env(INSIDE, format!("/{}", host.world.name())).env("TMPDIR", host.world.disk());
    let mut inside = Killed(host.entrance.spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))?);
    // On a thread of its own, so that a full pipe never stops the test.
    let mut output = inside.0.stdout.take().context("its output is not piped")?;
    let said = std::thread::spawn(move || io::read_to_string(&mut output));
    let ended = until("end of the test inside", PATIENCE, async || inside.0.try_wait().ok().flatten());
    let status = ended.await?;
    let said = said.join().ok().context("its output cannot be read")??;
    show(&said);
    ensure!(status.success(), "on its host the test ended with {status}");
    // A name that no test has would be a success.
    ensure!(said.contains("1 passed"), "there is no test {name}");
    host.assert_untouched().await
}

#[expect(clippy::print_stdout, reason = "the test runner shows it as this test's own output")]
fn show(said: &str) {
    println!("{said}");
}

/// A process that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
