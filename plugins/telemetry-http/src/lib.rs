//! What telemetry plugins that speak HTTP share.
//!
//! - [`Intake`] and [`Outlet`]: records go in from anywhere, at no cost worth mentioning, and come out on a thread of
//!   the plugin's own. A full queue costs records, which are counted, and never the caller.
//! - [`Client`]: one request at a time, each with a deadline; errors never show a URL, which may hold a token.
//! - [`Pauses`]: longer and longer between tries, with jitter, so that a fleet does not come back all at once.
//! - [`text`], [`section`]: texts made harmless and short, values of sections.
//!
//! Threads are called `telemetry-…`. What libraries record on them is no record of the service's: it would make
//! another request, and that another record.

mod client;
mod pauses;
mod queue;
pub mod section;
pub mod text;
mod tls;

pub use client::{Client, Reply, pause_asked_for};
pub use pauses::Pauses;
pub use queue::{Intake, Item, Outlet, THREADS, spawn};
