//! What runs in a simulated container: the application of the in-container contract, as the test mandelbox does it.

use std::{
    fs::{self, OpenOptions},
    iter::Peekable,
    path::{Path, PathBuf},
    slice::Iter,
    str::FromStr,
    time::Duration,
};

use host_core::runtime::ContainerSpec;

const MAPPINGS: &str = "/fractal/resourceMappings";
const READY: &str = ".ready";
const ANNOUNCEMENT: &str = "done_sleeping_until_X_clients";
/// A look at the directory is cheap, and unlike a watch it follows paused time.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How the application behaves; told by the container's command, in the words that the test mandelbox knows. Other
/// words mean nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Behaviour {
    /// `exit-at-once [CODE]`
    pub(crate) exit_at_once: Option<i32>,
    /// `slow-ready [MS]`; `None` for `never-ready`.
    pub(crate) announce_after: Option<Duration>,
    /// Not with `ignore-sigterm`.
    pub(crate) heeds_sigterm: bool,
}

impl Behaviour {
    pub(crate) fn of(command: &[String]) -> Self {
        let mut behaviour =
            Self { exit_at_once: None, announce_after: Some(Duration::ZERO), heeds_sigterm: true };
        let mut words = command.iter().peekable();
        while let Some(word) = words.next() {
            match word.as_str() {
                "exit-at-once" => behaviour.exit_at_once = Some(parameter(&mut words).unwrap_or(1)),
                "never-ready" => behaviour.announce_after = None,
                "slow-ready" => {
                    let late = Duration::from_millis(parameter(&mut words).unwrap_or(1500));
                    behaviour.announce_after = Some(late);
                }
                "ignore-sigterm" => behaviour.heeds_sigterm = false,
                _ => {}
            }
        }
        behaviour
    }
}

/// Takes the next word if it is a number.
fn parameter<T: FromStr>(words: &mut Peekable<Iter<'_, String>>) -> Option<T> {
    let number = words.peek()?.parse().ok()?;
    words.next();
    Some(number)
}

/// Where the host keeps this container's files, if it gave it any.
pub(crate) fn mappings(spec: &ContainerSpec) -> Option<PathBuf> {
    let mount = spec.mounts.iter().find(|mount| mount.target == Path::new(MAPPINGS))?;
    Some(mount.source.clone())
}

/// Waits for the host's word and announces that it can take its client.
///
/// # Errors
/// When it cannot write in its directory.
pub(crate) async fn get_ready(mappings: &Path, announce_after: Option<Duration>) -> std::io::Result<()> {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    let is_ready = || fs::symlink_metadata(mappings.join(READY)).is_ok_and(|found| found.is_file());
    while !is_ready() {
        looks.tick().await;
    }
    let Some(late) = announce_after else { return Ok(()) };
    tokio::time::sleep(late).await;
    let announcement = mappings.join(ANNOUNCEMENT);
    OpenOptions::new().write(true).create(true).truncate(false).open(announcement).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behaviour(words: &str) -> Behaviour {
        Behaviour::of(&words.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn words_are_those_of_the_test_mandelbox() {
        assert_eq!(behaviour("exit-at-once").exit_at_once, Some(1));
        assert_eq!(behaviour("exit-at-once 7").exit_at_once, Some(7));
        assert_eq!(behaviour("never-ready").announce_after, None);
        let both = behaviour("slow-ready 20 ignore-sigterm");
        assert_eq!(both.announce_after, Some(Duration::from_millis(20)));
        assert!(!both.heeds_sigterm);
        assert_eq!(behaviour("--anything else"), behaviour(""));
    }
}
