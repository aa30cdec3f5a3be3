//! The domain of the host service. No I/O happens here: what touches the world are the plugins behind the four
//! traits, and the host service that drives them.
//!
//! - [`runtime`], [`gpu`], [`pubsub`], [`telemetry`]: the traits, with the data that crosses them.
//! - [`registry`]: from a plugin's name to the plugin.
//! - [`lease`]: ports, TTYs and GPU slots, held exactly as long as somebody may use them.
//! - [`lifecycle`]: the states of one mandelbox.
//! - [`planner`]: from what is wanted and what is seen to what is to be done.
//! - [`id`], [`secret`], [`error`], [`check`]: the values that all of these share.

pub mod check;
pub mod error;
pub mod gpu;
pub mod id;
pub mod lease;
pub mod lifecycle;
pub mod planner;
pub mod pubsub;
pub mod registry;
pub mod runtime;
pub mod secret;
pub mod telemetry;

pub use error::{ErrorKind, PluginError, Retry, chain};
pub use id::{AppName, ContainerName, ImageRef, InstanceName, InvalidId, MandelboxId, SessionId, UserId};
