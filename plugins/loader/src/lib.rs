//! Plugins in shared libraries: whether to trust a file, loading it, calling it.
//!
//! ```text
//!   registry ─▶ Library ─▶ Instance (Caller) ─┬─ InProcess ─ the plugin's functions, on the caller's thread
//!                 │                           └─ Process ─── frames ─▶ a runner: this program again, with InProcess
//!                 └ trust: file, digest, ELF        ▲
//!                                                   └ one supervisor thread: starts, reads, starts again
//! ```
//!
//! `Calls` holds what is waited for, by the host's ids: whatever a plugin completes is looked up there, so what
//! comes late, twice or for no call at all is counted and has no other effect. No lock is held while the other side runs.
//! A library is never unloaded.

mod backend;
mod calls;
mod elf;
mod instance;
mod library;
mod outbox;
mod process;
mod registry;
pub mod runner;
mod schema;
mod trust;

pub use host_plugin_protocol::Interface;
pub use instance::{Figures, figures};
pub use library::{Description, LoadError};
pub use registry::{Isolation, Loader, Runner};
pub use trust::{Distrust, Trusted};
