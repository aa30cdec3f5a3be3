//! A `libnvidia-ml.so.1` whose GPUs a file describes: counts, memory, MIG, XID events, hangs, a device lost.
//!
//! The shared library exports those functions of NVML that the plugin `nvml` uses, so that the real bindings load it
//! by path, as a user points to theirs. It reads its [`Scenario`] from the file that `NVML_SCENARIO` names, or else
//! from one beside itself with `.json` added, again whenever that file is replaced. A call that hangs goes on once the
//! scenario says so or is gone.
//!
//! The Rust library is for tests: [`StandIn`] is a copy of the shared library in a directory of its own, with state
//! that no other test in the process shares.

mod exports;
mod scenario;
mod stand_in;
mod state;

pub use scenario::{Event, Gpu, Instance, Presence, Scenario};
pub use stand_in::StandIn;
