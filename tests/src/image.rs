//! The test mandelbox's image archive, made when it is missing or older than what it is made of.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};

/// The archive: what `HOST_TESTS_IMAGE` names, else `build/test-mandelbox.tar`, which is brought up to date.
///
/// # Errors
/// It cannot be made; what says why.
pub fn archive() -> Result<PathBuf> {
    if let Some(named) = env::var_os("HOST_TESTS_IMAGE") {
        return Ok(named.into());
    }
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let archive = tests.with_file_name("build").join("test-mandelbox.tar");
    let source = tests.join("mandelbox");
    if modified(&archive).is_none_or(|made| newest(&source).is_some_and(|changed| changed > made)) {
        make(&source.join("make-image.sh"), &archive)?;
    }
    Ok(archive)
}

fn make(script: &Path, archive: &Path) -> Result<()> {
    let output = Command::new(script).arg(archive).output().with_context(|| script.display().to_string())?;
    ensure!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// When the last file below a directory changed.
fn newest(directory: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    let times = entries.filter_map(|entry| match entry.file_type().ok()?.is_dir() {
        true => newest(&entry.path()),
        false => modified(&entry.path()),
    });
    times.max()
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}
