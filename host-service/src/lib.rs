//! The per-host orchestrator of mandelboxes: everything behind the binary.
//!
//! ```text
//!   transport ─▶ lobby ◀─ owner tasks ◀─ orchestrator ◀─ watchers ◀─ PubSub, Runtime
//!   admin ─────▶ Host ──── drain, stop ──────▶ │
//! ```
//!
//! - [`service`] builds, runs and ends it all; it owns every task but those of the orchestrator, which owns one for each
//!   mandelbox, and those of each server, which owns its connections'.
//! - The orchestrator decides what is to be done (by `host_core::planner`) and begins it; an owner task spins one
//!   mandelbox up and takes it down; the watchers hear the control plane and the engine.
//! - [`lobby`] is where clients' requests and mandelboxes meet; [`transport`] brings the former.
//! - [`host`] is what servers may ask; [`mandelbox`] is what everybody sees of a mandelbox. Its state has one writer, its
//!   owner; the order to end it has many.
//! - Channels: desired state and the host's condition are `watch` channels, because only the last value counts;
//!   sightings of the engine and orders to drain are queues.
//!
//! The invariants are in `ARCHITECTURE.md`.

pub mod admin;
pub mod build_info;
pub mod cli;
pub mod client;
pub mod deadline;
pub mod death;
pub mod doctor;
mod environment;
pub mod files;
pub mod host;
pub mod identity;
pub mod interruption;
pub mod leftovers;
pub mod lobby;
pub mod mandelbox;
pub mod metrics;
mod monitor;
mod orchestrator;
mod outgoing;
pub mod plugins;
pub mod records;
pub mod resources;
mod retry;
pub mod service;
pub mod telemetry;
pub mod transport;
mod watchers;
