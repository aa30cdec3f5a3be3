//! The plugins compiled in. This is the only place that names one: a new one is one line here and its dependency.

use host_core::registry::{Plugins, Registry};

/// Every plugin that the configuration can name.
pub fn registry() -> Registry {
    Registry {
        runtimes: Plugins::default()
            .with(runtime_docker::plugin())
            .with(runtime_sim::plugin()),
        gpus: Plugins::default()
            .with(gpu_none::plugin())
            .with(gpu_sim::plugin()),
        pubsubs: Plugins::default().with(pubsub_memory::plugin()),
        telemetries: Plugins::default().with(telemetry_console::plugin()),
    }
}
