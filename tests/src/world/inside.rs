//! Tests that are in a world themselves.

use std::{
    env, io,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::World;
use crate::wait::until;

/// Says to a test that it is inside.
const INSIDE: &str = "HOST_TESTS_INSIDE";
/// Longer than a test runner's patience: it is the one that knows how long a test may take.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Runs `test` in a world of its own, for tests which hold in their own process what would outlive them. `name` is the
/// test's whole name: another process runs just that test of this program, and in there `test` is called.
///
/// # Errors
/// There is no world, or the test failed in there; then its output has been shown.
///
/// # Panics
/// As `test`, inside.
pub async fn in_world(name: &str, test: impl AsyncFnOnce()) -> Result<()> {
    if env::var_os(INSIDE).is_some() {
        test().await;
        return Ok(());
    }
    let world = World::scratch().await?;
    let entrance = world.entrance()?;
    let mut command = entrance.command(env::current_exe()?);
    command.args(["--exact", name, "--nocapture"]).env(INSIDE, "1").env("TMPDIR", world.disk());
    let mut inside = Killed(entrance.spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))?);
    // On a thread of its own, so that a full pipe never stops the test.
    let mut output = inside.0.stdout.take().context("its output is not piped")?;
    let said = std::thread::spawn(move || io::read_to_string(&mut output));
    let ended = until("end of the test inside", PATIENCE, async || inside.0.try_wait().ok().flatten());
    let status = ended.await?;
    let said = said.join().ok().context("its output cannot be read")??;
    show(&said);
    ensure!(status.success(), "in its world the test ended with {status}");
    // A name that no test has would be a success.
    ensure!(said.contains("1 passed"), "there is no test {name}");
    Ok(())
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
