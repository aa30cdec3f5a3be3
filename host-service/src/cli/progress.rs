//! Something moves while something takes long: on standard error, and on a terminal only.

use std::{borrow::Cow, time::Duration};

use indicatif::ProgressBar;

/// Often enough to look alive.
const TICK: Duration = Duration::from_millis(100);

/// A line that moves until this is dropped.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// `doing` is what takes long.
    pub(crate) fn new(doing: impl Into<Cow<'static, str>>) -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_message(doing);
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// Something else takes long now.
    pub(crate) fn now(&self, doing: impl Into<Cow<'static, str>>) {
        self.0.set_message(doing);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
