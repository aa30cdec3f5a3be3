//! Whether a file may be loaded: who can change it, and whether it is the one that was pinned.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::process::geteuid;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Larger than any plugin; a file is read whole before it is loaded.
const SIZE_LIMIT: u64 = 512 * 1024 * 1024;
const WRITABLE_BY_OTHERS: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Why a file is not loaded; each says what to do about it.
#[derive(Debug, Error)]
pub enum Distrust {
    /// It cannot be read.
    #[error("{path}: cannot be read", path = .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    /// A network address, a device, a directory.
    #[error("{path}: is no regular file; a plugin is a shared library on a local disk", path = .0.display())]
    NoFile(PathBuf),
    /// It is larger than anything that is a plugin.
    #[error("{path}: has {1} bytes; at most {SIZE_LIMIT} are loaded", path = .0.display())]
    TooLarge(PathBuf, u64),
    /// Somebody else owns it or a directory above it.
    #[error("{path}: belongs to user {owner}, who could replace it; chown root {path}", path = .path.display())]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Others can write it or a directory above it.
    #[error("{path}: others can write it (mode {mode:03o}); chmod go-w {path}", path = .path.display())]
    Writable {
        /// The file or directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It lies elsewhere.
    #[error(
        "{path}: is not in {directory}, the only directory that plugins are loaded from; host-service plugin \
         install {path}",
        path = .path.display(), directory = .directory.display()
    )]
    Elsewhere {
        /// The file.
        path: PathBuf,
        /// Where it should be.
        directory: PathBuf,
    },
    /// It is not what was pinned.
    #[error(
        "{path}: its sha256 is {found}, pinned is {pinned}; if the change is meant, pin the new one",
        path = .path.display()
    )]
    Pin {
        /// The file.
        path: PathBuf,
        /// What it should be.
        pinned: String,
        /// What it is.
        found: String,
    },
    /// It changed while it was looked at.
    #[error("{path}: was replaced while it was being loaded; try again", path = .0.display())]
    Changed(PathBuf),
}

/// A file that nobody but root and this process's user can change, and its content.
#[derive(Debug)]
pub struct Trusted {
    /// Without links.
    pub path: PathBuf,
    /// In hex digits.
    pub sha256: String,
    pub(crate) bytes: Vec<u8>,
    identity: Identity,
}

#[derive(Debug, PartialEq, Eq)]
struct Identity(u64, u64, u64, i64, i64);

impl Identity {
    fn of(metadata: &fs::Metadata) -> Self {
        Self(metadata.dev(), metadata.ino(), metadata.size(), metadata.ctime(), metadata.ctime_nsec())
    }
}

impl Trusted {
    /// Reads `path` and looks at every directory above it.
    ///
    /// # Errors
    /// Any rule that it breaks.
    pub fn read(path: &Path, pin: Option<&str>) -> Result<Self, Distrust> {
        let unreadable = |error| Distrust::Unreadable(path.to_owned(), error);
        let real = path.canonicalize().map_err(unreadable)?;
        for place in real.ancestors() {
            check_place(place)?;
        }
        let file = File::open(&real).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(Distrust::NoFile(real));
        }
        if metadata.len() > SIZE_LIMIT {
            return Err(Distrust::TooLarge(real, metadata.len()));
        }
        let mut bytes = Vec::new();
        file.take(SIZE_LIMIT).read_to_end(&mut bytes).map_err(unreadable)?;
        let sha256 = hex(&Sha256::digest(&bytes));
        if let Some(pin) = pin.filter(|pin| !pin.eq_ignore_ascii_case(&sha256)) {
            return Err(Distrust::Pin { path: real, pinned: pin.to_owned(), found: sha256 });
        }
        Ok(Self { path: real, sha256, bytes, identity: Identity::of(&metadata) })
    }

    /// The same, for a file that must lie in `directory` itself.
    ///
    /// # Errors
    /// Any rule that it breaks.
    pub fn read_in(directory: &Path, path: &Path, pin: Option<&str>) -> Result<Self, Distrust> {
        let trusted = Self::read(path, pin)?;
        let directory =
            directory.canonicalize().map_err(|error| Distrust::Unreadable(directory.to_owned(), error))?;
        if trusted.path.parent() == Some(&directory) {
            Ok(trusted)
        } else {
            Err(Distrust::Elsewhere { path: trusted.path, directory })
        }
    }

    /// The path still leads to the file that was read, unchanged.
    ///
    /// # Errors
    /// It does not.
    pub fn recheck(&self) -> Result<(), Distrust> {
        let now = fs::metadata(&self.path).map_err(|error| Distrust::Unreadable(self.path.clone(), error))?;
        if Identity::of(&now) == self.identity { Ok(()) } else { Err(Distrust::Changed(self.path.clone())) }
    }
}

/// A directory where everybody can make files but nobody can rename those of others, as `/tmp`, is as good as one that
/// others cannot write: what lies in it is looked at by itself.
fn check_place(path: &Path) -> Result<(), Distrust> {
    let metadata = fs::metadata(path).map_err(|error| Distrust::Unreadable(path.to_owned(), error))?;
    let owner = metadata.uid();
    if owner != 0 && owner != geteuid().as_raw() {
        return Err(Distrust::Owner { path: path.to_owned(), owner });
    }
    let sticky = metadata.is_dir() && metadata.mode() & STICKY != 0;
    if metadata.mode() & WRITABLE_BY_OTHERS != 0 && !sticky {
        return Err(Distrust::Writable { path: path.to_owned(), mode: metadata.mode() & 0o777 });
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_others_can_write_is_refused_with_the_remedy() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("plugins");
        let file = directory.join("libx.so");
        fs::create_dir(&directory).unwrap();
        chmod(&directory, 0o755);
        fs::write(&file, "x").unwrap();
        chmod(&file, 0o644);
        assert!(Trusted::read_in(&directory, &file, None).is_ok());
        chmod(&file, 0o664);
        let error = Trusted::read(&file, None).unwrap_err().to_string();
        assert!(error.contains("mode 664") && error.contains("chmod go-w"), "{error}");
        chmod(&file, 0o644);
        chmod(&directory, 0o777);
        assert!(
            matches!(Trusted::read(&file, None), Err(Distrust::Writable { path, .. }) if path == directory)
        );
    }

    #[test]
    fn a_file_is_its_pinned_self_or_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("libx.so");
        fs::write(&file, "x").unwrap();
        chmod(&file, 0o644);
        let trusted = Trusted::read(&file, None).unwrap();
        assert!(Trusted::read(&file, Some(&trusted.sha256.to_uppercase())).is_ok());
        let error = Trusted::read(&file, Some("00")).unwrap_err().to_string();
        assert!(error.contains(&trusted.sha256), "{error}");
        fs::write(scratch.path().join("new"), "y").unwrap();
        fs::rename(scratch.path().join("new"), &file).unwrap();
        assert!(matches!(trusted.recheck(), Err(Distrust::Changed(_))));
    }

    #[test]
    fn only_one_directory_is_loaded_from_and_links_do_not_hide_that() {
        let scratch = tempfile::tempdir().unwrap();
        let (inside, outside) = (scratch.path().join("plugins"), scratch.path().join("elsewhere"));
        for directory in [&inside, &outside] {
            fs::create_dir(directory).unwrap();
            chmod(directory, 0o755);
        }
        fs::write(outside.join("libx.so"), "x").unwrap();
        chmod(&outside.join("libx.so"), 0o644);
        std::os::unix::fs::symlink(outside.join("libx.so"), inside.join("libx.so")).unwrap();
        let error = Trusted::read_in(&inside, &inside.join("libx.so"), None).unwrap_err();
        assert!(matches!(error, Distrust::Elsewhere { .. }), "{error}");
        assert!(matches!(Trusted::read(&inside, None), Err(Distrust::NoFile(_))));
        assert!(matches!(Trusted::read(&inside.join("none"), None), Err(Distrust::Unreadable(..))));
    }
}
