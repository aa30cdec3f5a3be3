//! What a script does to calls.

use std::time::Duration;

use host_core::{ContainerName, ErrorKind};
use serde::Deserialize;

/// An operation of the trait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is the trait's method of that name")]
pub enum Op {
    Health,
    Image,
    Images,
    Pull,
    LoadImage,
    TagImage,
    Create,
    Start,
    Stop,
    Remove,
    Inspect,
    List,
    Logs,
    Events,
    StartedAt,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Delay(Duration),
    Fail(ErrorKind),
    Hang,
    /// It takes effect, and the answer is an error.
    LoseAnswer(ErrorKind),
    /// It takes effect, and there is no answer.
    HangAfter,
    Panic,
}

/// What comes in place of a call's effect or of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Instead {
    Fail(ErrorKind),
    Hang,
    Panic,
}

/// Which of the matching calls, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    All,
    Nth(u64),
}

/// A fault and where it strikes.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) op: Op,
    pub(crate) container: Option<ContainerName>,
    pub(crate) which: Which,
    pub(crate) fault: Fault,
    pub(crate) met: u64,
}

impl Rule {
    /// Counts the call if it matches, and tells whether it is struck.
    pub(crate) fn strikes(&mut self, op: Op, container: Option<&str>) -> bool {
        let named = self.container.as_ref().map(ContainerName::as_str);
        if self.op != op || (named.is_some() && named != container) {
            return false;
        }
        self.met += 1;
        match self.which {
            Which::All => true,
            Which::Nth(nth) => self.met == nth,
        }
    }
}

/// Everything that strikes one call.
#[derive(Debug, Default)]
pub(crate) struct Struck {
    pub(crate) delay: Duration,
    /// Instead of its effect.
    pub(crate) before: Option<Instead>,
    /// Instead of its answer.
    pub(crate) after: Option<Instead>,
}

impl Struck {
    pub(crate) fn add(&mut self, fault: Fault) {
        match fault {
            Fault::Delay(delay) => self.delay += delay,
            Fault::Fail(kind) => self.before = Some(Instead::Fail(kind)),
            Fault::Hang => self.before = Some(Instead::Hang),
            Fault::Panic => self.before = Some(Instead::Panic),
            Fault::LoseAnswer(kind) => self.after = Some(Instead::Fail(kind)),
            Fault::HangAfter => self.after = Some(Instead::Hang),
        }
    }
}
