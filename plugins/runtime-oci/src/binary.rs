//! Another OCI runtime's program, where the section names one.

use std::{
    env, io,
    path::{Path, PathBuf},
    time::Duration,
};

use host_core::{ErrorKind, PluginError, runtime::Result};
use tokio::process::Command;

/// A runtime's program says its version at once.
const VERSION: Duration = Duration::from_secs(5);
/// Not in every `PATH`.
const SYSTEM: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the program lies: supervisors have no `PATH`.
pub(crate) fn find(binary: &Path) -> Result<PathBuf> {
    let is_name = binary.components().count() == 1 && !binary.is_absolute();
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(env::split_paths(SYSTEM)).filter(|_| is_name);
    let places = directories.map(|directory| directory.join(binary)).chain([binary.to_owned()]);
    let found = places.filter(|place| place.is_file()).find_map(|place| place.canonicalize().ok());
    found.ok_or_else(|| {
        let error = io::Error::from(io::ErrorKind::NotFound);
        PluginError::new(ErrorKind::Unavailable, unusable(binary)).with_source(error)
    })
}

/// The first line of what it says of its version.
pub(crate) async fn version(binary: &Path) -> Result<String> {
    let asked = Command::new(binary).arg("--version").kill_on_drop(true).output();
    let output = tokio::time::timeout(VERSION, asked)
        .await
        .map_err(|_| PluginError::new(ErrorKind::Timeout, unusable(binary)))?
        .map_err(|error| PluginError::new(ErrorKind::Unavailable, unusable(binary)).with_source(error))?;
    if !output.status.success() {
        let text = format!("{}: --version ended with {}", unusable(binary), output.status);
        return Err(PluginError::new(ErrorKind::Unavailable, text));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn unusable(binary: &Path) -> String {
    format!("{} cannot be used; see runtime.oci.binary", binary.display())
}
