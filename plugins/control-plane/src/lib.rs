//! What PubSubs in front of the schema `cloud` have in common, whatever they reach it through.
//!
//! Invariants:
//! - A status or a removal that the [`Outbox`] accepts (`Ok`) is in the database or on disk, and is delivered in the order
//!   of its mandelbox's life. Until then hosts are shown their rows as if it had been. No write that does not go through
//!   keeps rows from being read, or other mandelboxes' writes from going.
//! - A write is about one allocation: the one that was claimed, or else the one that was seen last under its id.
//! - A row of nonsense hides no other, and an unknown status of the host is neither a missing row nor another status.
//!
//! This crate spawns no task and knows no database: who has one implements [`Delivery`].

use host_core::{PluginError, Retry};

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

/// What could not be told now can be told later: nobody is reached, answers, or believes this host at the moment.
pub fn is_away(error: &PluginError) -> bool {
    error.retry() == Retry::Later
}

/// Up to a fifth less, so that a fleet does not read in step.
pub fn shortened(period: std::time::Duration) -> std::time::Duration {
    period.mul_f64(1.0 - 0.2 * rand::random::<f64>())
}
