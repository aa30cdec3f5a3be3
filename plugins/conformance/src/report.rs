//! One runner and one report for the behaviours of every trait.

use std::{
    env, fmt,
    panic::AssertUnwindSafe,
    sync::LazyLock,
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use host_core::{PluginError, chain};

/// How many times its deadline a behaviour may take: `CONFORMANCE_PATIENCE`, for emulated processors; 1 without it.
pub(crate) static PATIENCE: LazyLock<u32> =
    LazyLock::new(|| env::var("CONFORMANCE_PATIENCE").ok().and_then(|times| times.parse().ok()).unwrap_or(1));

/// Why a behaviour was not shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unmet {
    /// It does not hold; the text says what was seen instead.
    Broken(String),
    /// It cannot be tried here; the text says what is lacking.
    Lacking(String),
}

/// An operation that should have succeeded did not.
impl From<PluginError> for Unmet {
    fn from(error: PluginError) -> Self {
        Self::Broken(format!("unexpected error ({}): {}", error.kind().as_str(), chain(&error)))
    }
}

/// What trying a behaviour returns.
pub type Verdict = Result<(), Unmet>;

type Try<S> = for<'a> fn(&'a S) -> BoxFuture<'a, Verdict>;

/// Something that every implementation must do, tried on a subject `S`: a trait object, or a fixture around one.
pub struct Behaviour<S: ?Sized> {
    /// The promise in snake case.
    pub name: &'static str,
    /// How long trying it may take. An implementation that blocks its thread escapes this.
    pub deadline: Duration,
    attempt: Try<S>,
}

impl<S: ?Sized> Behaviour<S> {
    /// See [`behaviours!`](crate::behaviours) for the usual way.
    pub const fn new(name: &'static str, deadline: Duration, attempt: Try<S>) -> Self {
        Self { name, deadline, attempt }
    }

    /// Tries it once. A panic is a failure.
    pub async fn attempt(&self, subject: &S) -> Outcome {
        let attempt = AssertUnwindSafe((self.attempt)(subject)).catch_unwind();
        let deadline = self.deadline * *PATIENCE;
        match tokio::time::timeout(deadline, attempt).await {
            Ok(Ok(Ok(()))) => Outcome::Passed,
            Ok(Ok(Err(Unmet::Broken(why)))) => Outcome::Failed(why),
            Ok(Ok(Err(Unmet::Lacking(what)))) => Outcome::Skipped(what),
            Ok(Err(panic)) => Outcome::Failed(format!("it panicked: {}", panic_text(panic.as_ref()))),
            Err(_) => Outcome::Failed(format!("it was not done within {deadline:?}")),
        }
    }
}

impl<S: ?Sized> fmt::Debug for Behaviour<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Behaviour").field(&self.name).finish()
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

/// How trying a behaviour ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It was not tried; the text says what is lacking.
    Skipped(String),
    /// It does not hold.
    Failed(String),
}

/// One line of a [`Report`].
#[derive(Debug, Clone)]
pub struct Tried {
    /// Which behaviour.
    pub behaviour: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// What an implementation does and does not do. `Display` is a table for people.
#[derive(Debug, Clone)]
pub struct Report {
    /// Whose behaviours.
    pub implementation: String,
    /// In the order tried.
    pub tried: Vec<Tried>,
}

impl Report {
    /// Nothing failed, and something passed.
    pub fn holds(&self) -> bool {
        let failed = |tried: &Tried| matches!(tried.outcome, Outcome::Failed(_));
        self.count(Outcome::is_passed) > 0 && !self.tried.iter().any(failed)
    }

    fn count(&self, which: impl Fn(&Outcome) -> bool) -> usize {
        self.tried.iter().filter(|tried| which(&tried.outcome)).count()
    }
}

impl Outcome {
    fn is_passed(&self) -> bool {
        matches!(self, Self::Passed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.tried.iter().map(|tried| tried.behaviour.len()).max().unwrap_or(0);
        for Tried { behaviour, outcome, took } in &self.tried {
            let (word, text) = match outcome {
                Outcome::Passed => ("ok", ""),
                Outcome::Skipped(what) => ("skip", what.as_str()),
                Outcome::Failed(why) => ("FAIL", why.as_str()),
            };
            let line = format!("{word:4}  {behaviour:width$}  {:>6} ms  {text}", took.as_millis());
            writeln!(f, "{}", line.trim_end())?;
        }
        let skipped = self.count(|outcome| matches!(outcome, Outcome::Skipped(_)));
        let passed = self.count(Outcome::is_passed);
        let failed = self.tried.len() - passed - skipped;
        write!(f, "{}: {passed} ok, {failed} failed, {skipped} skipped", self.implementation)
    }
}

/// Tries every behaviour on `subject`, one after another, on one subject.
pub async fn run<S: ?Sized>(implementation: &str, subject: &S, behaviours: &[Behaviour<S>]) -> Report {
    let mut tried = Vec::with_capacity(behaviours.len());
    for behaviour in behaviours {
        let begun = Instant::now();
        let outcome = behaviour.attempt(subject).await;
        tried.push(Tried { behaviour: behaviour.name, outcome, took: begun.elapsed() });
    }
    Report { implementation: implementation.to_owned(), tried }
}

/// Makes the list of behaviours from functions `async fn name(subject: &S) -> Verdict`, one deadline for all:
/// `behaviours![dyn Gpu, Duration::from_secs(5); first, second]`.
#[macro_export]
macro_rules! behaviours {
    ($subject:ty, $deadline:expr; $($name:ident),+ $(,)?) => {
        ::std::vec![$($crate::report::Behaviour::<$subject>::new(
            ::std::stringify!($name),
            $deadline,
            |subject| ::std::boxed::Box::pin($name(subject)),
        )),+]
    };
}

/// Ends a behaviour as [`Unmet::Broken`] with this text unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return ::std::result::Result::Err($crate::report::Unmet::Broken(::std::format!($($text)+)));
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn passes(_: &str) -> Verdict {
        Ok(())
    }

    async fn is_broken(subject: &str) -> Verdict {
        crate::ensure!(subject.is_empty(), "{subject} is not empty");
        Ok(())
    }

    async fn lacks(_: &str) -> Verdict {
        Err(Unmet::Lacking("a GPU".to_owned()))
    }

    async fn panics(_: &str) -> Verdict {
        panic!("on purpose")
    }

    async fn hangs(_: &str) -> Verdict {
        std::future::pending().await
    }

    #[tokio::test(start_paused = true)]
    async fn the_report_tells_every_end() {
        let all = behaviours![str, Duration::from_secs(1); passes, is_broken, lacks, panics, hangs];
        let report = run("thing", "it", &all).await;
        let failed = |text: &str| Outcome::Failed(text.to_owned());
        let outcomes: Vec<_> = report.tried.iter().map(|tried| tried.outcome.clone()).collect();
        assert_eq!(
            outcomes,
            [
                Outcome::Passed,
                failed("it is not empty"),
                Outcome::Skipped("a GPU".to_owned()),
                failed("it panicked: on purpose"),
                failed("it was not done within 1s"),
            ]
        );
        assert!(!report.holds());
        assert!(report.to_string().ends_with("thing: 1 ok, 3 failed, 1 skipped"));
    }

    #[tokio::test]
    async fn a_report_in_which_nothing_passed_does_not_hold() {
        let report = run("thing", "it", &behaviours![str, Duration::from_secs(1); lacks]).await;
        assert!(!report.holds());
    }
}
