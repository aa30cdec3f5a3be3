//! The runtime `podman` as a library, from its unchanged crate.

host_plugin_sdk::export_plugin!(runtime: runtime_podman::plugin());
