//! The per-host orchestrator of mandelboxes.

pub mod admin;
pub mod cli;
pub mod client;
pub mod doctor;
pub mod deadline;
pub mod host;
pub mod lobby;
pub mod mandelbox;
pub mod build_info;
pub mod files;
pub mod identity;
pub mod leftovers;
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
