//! The words, given as arguments or in `MANDELBOX_BEHAVIOUR`, that make this program behave badly:
//!
//! | words | effect |
//! |---|---|
//! | `exit-at-once [CODE]` | exits with `CODE` (1) before it does anything |
//! | `never-ready` | does everything but announce that it can take its client |
//! | `slow-ready [MS]` | announces that `MS` milliseconds (1500) late |
//! | `ignore-sigterm` | must be killed |
//! | `symlink-attack [TARGET]` | puts links to `TARGET` (`/host-canary`) where the host is about to write, then goes on |
//!
//! They combine: `never-ready ignore-sigterm` does both.

use std::iter::Peekable;
use std::path::PathBuf;
use std::slice::Iter;
use std::str::FromStr;
use std::time::Duration;

/// When the program announces that it can take its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Announce {
    AtOnce,
    After(Duration),
    Never,
}

/// How the program departs from the contract; the default does not.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Behaviour {
    pub(crate) exit_at_once: Option<u8>,
    pub(crate) announce: Announce,
    pub(crate) heeds_sigterm: bool,
    pub(crate) symlinks_to: Option<PathBuf>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { exit_at_once: None, announce: Announce::AtOnce, heeds_sigterm: true, symlinks_to: None }
    }
}

impl Behaviour {
    pub(crate) fn parse(words: &[String]) -> Result<Self, String> {
        let mut behaviour = Self::default();
        let mut words = words.iter().peekable();
        while let Some(word) = words.next() {
            match word.as_str() {
                "exit-at-once" => behaviour.exit_at_once = Some(parameter(&mut words).unwrap_or(1)),
                "never-ready" => behaviour.announce = Announce::Never,
                "slow-ready" => {
                    let late = Duration::from_millis(parameter(&mut words).unwrap_or(1500));
                    behaviour.announce = Announce::After(late);
                }
                "ignore-sigterm" => behaviour.heeds_sigterm = false,
                "symlink-attack" => {
                    let target = words.next_if(|word| word.starts_with(['/', '.']));
                    behaviour.symlinks_to = Some(target.map_or_else(|| "/host-canary".into(), PathBuf::from));
                }
                unknown => return Err(format!("unknown word '{unknown}'")),
            }
        }
        Ok(behaviour)
    }
}

/// Takes the next word if it is a number.
fn parameter<T: FromStr>(words: &mut Peekable<Iter<'_, String>>) -> Option<T> {
    let number = words.peek()?.parse().ok()?;
    words.next();
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Behaviour, String> {
        Behaviour::parse(&words.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn no_word_is_good_behaviour() {
        assert_eq!(parse("").unwrap(), Behaviour::default());
    }

    #[test]
    fn words_take_their_parameter_or_a_default() {
        assert_eq!(parse("exit-at-once").unwrap().exit_at_once, Some(1));
        assert_eq!(parse("exit-at-once 7").unwrap().exit_at_once, Some(7));
        assert_eq!(parse("slow-ready 20").unwrap().announce, Announce::After(Duration::from_millis(20)));
        assert_eq!(parse("symlink-attack ../..").unwrap().symlinks_to, Some("../..".into()));
    }

    #[test]
    fn words_combine() {
        let both = parse("never-ready ignore-sigterm symlink-attack").unwrap();
        assert_eq!(both.announce, Announce::Never);
        assert!(!both.heeds_sigterm);
        assert_eq!(both.symlinks_to, Some("/host-canary".into()));
    }

    #[test]
    fn an_unknown_word_is_named() {
        assert!(parse("be-nice").unwrap_err().contains("be-nice"));
    }
}
