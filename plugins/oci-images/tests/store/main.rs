//! The store on archives and registries: what it takes, what it refuses, what it keeps.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it lacked"
)]

mod bombs;
mod build;
mod fake;
mod hostile;
mod keep;
mod load;
mod pull;
mod real;
mod registry;
mod unpacked;
