//! What this binary was built from.

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The full commit hash; `unknown` when the build had neither git nor `HOST_SERVICE_COMMIT`.
pub const COMMIT: &str = env!("HOST_SERVICE_COMMIT");

/// The version of the plugin ABI.
pub const ABI_VERSION: u32 = host_plugin_abi::ABI_MAJOR as u32;

/// The ABI version for people.
pub fn abi() -> String {
    format!("{}.{}", host_plugin_abi::ABI_MAJOR, host_plugin_abi::ABI_MINOR)
}
