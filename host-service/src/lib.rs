//! The per-host orchestrator of mandelboxes.

pub mod admin;
pub mod build_info;
pub mod cli;
pub mod client;
pub mod deadline;
pub mod doctor;
pub mod files;
pub mod host;
pub mod identity;
pub mod leftovers;
pub mod lobby;
pub mod mandelbox;
pub mod metrics;
mod monitor;
mod orchestrator;
pub mod plugins;
pub mod records;
pub mod resources;
mod retry;
pub mod service;
pub mod telemetry;
pub mod transport;
mod watchers;
