//! What the bytes say that cross the plugin interface.
//!
//! ```text
//!   impl Runtime for Remote ──▶ Caller ──▶ (method, bytes) ──▶ serve::runtime ──▶ dyn Runtime
//!        host                  loader        either by C call         SDK           plugin
//!                                            or by a Frame
//! ```
//!
//! `interfaces.rs` lists every method of the four traits once; the host's [`Remote`] and the plugin's [`serve`] are both
//! generated from that list. A method's number is never used again, its request is a map of its named arguments, and an
//! argument that is added has a default: see README.md for what may change.

#[macro_use]
mod table;

mod encoding;
mod error;
pub mod frame;
mod host;
mod interfaces;
mod plugin;
mod record;
mod spec;
mod wire;

pub use encoding::Encoding;
pub use error::{decode_error, encode_error};
pub use host::{Answer, Caller, Item, Items, Remote};
pub use interfaces::{Interface, constants, serve};
pub use plugin::{Emitter, Outcome, Served};
