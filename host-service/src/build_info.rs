//! What this binary was built from.

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The full commit hash; `unknown` when the build had neither git nor `HOST_SERVICE_COMMIT`.
pub const COMMIT: &str = env!("HOST_SERVICE_COMMIT");

/// The version of the plugin ABI; 0 while this binary loads no dynamic plugins.
pub const ABI_VERSION: u32 = 0;

/// The ABI version for people.
pub fn abi() -> String {
    match ABI_VERSION {
        0 => "none (this build loads no dynamic plugins)".to_owned(),
        version => version.to_string(),
    }
}
