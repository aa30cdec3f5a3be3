//! For authors of plugins: implement a trait, export the plugin, build a `cdylib`.
//!
//! ```text
//! use host_plugin_sdk::prelude::*;
//!
//! #[derive(Deserialize, Default)]
//! #[serde(deny_unknown_fields, default)]
//! struct Config { devices: u32 }
//!
//! #[derive(Debug)]
//! struct Acme { config: Config }
//!
//! #[async_trait]
//! impl Gpu for Acme { … }
//!
//! fn plugin() -> Plugin<dyn Gpu> {
//!     Plugin::new("acme", |config: Config, _context| async move {
//!         let gpu: Arc<dyn Gpu> = Arc::new(Acme { config });
//!         Ok(gpu)
//!     })
//! }
//!
//! export_plugin!(gpu: plugin());
//! ```
//!
//! A plugin that is compiled into the host is made of the same `plugin()`, which is why the host cannot tell the two
//! apart. What an implementation finds around it: a tokio runtime of the plugin's own, with two workers; `tracing`,
//! whose records become the host's; and panics that end no more than their call.
//!
//! ```text
//!  host's thread ── call ─▶ entry points ─▶ serve (host-plugin-protocol) ── future ─▶ a task of the plugin's runtime
//!                 ◀───────── complete, emit, log: the host's functions, from any thread ─────────┘
//! ```
//!
//! Each instance owns its tasks by one tracker; a call's task ends with its completion, or when the host cancels it.

mod bridge;
mod entry;
mod host;
mod instance;
mod stream;

/// What a plugin's source usually needs.
pub mod prelude {
    pub use std::sync::Arc;

    pub use host_core::{
        ErrorKind, PluginError,
        gpu::Gpu,
        pubsub::PubSub,
        registry::{Context, Plugin},
        runtime::Runtime,
        telemetry::Telemetry,
    };
    pub use serde::Deserialize;

    pub use crate::export_plugin;
}

#[doc(hidden)]
pub use entry::{Descriptor, describe};
#[doc(hidden)]
pub use host_plugin_abi as abi;
#[doc(hidden)]
pub use host_plugin_protocol::Interface;
#[doc(hidden)]
pub use instance::Implementations;

/// Exports plugins from a shared library, at most one of each kind: `export_plugin!(runtime: plugin())`. The first gives
/// the library its name. `inline` in front lets calls run on the host's threads up to the first time they wait, which
/// saves a hand-over and is right only for a plugin that never blocks: `export_plugin!(inline gpu: plugin())`.
#[macro_export]
macro_rules! export_plugin {
    (inline $($kind:ident: $plugin:expr),+ $(,)?) => { $crate::export_plugin!(@export true, $($kind: $plugin),+); };
    (@export $inline:literal, $($kind:ident: $plugin:expr),+) => {
        #[doc(hidden)]
        mod hp_export {
            use super::*;

            fn implementations() -> $crate::Implementations {
                let mut all = $crate::Implementations { inline: $inline, ..$crate::Implementations::default() };
                $(all.$kind = Some($plugin);)+
                all
            }

            static DESCRIPTOR: $crate::Descriptor = $crate::Descriptor::new();

            /// The plugin of this library.
            #[allow(unsafe_code, reason = "the one symbol that the host looks for")]
            #[unsafe(no_mangle)]
            pub extern "C" fn hp_plugin_entry_v1() -> *const $crate::abi::Plugin {
                $crate::describe(&DESCRIPTOR, env!("CARGO_PKG_VERSION"), implementations)
            }
        }
    };
    ($($kind:ident: $plugin:expr),+ $(,)?) => { $crate::export_plugin!(@export false, $($kind: $plugin),+); };
}
