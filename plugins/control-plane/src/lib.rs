//! What PubSubs in front of the schema `cloud` have in common, whatever they reach it through.
//!
//! Invariants:
//! - A status or a removal that the [`Outbox`] accepts (`Ok`) is in the database or on disk, and is delivered in order.
//! - A row of nonsense hides no other, and an unknown status of the host is neither a missing row nor another status.
//!
//! This crate spawns no task and knows no database: who has one implements [`Delivery`].

use host_core::{ErrorKind, PluginError, Retry};

mod outbox;
mod queue;
pub mod registration;
mod rows;
pub mod section;
mod seen;

pub use outbox::{Delivery, Outbox};
pub use queue::{Entry, Write};
pub use rows::{Raw, Read, Reader, short};
pub use seen::{Ripe, Seen, Watching};

/// Nobody is reached, nobody answers, or nobody believes this host at the moment: what could not be told now can be
/// told later.
pub fn is_away(error: &PluginError) -> bool {
    match error.kind() {
        ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Exhausted => true,
        // A token that has expired and may be replaced.
        ErrorKind::Denied => error.retry() == Retry::Later,
        _ => false,
    }
}

/// A tenth more or less, so that a fleet does not read in step.
pub fn jittered(period: std::time::Duration) -> std::time::Duration {
    period.mul_f64(0.9 + 0.2 * rand::random::<f64>())
}
